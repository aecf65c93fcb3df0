"""Runs a task, keeps its results, and says what is wrong with bad input in one sentence."""

import difflib
import inspect
import json
import os
import shutil
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypedDict

import lightning as L
from annotated_types import Interval
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
from experiments.runtime.multirun import JobError, is_job, launcher_starts_processes, objectives, run_job
from experiments.runtime.type_hints import check_value

UNFINISHED = "unfinished"  # in a task's output: work that the same command goes on with, until there are results


class CommonOptions(TypedDict):
    """The options that every task has."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    resume: bool
    objective: list[str] | None
    debug: bool


def _run_folder(folder: str, resume: bool) -> str:
    """Returns the folder of a run: the one asked for or, to start anew, the first of FOLDER, FOLDER-2 ... that is free.

    Raises:
        InputError: if several processes would have to agree on a free folder.
    """
    if not resume and processes()[1] > 1:
        raise InputError("resume=false: expected output=NEWFOLDER with several processes, so that they agree on it.")
    number = 1
    free = folder
    while not resume and Path(free).exists():
        number += 1
        free = f"{folder}-{number}"
    return free


def _sweep_of(setting: str) -> str | None:
    """Returns the name of a multirun's folder (`group`) or the number of the job (`job`); None outside a multirun."""
    if not is_job():
        return None
    return Path(HydraConfig.get().sweep.dir).name if setting == "group" else f"{HydraConfig.get().job.num}"


warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch 2.14
warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # given on CPUs, where nothing uses it
OmegaConf.register_new_resolver("run_folder", _run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_of", _sweep_of, replace=True)


def run_task(config: DictConfig) -> float | tuple[float, ...] | None:
    """Runs `config.task` in Hydra's output folder; prints and writes its results.

    Returns:
        The results that `config.objective` names, for a sweeper; None on ranks other than the first.

    Raises:
        SystemExit: with status 1 if the task's results say that it did not pass.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    output = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    config.output = str(output)
    if not is_job():
        results = _results(config, output)
        if not results.get("passed", True):
            raise SystemExit(1)
    else:
        if config.objective and processes()[1] > 1 and not launcher_starts_processes():
            raise InputError(
                "objective: each process of torchrun or srun would ask the sweeper for its own settings; expected "
                "one process, or a launcher that starts the processes of each job, such as "
                "hydra/launcher=submitit_slurm."
            )
        results = run_job(
            output,
            resume=config.resume,
            weights=config.get("weights"),
            same_weights="study" in config,
            work=lambda: _results(config, output),
            explain=lambda error: explain(error)[0],
        )
    return rank_zero_only(objectives)(config.objective, results)


def check_options(config: DictConfig) -> None:
    """Checks the options that every task has, and all options of the task.

    Raises:
        InputError: for the first option that is wrong.
    """
    for option, hint in typing.get_type_hints(CommonOptions, include_extras=True).items():
        check_value(option, config[option], hint)
    check_config(config, "task")


def _results(config: DictConfig, output: Path) -> dict[str, Any]:
    """Checks the options, runs the task, and writes and prints its results."""
    check_options(config)
    L.seed_everything(config.seed, verbose=False)
    extra = {}
    if "settings" in inspect.signature(get_object(config.task._target_)).parameters:
        # `instantiate` would turn a dictionary into nodes of a configuration; it passes this view on as it is.
        extra["settings"] = MappingProxyType(_plain(config))
    task = instantiate(config.task, _partial_=True, **extra)  # only builds the arguments, so that its errors stay apart
    results: dict[str, Any] = task()
    rank_zero_only(_finish)(output, results)
    return results


def _finish(output: Path, results: dict[str, Any]) -> None:
    write_atomically(output / "results.json", json.dumps(results, indent=1).encode())
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    print(f"Results: {output / 'results.json'}")
    print(json.dumps(results))


def _plain(config: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items()}


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
    except (Exception, KeyboardInterrupt) as error:
        sentence, status = explain(error)
        if sentence is None or (inside and isinstance(error, JobError)):
            raise
        print(f"Error: {' '.join(sentence.split())}", file=sys.stderr)
        raise SystemExit(status) from error


def explain(error: BaseException) -> tuple[str | None, int]:
    """Puts an error into one sentence, None for an error that is not the user's; also returns the exit status."""
    if isinstance(error, InputError | JobError):
        return str(error), 1
    if isinstance(error, InstantiationException):
        # A library's constructor that refuses a value is a matter of the user's input too.
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
    """Returns the first error of one of these kinds among the causes of an error."""
    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, kinds):
        cause = cause.__cause__ or cause.__context__
    return cause


def _explain_option(error: BaseException) -> str:
    """Puts an error of Hydra or OmegaConf into one sentence, with a suggestion for a misspelt option."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines[0].startswith("Could not override"):
        return " ".join(lines)
    name = lines[0].split("'")[1] if isinstance(error, ConfigCompositionException) and "'" in lines[0] else ""
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        options = _options(compose("config"))
    by_last_part = {option.rpartition(".")[2]: option for option in options}
    similar = difflib.get_close_matches(name, options, 3, 0.75) or [
        by_last_part[match] for match in difflib.get_close_matches(name.rpartition(".")[2], list(by_last_part), 3, 0.75)
    ]
    hint = f"did you mean {' or '.join(similar)}?" if similar else "`python run.py --cfg job` prints all options."
    return f"{name}: there is no such option; {hint}"


def _options(config: DictConfig, prefix: str = "") -> list[str]:
    """Lists the names of all options, as a user types them."""
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
