"""Says what is wrong with bad input in one sentence, and gives the configuration its resolvers.

This module and those that it imports must import neither torch nor Lightning, which take seconds: a misspelt option is
told at once, and so is a completion of the shell.
"""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.credentials import without_credentials
from enat.errors import InputError, printable
from enat.files import lost_link, weights_file
from experiments.runtime.job_names import job_name, options, options_of_multirun, short
from experiments.runtime.multirun import JobError, is_job
from experiments.runtime.option_errors import explain_option
from experiments.runtime.options import CONF
from experiments.runtime.ranks import processes
from experiments.runtime.run_files import is_of_requeued_job

RESUMABLE = ("train", "tokenize", "download", "sample", "evaluate", "score", "statistics")  # tasks


def _run_folder(folder: str, resume: bool) -> str:
    """Returns the folder of a run: the one asked for or, to start anew, the first of FOLDER, FOLDER-2 ... that is free.

    A job that SLURM has put into the queue again gets the folder that it has started anew in, and goes on.

    Raises:
        InputError: if several processes would have to agree on a free folder.
    """
    if not resume and processes()[1] > 1:
        raise InputError(
            "resume=false: expected output=NEWFOLDER in its place with several processes, so that they agree on it."
        )
    number = 1
    free = folder
    while not resume and Path(free).exists() and not is_of_requeued_job(Path(free)):
        number += 1
        free = f"{folder}-{number}"
    return free


def _sweep_of(setting: str) -> str | None:
    """Returns the name of a multirun's folder (`group`) or the number of the job (`job`); None outside a multirun."""
    if not is_job():
        return None
    return Path(HydraConfig.get().sweep.dir).name if setting == "group" else f"{HydraConfig.get().job.num}"


def _run_of(weights: str | None, name: str) -> str:
    """Returns the folder of the run of a checkpoint or an export, `outputs/digits` say; `outputs/NAME` for others."""
    folder = weights_file(weights).parent if weights else Path()
    return str(folder.parent) if folder.name.startswith(("checkpoints", "export")) else f"outputs/{name}"


def _changes(*, _root_: DictConfig) -> str:
    """Returns what tells this command from others of its task, as the end of a folder's name; nothing by default."""
    left_out = ("task", "output", "experiment")
    if "hydra" in _root_ and _root_.hydra.mode == RunMode.MULTIRUN:
        found = options_of_multirun(_root_.hydra, *left_out)
    elif HydraConfig.initialized():
        found = options(*left_out)
    else:
        return ""
    return f"-{short(found)}" if found else ""


def _refuse_environment(*names: str) -> None:
    """Refuses `${oc.env:NAME}`, which would put a secret into files that are shared and URLs that are sent."""
    raise InputError(
        f"${{oc.env:{names[0] if names else ''}}}: a configuration may not read the environment, since its values are "
        "saved; write the value itself, or let the shell put it into an option of the command."
    )


def _rows_of_imagenet(num_classes: int | None) -> list[int] | None:
    """Returns ids of ImageNet's classes for the rows of a grid; None for a network of other classes."""
    return [1, 88, 207, 279, 360, 417, 555, 812, 933, 972] if num_classes == 1000 else None


OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
OmegaConf.register_new_resolver("job_name", job_name, replace=True)
OmegaConf.register_new_resolver("rows_of_imagenet", _rows_of_imagenet, replace=True)
OmegaConf.register_new_resolver("run_of", _run_of, replace=True)
OmegaConf.register_new_resolver("changes", _changes, replace=True)
OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_of", _sweep_of, replace=True)


# Before torch is imported: C++ of DDP warns, in each process, that a step used all parameters, see trainer/ddp.yaml.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")  # a file's name may be no text


@contextmanager
def explain_errors(arguments: Sequence[str], inside: bool = False) -> Iterator[None]:
    """Ends the program with one sentence on bad input: status 2 for an option, 1 for a file or a value.

    With HYDRA_FULL_ERROR=1 or `debug=true`, and for errors that are not the user's, the traceback is shown.

    Args:
        arguments: of the command line.
        inside: whether this is called inside of Hydra, which gets the error of a job of a multirun as it is, so that
            it goes on with the other jobs.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and "ENAT_PLAIN_ERRORS" not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints and exits by itself
    if wants_traceback or "debug=true" in [argument.lower() for argument in arguments]:
        yield
        return
    os.environ["ENAT_PLAIN_ERRORS"] = "1"  # tells the processes of other ranks that HYDRA_FULL_ERROR was set here
    try:
        yield
    except BrokenPipeError:  # the program that reads the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except (Exception, KeyboardInterrupt) as error:
        sentence, status = explain(error, arguments)
        if sentence is None or (inside and isinstance(error, JobError)):
            raise
        print(f"Error: {sentence}{_how_to_fetch(sentence)}", file=sys.stderr)
        raise SystemExit(status) from error


def _how_to_fetch(sentence: str) -> str:
    """Returns a further sentence for one that names a missing file, if the file is a public one."""
    if "no such file" not in sentence.lower():
        return ""
    public_files = yaml.safe_load((CONF / "task" / "download.yaml").read_text())["public_files"]
    for name, public in public_files.items():
        if public["file"] in sentence:
            return f" `python run.py task=download 'files=[{name}]'` fetches it."
    return " `python run.py task=download` lists public files to fetch." if "=assets/" in sentence else ""


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str | None, int]:
    """Puts an error into one sentence that is safe to print and to keep, and returns it with the exit status.

    For an error that is not the user's, there is no sentence but None.
    """
    sentence, status = _explain(error, arguments)
    return None if sentence is None else printable(without_credentials(" ".join(sentence.split()))), status


def _explain(error: BaseException, arguments: Sequence[str]) -> tuple[str | None, int]:
    if isinstance(error, InputError | JobError):
        return str(error), 1
    if isinstance(error, InstantiationException):
        # Hydra builds its launcher and its sweeper; one that refuses a value is a matter of the user's input too.
        cause = _cause(error, (InputError, *_misconfiguration(), ValueError, TypeError, ImportError))
        key = str(error).rpartition("full_key: ")[2].strip()
        return (None if cause is None else f"{key}: {cause}" if key else str(cause)), 1
    if isinstance(error, _misconfiguration()):
        return f"trainer: {error}", 1
    if isinstance(error, _wandb_errors()):
        return f"logger=wandb: {error}; `wandb login` signs in, and logger.wandb.offline=true needs no account.", 1
    if memory := _exhausted_memory(error):
        return (
            f"the memory of {memory} is not enough ({str(error).partition('. ')[0]}). Fewer images at a time need "
            "less: a larger trainer.accumulate_grad_batches in training, a smaller metrics.evaluation.batch_size for "
            "scores, a smaller batch_size in task=sample.",
            1,
        )
    if isinstance(error, RuntimeError) and "for the MPS device" in str(error):
        return (
            f"trainer.accelerator=mps: {str(error).partition('.')[0]}; expected cpu, or PYTORCH_ENABLE_MPS_FALLBACK=1.",
            1,
        )
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = _cause(error, (InputError,))
        return (explain_option(error, arguments) if cause is None else str(cause)), 2
    if isinstance(error, ValueError) and _is_of_logging(error):
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        return f"hydra.job_logging or hydra.hydra_logging: {error}{reason}.", 2
    if isinstance(error, ValueError) and str(error) == "No trials are completed yet.":  # of optuna
        return "all jobs of the search failed; the job.json of each says why.", 1
    if isinstance(error, OSError) and error.filename is not None:
        lost = lost_link(Path(error.filename)) if isinstance(error, FileExistsError) else None
        return lost or f"{error.filename}: {error.strerror}.", 1
    if isinstance(error, KeyboardInterrupt):
        given = dict(argument.partition("=")[::2] for argument in arguments)
        goes_on = given.get("task", "train") in RESUMABLE and given.get("resume", "true").lower() == "true"
        return f"interrupted{'; the same command goes on from there' if goes_on else ''}.", 130
    return None, 130


def _is_of_logging(error: BaseException) -> bool:
    """Says whether Python's `logging.config`, to which Hydra gives the settings of its loggers, has raised an error."""
    modules = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "logging.config" in modules


def _misconfiguration() -> tuple[type[BaseException], ...]:
    """Returns Lightning's class of errors on options; nothing before Lightning was imported."""
    module = sys.modules.get("lightning.fabric.utilities.exceptions")
    return () if module is None else (module.MisconfigurationException,)


def _exhausted_memory(error: BaseException) -> str | None:
    """Returns whose memory is used up, if that is what an error of Python or of torch says."""
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "this machine"
    return "the GPU" if type(error).__name__ == "OutOfMemoryError" else None


def _wandb_errors() -> tuple[type[BaseException], ...]:
    """Returns the class of the errors of W&B; nothing before it was imported."""
    module = sys.modules.get("wandb.errors")
    return () if module is None else (module.Error,)


def _cause(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """Returns the first error of one of these kinds among the causes of an error."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, kinds):
        cause = cause.__cause__ or cause.__context__
    return cause
