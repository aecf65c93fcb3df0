"""Gives Hydra a loader of configurations that checks each one, those of a multirun's jobs too."""

import sys
from typing import IO, Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from enat.errors import InputError
from enat.files import MAX_SETTINGS, values_of
from experiments.runtime.hydra_settings import check_hydra, check_overrides, check_texts
from experiments.runtime.hydra_writes import hide_credentials
from experiments.runtime.job_names import remember_command
from experiments.runtime.places import refuse_output_among_images

load = OmegaConf.load


def load_bounded(file: IO[Any]) -> DictConfig | ListConfig:
    """Reads an open YAML file.

    Raises:
        InputError: for one that is no YAML, nests too deep, or whose aliases hold themselves, or one another so often
            that copying them has no end.
    """
    try:
        values_of(_texts_of(file), file.name, MAX_SETTINGS)
        file.seek(0)
        return load(file)
    except (InputError, OmegaConfBaseException):
        raise
    except RecursionError as error:
        raise InputError(f"{file.name}: it nests too deep.") from error
    except Exception as error:  # of a type that does not fit its value, PyYAML raises many
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{file.name}: this is no YAML that can be read ({reason}).") from error


def _texts_of(file: IO[Any]) -> Any:
    """Returns what a YAML file says, with texts for all values.

    Raises:
        InputError: if an alias in it holds itself.
    """
    try:
        return yaml.load(file, Loader=yaml.BaseLoader)
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"{file.name}: an alias in it holds itself.") from error


class CheckedLoader(ConfigLoaderImpl):
    """Composes configurations and checks them before Hydra builds anything of them.

    A launcher sends it to the processes of its jobs, so that these check theirs as well.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.arguments = sys.argv[1:]  # of the command, which the process of a job may not know

    def load_configuration(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *arguments: Any, **options: Any
    ) -> DictConfig:
        """Composes a configuration.

        Raises:
            InputError: for a setting of Hydra's own that would run code of a file, for a file without an end, for
                control characters, and for an output folder among the images that are read.
        """
        hide_credentials()  # in the process of a job as well
        remember_command(self.arguments)
        OmegaConf.load = load_bounded  # type: ignore[assignment,method-assign]
        try:
            config = super().load_configuration(config_name, overrides, run_mode, *arguments, **options)
        except UnicodeDecodeError as error:  # Hydra does not say of which one
            raise InputError("a file of the configuration is no text in UTF-8.") from error
        check_texts(OmegaConf.to_container(config, resolve=False))
        check_overrides(config, overrides)
        check_hydra(config, self.arguments)
        refuse_output_among_images(config)
        return config

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Composes the configuration of a job, whose folder is in the folder of the multirun.

        In a study, the folder of the study is that of the job's experiment or checkpoint.
        """
        config = super().load_sweep_config(master_config, sweep_overrides)
        if "study" not in master_config:
            with read_write(config.hydra.sweep):
                config.hydra.sweep.dir = master_config.hydra.sweep.dir
        return config


def check_before_hydra_builds() -> None:
    """Makes Hydra use this loader.

    Its name for the loader is private: Hydra has no public place between the composition of a configuration and the
    construction of its callbacks. With one, this function would use it.
    """
    hydra._internal.hydra.ConfigLoaderImpl = CheckedLoader  # type: ignore[misc]
