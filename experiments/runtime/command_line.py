"""Runs a task, keeps its results, and says what is wrong with bad input in one sentence."""

import difflib
import inspect
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException
from hydra.utils import get_object, instantiate
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from enat.errors import InputError
from enat.files import write_atomically
from experiments.runtime.config_check import check_config
from experiments.runtime.launch import processes
from experiments.runtime.multirun import JobError, is_job, objectives, run_job

UNFINISHED = "unfinished"  # in a task's output: work that the same command goes on with, until there are results


def _run_folder(folder: str, resume: bool) -> str:
    """The folder of a run: the one asked for, or, to start anew, the first of FOLDER, FOLDER-2 ... that is new."""
    if not resume and processes()[1] > 1:
        raise InputError("resume=false: expected output=NEWFOLDER with several processes, so that they agree on it.")
    number, free = 1, folder
    while not resume and Path(free).exists():
        number += 1
        free = f"{folder}-{number}"
    return free


def _sweep_of(setting: str) -> str | None:
    """In a multirun, the name of its folder (`group`) or the number of the job (`job`); otherwise None."""
    if not is_job():
        return None
    return Path(HydraConfig.get().sweep.dir).name if setting == "group" else f"{HydraConfig.get().job.num}"


warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch 2.14
warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # on CPUs, of `mkldnn.flags`
OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_of", _sweep_of, replace=True)


def run_task(config: DictConfig) -> float | tuple[float, ...] | None:
    """Runs `config.task` in Hydra's output folder; prints and writes its results.

    Returns:
        What `config.objective` names of the results, for a sweeper.

    Raises:
        SystemExit: with status 1 if the task's results say that it did not pass.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    output = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    config.output = str(output)
    if is_job():
        if config.objective and processes()[1] > 1 and "submitit" not in HydraConfig.get().launcher._target_:
            raise InputError(
                "objective: each process of torchrun or srun would ask the sweeper for settings of its own; expected "
                "one process, or a launcher that starts those of each job, such as hydra/launcher=submitit_slurm."
            )
        results = run_job(
            output,
            config.resume,
            config.get("weights"),
            "study" in config,
            lambda: _results(config, output),
            lambda error: explain(error)[0],
        )
    else:
        results = _results(config, output)
        if not results.get("passed", True):
            raise SystemExit(1)
    return objectives(config.objective, results) if rank_zero_only.rank == 0 else None  # type: ignore[attr-defined]


def _results(config: DictConfig, output: Path) -> dict[str, Any]:
    check_config(config, "task")
    if type(config.seed) is not int or not 0 <= config.seed < 2**32:
        raise InputError(f"seed={config.seed}: expected an integer from 0 to {2**32 - 1}.")
    L.seed_everything(config.seed, verbose=False)
    extra = {}
    if "settings" in inspect.signature(get_object(config.task._target_)).parameters:
        # A read-only view, which `instantiate` passes on as it is.
        extra["settings"] = MappingProxyType(_plain(config))
    results: dict[str, Any] = instantiate(config.task, _partial_=True, **extra)()  # built first: its errors stay apart
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        write_atomically(output / "results.json", json.dumps(results, indent=1).encode())
        shutil.rmtree(output / UNFINISHED, ignore_errors=True)
        print(f"Results: {output / 'results.json'}")
        print(json.dumps(results))
    return results


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items()}


@contextmanager
def explain_errors(arguments: Sequence[str], inside: bool = False) -> Iterator[None]:
    """Ends the program with one sentence on bad input: status 2 for an option, 1 for a file or a value.

    With HYDRA_FULL_ERROR=1 or `debug=true` errors stay as they are. So do those that are not the user's, and, `inside`
    of Hydra, a job's, so that Hydra goes on with the other jobs.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1" and "ENAT_PLAIN_ERRORS" not in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints and exits by itself
    if wants_traceback or "debug=true" in [argument.lower() for argument in arguments]:
        yield
        return
    os.environ["ENAT_PLAIN_ERRORS"] = "1"  # so that the processes of other ranks know who set the former
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        sentence, status = explain(error)
        if sentence is None or (inside and isinstance(error, JobError)):
            raise
        print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
        raise SystemExit(status) from error


def explain(error: BaseException) -> tuple[str | None, int]:
    """An error in one sentence, and the status to leave with; no sentence for one that is not the user's."""
    if isinstance(error, InputError | JobError):
        return str(error), 1
    if isinstance(error, InstantiationException):
        # A library's constructor that refuses a value is the user's matter too.
        cause = _cause(error, (InputError, MisconfigurationException, ValueError, TypeError, ImportError))
        key = str(error).rpartition("full_key: ")[2].removeprefix("task").strip(".\n")
        return (None if cause is None else f"{key}: {cause}" if key else str(cause)), 1
    if isinstance(error, MisconfigurationException):
        return f"trainer: {error}", 1
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = _cause(error, (InputError,))
        return (_explain_option(error) if cause is None else str(cause)), 2
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}.", 1
    return ("interrupted." if isinstance(error, KeyboardInterrupt) else None), 130


def _cause(error: BaseException, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The error of one of these kinds that an error stems from."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, kinds):
        cause = cause.__cause__ or cause.__context__
    return cause


def _explain_option(error: BaseException) -> str:
    """One sentence for an error of Hydra or OmegaConf."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = lines[0].split("'")[1] if isinstance(error, ConfigCompositionException) and "'" in lines[0] else ""
    if not lines[0].startswith("Could not override"):
        return " ".join(lines)
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        known = _options(compose("config"))
    last = {option.rpartition(".")[2]: option for option in known}
    close = difflib.get_close_matches(name, known, 3, 0.75) or [
        last[match] for match in difflib.get_close_matches(name.rpartition(".")[2], list(last), 3, 0.75)
    ]
    hint = f"did you mean {' or '.join(close)}?" if close else "`python run.py --cfg job` prints all options."
    return f"{name}: there is no such option; {hint}"


def _options(config: DictConfig, prefix: str = "") -> list[str]:
    """The names of all options, as a user types them."""
    names = []
    for key in map(str, config):
        names.append(f"{prefix}{key}")
        if (
            not OmegaConf.is_missing(config, key)
            and not OmegaConf.is_interpolation(config, key)
            and OmegaConf.is_dict(config[key])
        ):
            names += _options(config[key], f"{prefix}{key}.")
    return names
