"""Checks Hydra's own settings, which Hydra would otherwise build before a task sees its configuration.

An experiment may come from anybody, and its YAML file can set `hydra.*` too: callbacks, loggers, the commands that a
SLURM job begins with, the environment. What has been checked is kept as plain values, so that a reference can't stand
for something else later on, when Hydra knows the folder of the run, say.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from enat.errors import InputError, printable
from enat.files import part_of

BUILT = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")  # nodes that Hydra builds objects of
SET_BY_HYDRA = ("job", "runtime", "overrides")  # nodes with values that Hydra sets by itself
TABLE = "experiments.runtime.multirun_table.MultirunTable"
# What each option may name: launchers and sweepers that are installed, and the samplers of optuna.
PLUGINS = {
    r"hydra\.callbacks\.table": re.escape(TABLE),
    r"hydra\.launcher": (
        r"hydra\._internal\.core_plugins\.basic_launcher\.BasicLauncher|"
        r"hydra_plugins\.hydra_joblib_launcher\.joblib_launcher\.JoblibLauncher|"
        r"hydra_plugins\.hydra_submitit_launcher\.submitit_launcher\.(Slurm|Local)Launcher"
    ),
    r"hydra\.sweeper": (
        r"hydra\._internal\.core_plugins\.basic_sweeper\.BasicSweeper|"
        r"hydra_plugins\.hydra_optuna_sweeper\.optuna_sweeper\.OptunaSweeper"
    ),
    r"hydra\.sweeper\.sampler(\.\w+)*": r"optuna\.samplers\.[A-Z]\w*Sampler",
}
LOGGING = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "colorlog.ColoredFormatter")
STYLES = ("%", "$")  # of the format of a line
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
RUN_FOLDER = "${hydra.runtime.output_dir}"
LOG_FILE = rf"{re.escape(RUN_FOLDER)}/(\w|\$\{{hydra\.job\.name\}})[\w.-]*"
# Options that hold commands, programs or functions. Only the command line may set them.
COMMANDS = (
    *(f"hydra.launcher.{name}" for name in ("setup", "srun_args", "python", "additional_parameters")),
    "hydra.sweeper.custom_search_space",
)


def check_hydra(config: DictConfig, arguments: Sequence[str]) -> None:
    """Checks the node `hydra` of a composed configuration, and puts plain values in the place of its references.

    Args:
        config: the whole configuration.
        arguments: of the command line.

    Raises:
        InputError: for a setting that would run code of a file.
    """
    _check_sections(config)
    hydra = config.hydra
    parts = {name: _resolved(hydra, name, f"hydra.{name}") for name in BUILT}
    for option, target in _targets(parts, "hydra"):
        if not any(re.fullmatch(name, option) and re.fullmatch(PLUGINS[name], str(target)) for name in PLUGINS):
            raise InputError(f"{option}._target_={target}: Hydra may build its own launchers and sweepers only.")
    for name in ("job_logging", "hydra_logging"):
        _check_logging(parts[name], f"hydra.{name}")
    _check_launcher(parts["launcher"])
    for name in part_of(parts, "sweeper.params") or {}:
        if str(name).lstrip("+~").startswith("hydra"):
            raise InputError(f"hydra.sweeper.params: {name} can't be varied by a file; expected options of the task.")
    _check_commands(hydra, arguments)
    with read_write(hydra), open_dict(hydra):
        hydra.update(parts)


def check_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Checks that a configuration says of its command line what was given, since jobs are composed of that.

    Args:
        config: the whole configuration.
        overrides: the options that it was composed with.

    Raises:
        InputError: if a file has added some.
    """
    said = OmegaConf.to_container(config, resolve=False)["hydra"]  # type: ignore[call-overload,index]
    said = said["overrides"] if isinstance(said, dict) else None
    if not isinstance(said, dict) or not all(isinstance(said[name], list) for name in ("hydra", "task")):
        said = {"hydra": [], "task": [None]}
    if sorted(map(str, said["hydra"] + said["task"])) != sorted(overrides):
        raise InputError("hydra.overrides: a file may not say what stands on the command line.")


def check_texts(node: Any, option: str = "") -> None:
    """Refuses control characters in the names and values of a configuration, of which many are printed.

    Raises:
        InputError: naming the option.
    """
    for name, value in _items(node):
        place = f"{option}.{name}" if option else str(name)
        for text in (name, value):
            if isinstance(text, str) and printable(text.replace("\t", " ")) != text.replace("\t", " "):
                raise InputError(f"{place}={value}: expected a text without control characters.")
        check_texts(value, place)


def _check_sections(config: DictConfig) -> None:
    """Refuses references in place of whole sections, and values that Hydra sets by itself."""
    raw: Any = OmegaConf.to_container(config, resolve=False)
    for option, node in [("hydra", raw["hydra"]), *((f"hydra.{name}", raw["hydra"][name]) for name in SET_BY_HYDRA)]:
        if not isinstance(node, dict):
            raise InputError(f"{option}={node}: expected settings, and no reference to others.")
    if raw["hydra"]["job"]["env_set"]:
        raise InputError("hydra.job.env_set: a configuration may not set the environment; set it in the shell.")
    name = raw["hydra"]["job"].get("name", "")
    if name.startswith(".") or "/" in name or "${" in name:
        raise InputError(f"hydra.job.name={name}: expected a name without / and references, since log files have it.")
    if raw["hydra"]["job"].get("chdir"):
        raise InputError("hydra.job.chdir: relative paths in options would be those of other files; expected null.")
    if raw["hydra"]["runtime"]["output_dir"] != "???":
        raise InputError("hydra.runtime.output_dir: Hydra sets this by itself; expected output=DIR.")


def _resolved(parent: Any, name: Any, option: str) -> Any:
    """Returns a part of a node as plain values, with what its references stand for.

    Raises:
        InputError: for a reference that stands for nothing yet, or for another one.
    """
    try:
        node = parent[name]
    except MissingMandatoryValue:
        return "???"
    except OmegaConfBaseException as error:
        raw: Any = OmegaConf.to_container(parent, resolve=False)
        if name == "filename":
            return raw[name]  # Hydra makes the folder of the run later
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"{option}={raw[name]}: {reason}; expected what is known before the run starts.") from error
    if OmegaConf.is_dict(node):
        if any("${" in str(key) for key in node):
            raise InputError(f"{option}: the name of an option may not have ${{ in it.")
        return {key: _resolved(node, key, f"{option}.{key}") for key in node}
    if OmegaConf.is_list(node):
        return [_resolved(node, number, f"{option}.{number}") for number in range(len(node))]
    if isinstance(node, str) and "${" in node:
        raise InputError(f"{option}={node}: expected a value, and no text of a reference.")
    return node


def _targets(node: Any, option: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the `_target_` of each node that has one."""
    for name, value in _items(node):
        if name == "_target_":
            yield option, value
        yield from _targets(value, f"{option}.{name}")


def _items(node: Any) -> list[tuple[Any, Any]]:
    """Returns the parts of a node with their names or numbers; none of a plain value."""
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _check_logging(node: Any, option: str) -> None:
    """Refuses what Python's `logging.config.dictConfig` would import, call, or write elsewhere."""
    for name, value in _items(node):
        place = f"{option}.{name}"
        names_code = name in ("()", "class") and value not in LOGGING
        if name == "style" and value not in STYLES:
            raise InputError(f"{place}={value}: expected %, since the fields of other styles can reach any object.")
        if names_code or (isinstance(value, str) and "://" in value and value not in STREAMS):
            raise InputError(f"{place}={value}: expected one of {', '.join((*LOGGING, *STREAMS))}.")
        if name == ".":
            raise InputError(f"{place}={value}: a configuration may not set attributes of a handler.")
        if name == "filename" and not re.fullmatch(LOG_FILE, str(value)):
            raise InputError(f"{place}={value}: expected the name of a file in {RUN_FOLDER}.")
        _check_logging(value, place)


def _check_launcher(node: Any, option: str = "hydra.launcher") -> None:
    """Refuses texts of several lines, which would be lines of a SLURM script, and formulas that joblib calculates."""
    for name, value in _items(node):
        place = f"{option}.{name}"
        for text in (name, value):
            if isinstance(text, str) and not text.isprintable():
                raise InputError(f"{place}: expected one line of plain characters.")
        if name == "pre_dispatch" and not re.fullmatch(r"all|\d+|(\d+ ?\* ?)?n_jobs", str(value)):
            raise InputError(f"{place}={value}: expected a number, all, or a multiple of n_jobs such as 2*n_jobs.")
        _check_launcher(value, place)


def _check_commands(hydra: DictConfig, arguments: Sequence[str]) -> None:
    """Refuses commands and functions that are not, word for word, what the command line says."""
    given = OmegaConf.create()
    options = [text for text in arguments if re.match(r"\+{0,2}hydra\.", text)]
    for override in OverridesParser.create().parse_overrides(options):
        if not override.is_sweep_override():
            OmegaConf.update(given, override.key_or_group, override.value(), merge=True, force_add=True)
    said = OmegaConf.to_container(given, resolve=False)
    for option in COMMANDS:
        _, part, name = option.split(".")
        value = part_of(OmegaConf.to_container(hydra[part], resolve=False) if hydra[part] else None, name)
        if value and value != part_of(said, option):
            raise InputError(f"{option}: a file may not set commands of a job; give it on the command line.")
