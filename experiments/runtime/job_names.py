"""Names the folder of a job by its options, so that no two jobs of a command share a folder."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig

from data.credentials import without_credentials
from experiments.runtime.multirun import fixed_options, is_job

MAX_NAME = 150  # bytes of a folder's name
_command: list[str] = []  # the arguments of the command, which the process of a job may not have in `sys.argv`


def remember_command(arguments: Sequence[str]) -> None:
    """Keeps the arguments of the command that this process, or the process of the multirun, was started with."""
    _command[:] = arguments


def job_name(*left_out: str) -> str:
    """Returns the name of a job's folder: its options, but for those named and those that change no result.

    The shards are among its options only if the jobs of the command have several.
    """
    if len(_values_in_command().get("data.shards", [])) < 2:
        left_out = (*left_out, "data.shards")
    return short(options(*left_out)) or "job"


def options(*left_out: str) -> list[str]:
    """Returns the overrides of this command that change its results, in the order of their names.

    A value that has the same name as another value of the command gets some digits of its hash.
    """
    overrides = list(HydraConfig.get().overrides.task)
    varied = varied_options()  # such as `trainer`, which changes no result, but would otherwise give two jobs one name
    given = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    chosen = {name: value for name, value in given.items() if name in varied} | _chosen(overrides)
    of_command = _values_in_command() if is_job() else {}
    shown = {name: _shown(name, value, of_command) for name, value in chosen.items() if name not in left_out}
    return [f"{name}={value}" for name, value in sorted(shown.items()) if value != ""]


def config_flags(hydra: DictConfig | HydraConf) -> list[str]:
    """Returns the flag with which another command finds the same YAML files of the user, `--config-dir DIR`, if any."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return [text for folder in folders for text in ("--config-dir", folder)]


def varied_options() -> set[str]:
    """Returns the names of the options that differ between the jobs of this command; none for one that has no jobs."""
    return {name for name, values in _values_in_command().items() if len(values) > 1} if is_job() else set()


def options_of_multirun(hydra: DictConfig, *left_out: str) -> list[str]:
    """Returns the options of a multirun that change its results, in the order of their names.

    Those that vary are there by their names only, so that the same folder takes jobs with further values of them.

    Args:
        hydra: Hydra's settings of the whole multirun.
        left_out: names of options that are left out unless they vary.
    """
    params = hydra.sweeper.get("params") or {}
    texts = [*(f"{name}={value}" for name, value in params.items()), *hydra.overrides.task]
    overrides = OverridesParser.create().parse_overrides(texts)
    varies = {one.get_key_element().lstrip("+"): one.is_sweep_override() for one in overrides}  # the last one counts
    varied = {name for name, several in varies.items() if several}
    fixed = {name: _name_of(name, value) for name, value in _chosen(texts).items() if name not in {*left_out, *varied}}
    return sorted([*varied, *(f"{name}={text}" for name, text in fixed.items() if text != "")])


def _chosen(overrides: list[str]) -> dict[str, str]:
    """Returns the overrides that decide what a job computes, with its weights, as values by name."""
    given = dict(text.lstrip("+").partition("=")[::2] for text in overrides)
    weights = {"weights": given["weights"]} if "weights" in given else {}
    return fixed_options(overrides) | weights


def short(options: Sequence[str]) -> str:
    """Joins options to a name that is safe for a file system, and not too long for it."""
    text = _safe(",".join(options))
    if len(text.encode()) > MAX_NAME:
        begin = text.encode()[: MAX_NAME - 9].decode(errors="ignore")
        text = f"{begin}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return text


def _safe(text: str) -> str:
    """Returns a text with the characters only that are safe in the name of a folder."""
    return re.sub(r"[^\w.,=+@{}:-]", "", text.replace("/", "_"))


def _shown(name: str, value: str, of_command: Mapping[str, Sequence[str]]) -> str:
    """Returns how the value of an option stands in a name, which tells it from the other values in the command."""
    text = _name_of(name, value)
    rivals = [other for other in of_command.get(name, []) if other != value]
    if _safe(text) in [_safe(_name_of(name, other)) for other in rivals]:
        text = f"{text}-{hashlib.sha256(without_credentials(value).encode()).hexdigest()[:6]}"
    return text


def _name_of(name: str, value: str) -> str:
    """Returns the value of an option, or of the path of a checkpoint the part that tells most."""
    if name != "weights":
        return str(without_credentials(value))
    path = Path(value.strip("'"))
    if is_job():  # of several checkpoints, perhaps, which may all be called last.ckpt
        return f"{path.parents[1].name}_{path.stem}" if len(path.parents) > 2 else path.stem
    return path.stem if path.stem != "last" else ""


def _values_in_command() -> dict[str, list[str]]:
    """Returns all values that an option has in the jobs of this command, by the name of the option.

    They are those of the sweep's file and those on the command line, which replace them.
    """
    of_file = HydraConfig.get().sweeper.get("params") or {}
    arguments = [text for text in _command if "=" in text and not text.startswith("-")]
    texts = [*(f"{name}={value}" for name, value in of_file.items()), *arguments]
    return {
        override.get_key_element().lstrip("+"): list(override.sweep_string_iterator())
        for override in OverridesParser.create().parse_overrides(texts)
        if override.is_discrete_sweep() and not isinstance(override.value(), Glob)
    }
