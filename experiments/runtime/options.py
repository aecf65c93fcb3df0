"""Prepares a command line for Hydra: quotes values, and finds the files of runs."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from enat.errors import InputError
from enat.files import exists
from experiments.runtime.quoting import LISTS, QUOTES, parsed, quote, readable, split

CONF = Path(__file__).parents[2] / "conf"
PATHS = {"output", "name", "weights", "images", "labels", "path", "shards", "runs", "golden", "folder"}
PATHS |= {"image", "other", "mask", "study", "save_dir", "default_root_dir"}
SEVERAL = {"runs", "image"}  # of these, options that take a list, too
LAST = Path("checkpoints") / "last.ckpt"  # of a run
BEGINNINGS = (*LISTS, *QUOTES)  # of lists and quoted strings
MULTIRUN = {"-m", "--multirun"}
STUDIES = ("+sweep=", "hydra.mode=MULTIRUN")  # options that make a command a multirun, too
FLAGS = ("--cfg", "--config", "--package", "--info", "--experimental")  # beginnings of flags of Hydra
MAYBE_WITH_VALUE = ("--info", "-i")
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")


def prepare(arguments: Sequence[str]) -> list[str]:
    """Quotes values that Hydra's grammar can't read, such as paths with spaces or `=`, and expands `~`.

    Paths below the working directory become relative to it.

    For the folder of a run, `weights=DIR` becomes its last checkpoint. Each of several values of a multirun is prepared
    as one alone would be. With `--cfg`, a multirun shows one job, and Hydra is not told that it is a multirun.

    Raises:
        InputError: for an option that is written with dashes, for SLURM where there is none, and for several values of
            a multirun with `--cfg`.
    """
    shows = any(argument.partition("=")[0] in ("--cfg", "-c", "--info", "-i") for argument in arguments)
    is_multirun = any(argument in MULTIRUN or argument.startswith(STUDIES) for argument in arguments)
    prepared = [_prepare(argument, is_multirun) for argument in arguments]
    if not shows or not is_multirun:
        return prepared
    if several := next((argument for argument in prepared if _has_several_values(argument)), None):
        raise InputError(f"{several}: --cfg shows one job; expected one value of {several.partition('=')[0]}.")
    return [argument for argument in prepared if argument not in MULTIRUN]


def options_first(arguments: Sequence[str]) -> list[str]:
    """Puts options in front of the flags of Hydra, which takes no further options after a flag between options."""
    flags: list[str] = []
    options: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_value = before in WITH_VALUE or (before in MAYBE_WITH_VALUE and "=" not in argument)
        (flags if argument.startswith("-") or is_value else options).append(argument)
    return [*options, *flags]


def choices_of(group: Path) -> list[str]:
    """Returns the choices of a group, which are the YAML files in its folder; none if there is no such group."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def _has_several_values(argument: str) -> bool:
    """Says whether an option has a value for each of several jobs, such as `seed=1,2`."""
    if argument.startswith("-") or "=" not in argument:
        return False
    override = parsed(argument.partition("=")[2])
    return override is not None and override.is_sweep_override()


def _prepare(argument: str, is_multirun: bool) -> str:
    name, equals, value = argument.partition("=")
    if name.startswith("--") and equals and not name.startswith(FLAGS):
        raise InputError(f"{argument}: options have no dashes; expected {argument.lstrip('-')}.")
    if not equals or name.startswith("-"):
        return argument
    if argument == "hydra/launcher=submitit_slurm" and find_spec("submitit") and shutil.which("srun") is None:
        raise InputError(
            f"{argument}: there is no SLURM here, for srun is not found; expected submitit_local or joblib."
        )
    if name == "output" and (value in ("", "null") or value.startswith(("[", "{"))):
        raise InputError(f"{argument}: expected one folder.")
    values = [value]
    if (is_multirun or value.startswith(BEGINNINGS)) and not ("," in value and exists(value)):
        values = split(value) or [value]
    for one in values:
        _refuse_no_choice(name, one)
    prepared = [_prepare_value(name, one) for one in values]
    return argument if prepared == values else f"{name}={','.join(prepared)}"


def _refuse_no_choice(name: str, value: str) -> None:
    """Refuses a value of a group that can be no choice, such as null or 3, which Hydra does not expect."""
    group = name.partition("@")[0].lstrip("+")
    override = parsed(value)
    if not group or not (CONF / group).is_dir() or override is None or override.is_sweep_override():
        return
    if not isinstance(override.value(), str | list):
        choices = ", ".join(choices_of(CONF / group))
        parts = f"; {name}.NAME=null leaves out one of them" if name in ("callbacks", "logger") else ""
        raise InputError(f"{name}={value}: expected one of {choices}{parts}.")


def _prepare_value(name: str, value: str) -> str:
    """Prepares a value of an option, of which a multirun has several."""
    override = parsed(value)
    if override is not None and value.startswith(QUOTES):  # as it is, but for the folder of a run
        plain = str(override.value())
        return value if _weights(name, plain) == plain else quote(_weights(name, plain))
    if name in SEVERAL and value.startswith("[") and value.endswith("]"):
        items = split(value[1:-1]) or []
        prepared = [_prepare_value(name, item) for item in items]
        value = value if prepared == items else f"[{','.join(prepared)}]"
    value = _weights(name, value)
    if value == "~" or value.startswith("~/"):
        value = str(Path(value).expanduser())
    here = f"{Path.cwd()}/"
    below = value.removeprefix(here).lstrip("/")
    if value.startswith(here) and below:  # checkpoints and results are shared, and need not name this machine
        value = below
    override = parsed(value)
    if override is None:
        return readable(value) or value
    is_number = not override.is_sweep_override() and isinstance(override.value(), int | float)
    is_file = "," in value and exists(value)  # one path, and not several values of a multirun
    if name == "classes" and not override.is_sweep_override() and isinstance(override.value(), bool | float):
        return quote(value)  # a class that is named true or 1e3; ids are integers
    if (is_number or is_file) and name.rpartition(".")[2] in PATHS:
        return quote(value)  # a folder 2024_01 is no number
    return value


def _weights(name: str, value: str) -> str:
    """Returns the last checkpoint for a value of `weights` that is the folder of a run; other values as they are."""
    return str(Path(value) / LAST) if name == "weights" and exists(Path(value) / LAST) else value
