"""Knows the options of the YAML files: suggests one for a misspelt name, prints those of a task, quotes values."""

import difflib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from enat.errors import InputError
from enat.files import exists

CONF = Path(__file__).parents[2] / "conf"
PATHS = {"output", "name", "weights", "images", "labels", "path", "shards", "runs", "golden", "folder"}
PATHS |= {"image", "other", "mask", "study", "save_dir", "default_root_dir"}
LAST = Path("checkpoints") / "last.ckpt"  # of a run
MULTIRUN = {"-m", "--multirun"}
ALL = "`python run.py --cfg job` prints all options"
REFERENCE_ERRORS = (InterpolationResolutionError, GrammarParseError)  # of `${NAME}`
PACKAGES = {  # that bring choices of Hydra's own groups
    "joblib": "pip install -e '.[sweeps]'",
    "optuna": "pip install -e '.[sweeps]'",
    "submitit_local": "pip install -e '.[slurm]'",
    "submitit_slurm": "pip install -e '.[slurm]'",
}


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


def explain_option(error: BaseException, arguments: Sequence[str]) -> str:
    """Puts an error of Hydra or OmegaConf into one sentence, with a suggestion for a misspelt name.

    Args:
        error: of the composition.
        arguments: of the command line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: this is no option with a value; expected NAME=VALUE, or 'NAME=\"VALUE\"' to quote it."
        )
    absent = re.match(r"(?:Interpolation key|Key) '([^'.]+)", lines[0])
    if absent and any(re.split(r"[=.]", argument)[0] == f"~{absent[1]}" for argument in arguments):
        return f"~{absent[1]}: other options need it; expected {absent[1]}=VALUE in its place."
    referring = [argument for argument in arguments if "${" in argument]
    reference = next((one for one in (error, error.__cause__) if isinstance(one, REFERENCE_ERRORS)), None)
    if referring and reference is not None:
        reason = str(reference).strip().splitlines()[0].rstrip(".")
        return (
            f"{referring[0]}: {reason}; ${{NAME}} stands for the value of the option NAME, so that no "
            "path can have ${ in it: rename such a file or folder."
        )
    if lacking := re.search(r"Interpolation key '([^']+)' not found\s+full_key: (\S+)", str(error)):
        return (
            f"{lacking[2]}: takes its value from {lacking[1]}, which these choices lack; expected another "
            f"{lacking[1].partition('.')[0]}=CHOICE, or {lacking[2]}=VALUE."
        )
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):
        return f"{missing[1]}: a value is missing; expected {missing[1]}=VALUE."
    if choice := re.search(r"Could not find '([^']+)'", lines[0]):
        return _explain_choice(choice[1])
    if name := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", lines[0]):
        return _explain_name(name[1], arguments)
    return " ".join(lines)


def _explain_choice(path: str) -> str:
    """Explains that a group has no YAML file of a name."""
    group, _, name = path.rpartition("/")
    option = f"{group}={name}"
    if name in PACKAGES and group.startswith("hydra/"):
        return f"{option}: the package of this is not installed; `{PACKAGES[name]}` installs it."
    if group.startswith("net/"):  # the networks of the ablations
        *others, last = sorted(folder.name for folder in (CONF / "net").iterdir() if folder.is_dir())
        name = group.removeprefix("net/")
        return f"experiment={name}: the ablations have no networks for it; expected {', '.join(others)} or {last}."
    choices = choices_of(CONF / group)
    similar = difflib.get_close_matches(name, choices, 1)
    hint = f"did you mean {similar[0]}? There " if similar else ""
    return f"{option}: there is no such choice; {hint}{'are' if hint else 'there are'} {', '.join(choices)}."


def _explain_name(name: str, arguments: Sequence[str]) -> str:
    """Explains that the composed configuration has no option of a name."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for option, value in given.items():
        if value == "null" and name.startswith(f"{option}."):
            return f"{name}: {option}=null leaves it out with all of its options; expected one or the other."
    # Groups that exist, with the choice that the command line makes: they decide which options there are.
    choices = [f"{group}={choice}" for group, choice in given.items() if (CONF / group / f"{choice}.yaml").is_file()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = list(_names(cast(dict[str, Any], OmegaConf.to_container(compose("config", choices))), ""))
    similar = _similar(name, options)
    elsewhere = [place for place in _choices_with(name) if place not in choices]
    hint = f"did you mean {' or '.join(similar)}? " if similar else ""
    if elsewhere:
        hint += f"{' and '.join(elsewhere)} {'has' if len(elsewhere) == 1 else 'have'} it. "
    return f"{name}: there is no such option; {hint or f'{ALL}.'}"


def _similar(name: str, options: Sequence[str]) -> list[str]:
    """Returns up to three options whose name, or the last part of it, is nearly the one given, the nearest first."""
    near = difflib.get_close_matches(name, options, 3, 0.75)
    last = name.rpartition(".")[2]
    scores = {option: _likeness(last, option.rpartition(".")[2]) for option in options}
    others = sorted((option for option, score in scores.items() if score > 0.7), key=lambda option: -scores[option])
    return (near or others)[:3]


def _likeness(name: str, other: str) -> float:
    """Returns how alike two names are, from 0 to 1. A common word counts, as in `num_images` and `images_per_class`."""
    common = {word for word in name.split("_") if len(word) > 4} & set(other.split("_"))
    return max(difflib.SequenceMatcher(None, name, other).ratio(), 0.75 if common else 0.0)


def _choices_with(name: str) -> list[str]:
    """Returns the choices whose YAML file has an option, such as `logger=wandb` for `logger.wandb.offline`."""
    choices = []
    for file in sorted(CONF.glob("*/*.yaml")):
        group = file.parent.name
        text = file.read_text()
        prefix = "" if text.startswith("# @package _global_") else f"{group}."
        if group not in ("experiment", "variant") and name in _names(yaml.safe_load(text) or {}, prefix):
            choices.append(f"{group}={file.stem}")
    return choices


def _names(node: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Yields the names of a node's options, as a user types them."""
    for key, value in node.items():
        if str(key) in ("defaults", "hydra") or str(key).startswith("_"):
            continue
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def help_on(arguments: Sequence[str]) -> str | None:
    """Returns what `task=NAME --help` prints: what the task does, and its own options with a line each.

    `--help` alone lists the tasks. None if the command line does not ask for help.

    Raises:
        InputError: if there is no such task.
    """
    tasks = [argument.removeprefix("task=") for argument in arguments if argument.startswith("task=")]
    if not {"--help", "-h", "help=true"} & set(arguments):
        return None
    if not tasks:
        titles = {path.stem: path.read_text().split("\n")[1][2:] for path in sorted((CONF / "task").glob("*.yaml"))}
        rows_of_tasks = [f"  {name:15} {title}" for name, title in titles.items()]
        heading = "python run.py task=NAME OPTION=VALUE ... (`task=NAME --help` prints the options of a task)"
        return "\n".join([heading, "", *rows_of_tasks, "", f"{ALL}; --hydra-help is on Hydra itself."])
    path = CONF / "task" / f"{tasks[-1]}.yaml"
    if not path.is_file():
        raise InputError(_explain_choice(f"task/{tasks[-1]}"))
    lines = path.read_text().split("\n")
    title = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    rows: list[tuple[str, str]] = []
    for line in lines:
        option = re.match(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if option and option[1] not in ("defaults", "task") and (option[2] or option[3]):
            value = "..." if "${" in option[2] else option[2]  # that follows from other options
            rows.append((f"{option[1]}={value}", option[3] or ""))
        elif rows and re.match(r"\s+#", line):
            rows.append(("", line.strip("# ")))
    width = max((len(name) for name, _ in rows), default=0)
    options = [f"  {name:{width}}  {meaning}".rstrip() for name, meaning in rows]
    heading = "Its options:" if options else "It has no options of its own."
    return "\n".join([*title, "", heading, *options, "", f"{ALL}, also those of network and data."])
