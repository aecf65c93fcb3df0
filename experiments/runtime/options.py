"""Prepares a command line for Hydra: quotes values, and finds the files of runs."""

import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from enat.errors import InputError
from enat.files import exists

CONF = Path(__file__).parents[2] / "conf"
PATHS = {"output", "name", "weights", "images", "labels", "path", "shards", "runs", "golden", "folder"}
PATHS |= {"image", "other", "mask", "study", "save_dir", "default_root_dir"}
LAST = Path("checkpoints") / "last.ckpt"  # of a run
MULTIRUN = {"-m", "--multirun"}


def prepare(arguments: Sequence[str]) -> list[str]:
    """Quotes values that Hydra's grammar can't read, such as paths with spaces or `=`, and expands `~`.

    Paths below the working directory become relative to it.

    For the folder of a run, `weights=DIR` becomes its last checkpoint. Of a multirun, `--cfg` shows a job, for which
    Hydra must not be told of the multirun.

    Raises:
        InputError: for an option that is written with dashes, for SLURM where there is none, and for several values of
            a multirun with `--cfg`.
    """
    shows = any(argument.partition("=")[0] in ("--cfg", "-c", "--info", "-i") for argument in arguments)
    prepared = [_prepare(argument) for argument in arguments]
    if not shows or not MULTIRUN & set(prepared):
        return prepared
    if several := next((argument for argument in prepared if _has_several_values(argument)), None):
        raise InputError(f"{several}: --cfg shows one job; expected one value of {several.partition('=')[0]}.")
    return [argument for argument in prepared if argument not in MULTIRUN]


def choices_of(group: Path) -> list[str]:
    """Returns the choices of a group, which are the YAML files in its folder; none if there is no such group."""
    return sorted(file.stem for file in group.glob("*.yaml"))


def _has_several_values(argument: str) -> bool:
    """Says whether an option has a value for each of several jobs, such as `seed=1,2`."""
    if argument.startswith("-") or "=" not in argument:
        return False
    try:
        return OverridesParser.create().parse_override(argument).is_sweep_override()
    except HydraException:
        return False  # composition says what is wrong with it


def _prepare(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if name.startswith("--") and equals and not name.startswith(("--config", "--package", "--experimental")):
        raise InputError(f"{argument}: options have no dashes; expected {argument.lstrip('-')}.")
    if not equals or name.startswith("-"):
        return argument
    if argument == "hydra/launcher=submitit_slurm" and find_spec("submitit") and shutil.which("srun") is None:
        raise InputError(
            f"{argument}: there is no SLURM here, for srun is not found; expected submitit_local or joblib."
        )
    if name == "weights" and exists(Path(value) / LAST):
        value = str(Path(value) / LAST)
    group = CONF / name.partition("@")[0]
    if value == "null" and group.is_dir():
        choices = ", ".join(choices_of(group))
        parts = f"; {name}.NAME=null leaves out one of them" if name in ("callbacks", "logger") else ""
        raise InputError(f"{argument}: expected one of {choices}{parts}.")
    if name == "output" and (value in ("", "null") or value.startswith(("[", "{"))):
        raise InputError(f"{argument}: expected one folder.")
    if value == "~" or value.startswith("~/"):
        value = str(Path(value).expanduser())
    here = f"{Path.cwd()}/"
    if value.startswith(here) and value != here:  # checkpoints and results are shared, and need not name this machine
        value = value.removeprefix(here)
    try:
        parsed = OverridesParser.create().parse_override(f"{name}={value}")
        is_number = not parsed.is_sweep_override() and isinstance(parsed.value(), int | float)
        is_file = "," in value and exists(value)  # one path, and not several values of a multirun
        if name == "classes" and not parsed.is_sweep_override() and isinstance(parsed.value(), bool | float):
            return f"{name}='{value}'"  # a class that is named true or 1e3; ids are integers
        if (is_number or is_file) and name.rpartition(".")[2] in PATHS:
            return f"{name}='{value}'"  # a folder 2024_01 is no number
    except HydraException:
        if value.startswith(("[", "{", "'", '"')):
            return argument
        quoted = re.sub(r"(\\*)'", r"\1\1\\'", value)  # a backslash counts only before a quote
        return f"{name}='{quoted}'"
    return f"{name}={value}"
