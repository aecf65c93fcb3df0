"""Puts errors of the composition into one sentence each, with the options and choices that there are instead."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, InterpolationResolutionError

from enat.files import exists
from experiments.runtime.options import CONF

ALL = "`python run.py --cfg job` prints all options"
REFERENCE_ERRORS = (InterpolationResolutionError, GrammarParseError)  # of `${NAME}`
PACKAGES = {  # that bring choices of Hydra's own groups
    "joblib": "pip install -e '.[sweeps]'",
    "optuna": "pip install -e '.[sweeps]'",
    "submitit_local": "pip install -e '.[slurm]'",
    "submitit_slurm": "pip install -e '.[slurm]'",
}


def explain_option(error: BaseException, arguments: Sequence[str]) -> str:
    """Puts an error of Hydra or OmegaConf into one sentence, with a suggestion for a misspelt name.

    Args:
        error: of the composition.
        arguments: of the command line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OverrideParseException):
        is_list = str(error.override).partition("=")[2].startswith("[")
        form = "\"NAME=['VALUE','VALUE']\" to quote the items of a list" if is_list else "'NAME=\"VALUE\"' to quote it"
        return f"{error.override}: this is no option with a value; expected NAME=VALUE, or {form}."
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
    if choice := re.search(r"Could not (?:find|load) '([^']+)'", str(error)):  # the latter is one of a list
        return explain_choice(choice[1], next((one for one in arguments if _chooses(one, choice[1])), ""))
    unused = re.match(r"Could not override '([^'@]+)", lines[0])
    if unused and (CONF / unused[1]).is_dir():
        return _explain_group(unused[1], lines)
    if name := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", lines[0]):
        return _explain_name(name[1], arguments)
    return " ".join(lines)


def explain_choice(path: str, option: str = "") -> str:
    """Explains that a group has no YAML file of a name; `option` is how the command line says it, if not GROUP=NAME."""
    group, _, name = path.rpartition("/")
    if option:
        group = _group_of(option)
        name = path.removeprefix(f"{group}/")  # may be in a folder of the group
    option = option or f"{group}={name}"
    if name in PACKAGES and group.startswith("hydra/"):
        return f"{option}: the package of this is not installed; `{PACKAGES[name]}` installs it."
    if group.startswith("net/") and not (CONF / group).is_dir():  # the networks of the ablations
        *others, last = sorted(folder.name for folder in (CONF / "net").iterdir() if folder.is_dir())
        name = group.removeprefix("net/")
        return f"experiment={name}: the ablations have no networks for it; expected {', '.join(others)} or {last}."
    files = (file.relative_to(CONF / group) for file in (CONF / group).rglob("*.yaml"))
    choices = sorted(str(file.with_suffix("")) for file in files)
    if not choices:  # of a group of Hydra itself
        return f"{option}: there is no such choice; `python run.py --hydra-help` is on Hydra's own groups."
    similar = difflib.get_close_matches(name, choices, 1)
    hint = f"did you mean {similar[0]}? There " if similar else ""
    return f"{option}: there is no such choice; {hint}{'are' if hint else 'there are'} {', '.join(choices)}."


def _group_of(option: str) -> str:
    """Returns the group of an option that makes a choice: the folder of its YAML files in `conf`."""
    return option.partition("=")[0].partition("@")[0].lstrip("+")


def _chooses(option: str, path: str) -> bool:
    """Says whether an option makes a choice, which is given as the path of its YAML file in `conf`."""
    return f"{_group_of(option)}/{option.partition('=')[2]}" == path


def _explain_group(group: str, lines: Sequence[str]) -> str:
    """Explains that a group is not chosen by its name alone, or that these choices do not use it at all.

    Args:
        group: a folder of YAML files.
        lines: of the error of Hydra, which name the places where this composition uses the group, and the choice.
    """
    given, _, choice = lines[-1].rpartition(" +")[2].partition("=")  # its last words are "use +GROUP=CHOICE"
    places = re.findall(r"[\w/]+@[\w.]+", lines[1]) if len(lines) > 2 else []
    option = f"{given}={choice}"
    if not exists(CONF / group / f"{choice}.yaml"):
        unknown = explain_choice(f"{group}/{choice}", option)
        return f"{unknown[:-1]}; expected {' or '.join(f'{place}=CHOICE' for place in places)}." if places else unknown
    if places:
        return f"{option}: this group is chosen by {' or '.join(f'{place}={choice}' for place in places)}."
    if (CONF / group / f"{choice}.yaml").read_text().startswith("# @package _global_"):
        return f"{option}: expected +{group}={choice}, which adds a choice of this group."
    hosts = _hosts_of(group)
    expected = [f"{place}={choice} beside {' or '.join(others)}" for place, others in hosts.items()]
    while "/" in group and not expected:  # a folder in that of another group
        group, _, folder = group.rpartition("/")
        choice = f"{folder}/{choice}"
        expected = [f"{place}={choice}" for place in _places_of(group, [])]
    added = re.compile(rf"\+{group}@[\w.]+(?==)")  # of groups that are only added, their YAML files say where
    texts = "".join(file.read_text() for file in sorted((CONF / group).glob("*.yaml")))
    expected += [f"{place}={choice}" for place in dict.fromkeys(added.findall(texts))]
    expected = expected or [f"+{place}={choice}" for place in _places_of(group, [])]  # files of weights have no groups
    return f"{option}: nothing here uses this group by that name; expected {', or '.join(expected)}."


def _hosts_of(group: str) -> dict[str, list[str]]:
    """Returns the options that choose from a group in the compositions with other choices, and those choices."""
    hosts: dict[str, list[str]] = {}
    usual = _groups([])
    for file in sorted(CONF.glob("*/*.yaml")):
        host = f"{file.parent.name}={file.stem}"
        if file.parent.name in usual and re.search(rf"^  - /{group}[@:]", file.read_text(), re.MULTILINE):
            for place in _places_of(group, [host]):
                hosts.setdefault(place, []).append(host)
    return hosts


def _places_of(group: str, choices: Sequence[str]) -> list[str]:
    """Returns the options that choose from a group in the composition with some choices."""
    return [place for place in _groups(choices) if place.partition("@")[0] == group]


def _groups(choices: Sequence[str]) -> Mapping[str, str]:
    """Returns the choice of each group in the composition with some choices; groups are named as on a command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", list(choices), return_hydra_config=True)
    return cast(Mapping[str, str], composed.hydra.runtime.choices)


def _explain_name(name: str, arguments: Sequence[str]) -> str:
    """Explains that the composed configuration has no option of a name."""
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for option, value in given.items():
        if value == "null" and name.startswith(f"{option}."):
            return f"{name}: {option}=null leaves it out with all of its options; expected one or the other."
    # The choices that the command line makes decide which options there are.
    usual = _groups([])
    files = {group: CONF / group.partition("@")[0] / f"{choice}.yaml" for group, choice in given.items()}
    choices = [f"{group}={given[group]}" for group, file in files.items() if group in usual and file.is_file()]
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
