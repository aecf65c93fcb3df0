"""Ends a multirun with the table of its jobs."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class MultirunTable(Callback):
    """Prints the table of a multirun's jobs when they are done, and the command that writes the whole report."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this in the process that was started, whatever the launcher is."""
        from experiments.reporting.study import read_study  # here, since a misspelt option needs no pandas
        from experiments.reporting.tables import table_of

        folder = Path(config.hydra.sweep.dir)
        if any(folder.glob("*/results.json")):
            print(table_of(read_study(folder)).to_string(index=False))
            print(f"For plots, curves and intervals: python run.py task=report runs={folder}")
