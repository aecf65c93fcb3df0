"""Ends a multirun with the table of its jobs."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from enat.errors import printable
from experiments.runtime.job_names import config_flags
from experiments.runtime.multirun import JOB, is_done, read_job_record


class MultirunTable(Callback):
    """Prints the table of a multirun's jobs when they are done, and the command that writes the whole report."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Hydra calls this in the process that was started, whatever the launcher is."""
        from experiments.reporting.runs import ablation_of
        from experiments.reporting.study import read_study  # here, since a misspelt option needs no pandas
        from experiments.reporting.tables import table_of

        folder = Path(config.hydra.sweep.dir)
        jobs = [path.parent for path in folder.glob(f"*/{JOB}")]
        command = f"python run.py task=report runs={shlex.quote(str(folder))}"
        given = dict(text.lstrip("+").partition("=")[::2] for text in config.hydra.overrides.task)
        rows = given.get("ablation", (config.hydra.sweeper.get("params") or {}).get("ablation"))
        if rows is not None:  # the folder may have those of other tables
            jobs = [job for job in jobs if ablation_of(job) in rows.split(",")]
            command += f" table={given['sweep']}" if "ablation" not in given else ""
        if any((job / "results.json").exists() for job in jobs):
            print(printable(table_of(read_study(*jobs)).to_string(index=False)))
            print(f"For plots, curves and intervals: {command}")
        if config.get("held_out_seeds"):
            self.score_again(config, folder)
        self.tell_failures(config, jobs)

    def tell_failures(self, config: DictConfig, jobs: Sequence[Path]) -> None:
        """Ends a search with status 1 if jobs of it have failed: optuna, unlike Hydra, raises no error of a job.

        Raises:
            SystemExit: naming the folders. Hydra turns other errors here into warnings.
        """
        trials = config.hydra.sweeper.get("n_trials", 0)  # an earlier command may have had more of them
        records = {job: read_job_record(job / JOB) for job in sorted(jobs)}
        failed = [
            job.name
            for job, record in records.items()
            if record.get("number", 0) < trials and (record.get("error") is not None or not is_done(job))
        ]
        if failed:
            names = ", ".join(failed)
            what = f"these jobs failed: {names}; their job.json says why, and the same command runs them again."
            print(f"Error: {config.hydra.sweep.dir}: {what}", file=sys.stderr)
            raise SystemExit(1)

    def score_again(self, config: DictConfig, folder: Path) -> None:
        """Scores the best settings of a search with seeds that it has not seen, and prints what comes out."""
        from experiments.runtime.held_out_seeds import score_again

        directions = config.hydra.sweeper.direction
        names = list(config.objective)
        each = [directions] if isinstance(directions, str) else list(directions)
        print(f"The best settings, scored again with the seeds {list(config.held_out_seeds)}:")
        scored = score_again(folder, names, each, config.held_out_seeds, config.weights, config_flags(config.hydra))
        folders = ", ".join(map(str, scored)) or "none"
        print(printable(f"Results with these seeds, which are the ones to quote: {folders}"))
