"""Checks Hydra's own settings, which Hydra would otherwise build before a task sees its configuration.

An experiment may come from anybody, and its YAML file can set `hydra.*` too: callbacks, loggers, the commands that a
SLURM job begins with, the environment.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from enat.errors import InputError

BUILT = ("callbacks", "launcher", "sweeper", "job_logging", "hydra_logging")  # nodes that Hydra builds objects of
TABLE = "experiments.runtime.multirun_table.MultirunTable"
# Launchers and sweepers that are installed, by name, and what the sweeper of optuna is built from.
PLUGINS = (
    r"(hydra\._internal\.core_plugins|hydra_plugins\.hydra_(joblib|submitit|optuna)_\w+)(\.\w+)*|optuna\.samplers\.\w+"
)
LOGGING = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "colorlog.ColoredFormatter")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
# Options that hold commands or programs. Only the command line may set them.
COMMANDS = ("setup", "srun_args", "python", "additional_parameters")


def check_hydra(config: DictConfig) -> None:
    """Checks the node `hydra` of a composed configuration.

    Raises:
        InputError: for a setting that would run code of a file.
    """
    hydra = config.hydra
    given = [text.lstrip("+~") for text in hydra.overrides.hydra]
    parts = {name: _resolved(_value(hydra, name)) for name in BUILT}
    for option, target in _targets(parts, "hydra"):
        is_table = option == "hydra.callbacks.table" and target == TABLE
        is_plugin = option.startswith(("hydra.launcher", "hydra.sweeper")) and re.fullmatch(PLUGINS, str(target))
        if not is_table and not is_plugin:
            raise InputError(f"{option}._target_={target}: Hydra may build its own launchers and sweepers only.")
    for name in ("job_logging", "hydra_logging"):
        _check_logging(parts[name], f"hydra.{name}")
    if hydra.job.env_set:
        raise InputError("hydra.job.env_set: a configuration may not set the environment; set it in the shell.")
    for name in COMMANDS:
        option = f"hydra.launcher.{name}"
        if parts["launcher"].get(name) and not any(text.startswith((f"{option}=", f"{option}.")) for text in given):
            raise InputError(f"{option}: a file may not set commands of a job; give it on the command line.")


def _resolved(node: Any) -> Any:
    """Turns a node into plain values, with what its references stand for. Those to values that come later stay."""
    if OmegaConf.is_dict(node):
        return {str(name): _resolved(_value(node, name)) for name in node}
    if OmegaConf.is_list(node):
        return [_resolved(_value(node, number)) for number in range(len(node))]
    return node


def _value(node: Any, name: Any) -> Any:
    try:
        return node[name]
    except OmegaConfBaseException:
        raw: Any = OmegaConf.to_container(node, resolve=False)
        return raw[name]


def _targets(node: Any, option: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the `_target_` of each node that has one."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        if name == "_target_":
            yield option, value
        yield from _targets(value, f"{option}.{name}")


def _check_logging(node: Any, option: str) -> None:
    """Refuses what Python's `logging.config.dictConfig` would import or call, but for `LOGGING` and `STREAMS`."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        place = f"{option}.{name}"
        names_code = name in ("()", "class") and value not in LOGGING
        if names_code or (isinstance(value, str) and "://" in value and value not in STREAMS):
            raise InputError(f"{place}={value}: expected one of {', '.join((*LOGGING, *STREAMS))}.")
        if name == "filename" and not str(value).startswith("${hydra.runtime.output_dir}/"):
            raise InputError(f"{place}={value}: expected a file in ${{hydra.runtime.output_dir}}.")
        _check_logging(value, place)


def check_before_hydra_builds() -> None:
    """Makes Hydra check each configuration that it has composed, those of a multirun's jobs too.

    `ConfigLoaderImpl` is private to Hydra: it has no public place between the composition and the construction of its
    callbacks. With one, this function would use it.
    """
    if hasattr(ConfigLoaderImpl.load_configuration, "__wrapped__"):
        return
    compose = ConfigLoaderImpl.load_configuration

    @functools.wraps(compose)
    def compose_and_check(self: ConfigLoaderImpl, *arguments: Any, **options: Any) -> DictConfig:
        config = compose(self, *arguments, **options)
        check_hydra(config)
        return config

    ConfigLoaderImpl.load_configuration = compose_and_check  # type: ignore[method-assign]
