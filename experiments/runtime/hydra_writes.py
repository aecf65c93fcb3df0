"""Keeps passwords and access keys in URLs out of what Hydra itself writes and prints."""

import functools
import logging
from pathlib import Path
from typing import Any

from hydra.core import utils
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from data.credentials import without_credentials

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def hide_credentials() -> None:
    """Cuts them out of log messages, of a multirun's `multirun.yaml`, and of the files of `hydra.output_subdir`.

    What Hydra writes by itself has no public hook. A second call changes nothing.
    """
    if hasattr(utils._save_config, "__wrapped__"):
        return
    make_record = logging.getLogRecordFactory()
    # Hydra imports its plugins once more when it looks for them, so that the class of this name is another one.
    sweeper: Any = Plugins.instance().class_name_to_class[SWEEPER]
    set_up = sweeper.setup
    save = utils._save_config

    @functools.wraps(make_record)
    def make_hidden(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*arguments, **options)
        if "://" in (message := record.getMessage()):
            record.msg = without_credentials(message)
            record.args = ()
        return record

    @functools.wraps(set_up)
    def set_up_hidden(self: Any, *, config: DictConfig, **parts: Any) -> None:
        set_up(self, config=config, **parts)
        self.config = _hidden(config)  # which it writes; jobs are composed of what the launcher has

    @functools.wraps(save)
    def save_hidden(cfg: DictConfig, filename: str, output_dir: Path) -> None:
        save(_hidden(cfg), filename, output_dir)

    logging.setLogRecordFactory(make_hidden)
    sweeper.setup = set_up_hidden
    utils._save_config = save_hidden


def _hidden(config: DictConfig) -> Any:
    return OmegaConf.create(without_credentials(OmegaConf.to_container(config, resolve=False)))
