"""Logs to Weights & Biases, where an interrupted run that goes on stays one run."""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from enat.checkpoints.description import check_description
from enat.errors import printable
from enat.files import read_record, read_text, write_atomically

IDENTITY = "wandb_id.txt"  # in the run's folder
STEPS = "wandb_steps.json"
BEST = {"val/fid": "min", "val/inception_score": "max", "val/loss": "min", "val/accuracy": "max"}


class StepWandbLogger(WandbLogger):
    """Logs over an axis `step`, the number of optimiser steps done, to a run that stays the same when it goes on.

    The run's id is drawn once and kept in its folder, so that the folder may be moved. A run that goes on from a
    checkpoint repeats some steps; what was logged of them before is not logged again.

    Args:
        project: the project on W&B.
        name: the name of the run.
        save_dir: the run's folder.
        offline: True needs no account; `wandb sync` uploads the run later.
        group: the name of a group of runs, such as a sweep, whose runs have the job type `sweep`.
        job: tells the run from others of the group; is appended to the name.
        entity: the user or team that the project is of; None for the default of the account.
        tags: of the run.
        notes: a text on the run.
    """

    def __init__(
        self,
        project: str,
        name: str,
        save_dir: str,
        offline: bool,
        group: str | None = None,
        job: str | None = None,
        entity: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
    ):
        folder = Path(save_dir).absolute()
        if (folder / STEPS).exists() and not any(folder.glob("checkpoints/*.ckpt")):  # training starts anew
            for record in (STEPS, IDENTITY):
                rank_zero_only((folder / record).unlink)(missing_ok=True)
        identity = _run_id(folder)
        super().__init__(
            name=name if job is None else f"{name}-{job}",
            save_dir=save_dir,
            project=project,
            offline=offline,
            id=identity,
            resume="allow",
            group=group,
            job_type="train" if group is None else "sweep",
            entity=entity,
            tags=tags,
            notes=notes,
        )
        self.record = folder / STEPS  # the last step that was logged of train/..., val/... and so on
        self.last_steps: dict[str, int] = read_record(self.record) if self.record.exists() else {}
        check_description(self.last_steps, dict[str, int], f"{self.record}:")
        self.last_steps_before = dict(self.last_steps)  # when the run was last interrupted
        self.has_axis = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars at a step, without those that were logged before the run was interrupted."""
        if step is None:  # pictures
            self.experiment.log(dict(metrics))
            return
        step = int(step)
        before = {**self.last_steps_before, "final": -1}  # scores after training may be computed again
        new = {name: value for name, value in metrics.items() if step > before.get(_section(name), -1)}
        if not new:
            return
        run = self.experiment
        if not self.has_axis:
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            for name, summary in BEST.items():
                run.define_metric(name, step_metric="step", summary=summary)
            self.has_axis = True
        run.log({**new, "step": step})
        self.last_steps |= dict.fromkeys(map(_section, new), step)
        write_atomically(self.record, json.dumps(self.last_steps).encode())


def _run_id(folder: Path) -> str:
    """Returns the id of a run on W&B: from its folder or, the first time and in a copy of the folder, a random one."""
    path = folder / IDENTITY
    if path.exists():
        identity, *before = read_text(path).split("\n")
        place = Path(before[0]) if before and before[0] else folder
        of_place = read_text(place / IDENTITY) if (place / IDENTITY).exists() else ""
        is_copy = place != folder and of_place.partition("\n")[0] == identity
        if not is_copy:
            if place != folder:
                rank_zero_only(write_atomically)(path, f"{identity}\n{folder}".encode())
            return identity
        rank_zero_only(print)(printable(f"{folder} is a copy of {place}, so that it becomes a run of its own on W&B."))
        rank_zero_only((folder / STEPS).unlink)(missing_ok=True)
    identity = secrets.token_hex(8)
    if (folder / STEPS).exists():  # of an earlier version, which made the id from the path
        identity = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    rank_zero_only(write_atomically)(path, f"{identity}\n{folder}".encode())
    return identity


def _section(name: str) -> str:
    """Returns the first part of a metric's name: `val` of `val/fid`."""
    return name.partition("/")[0]


def log_table(
    logger: Mapping[str, Logger | None], title: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]
) -> None:
    """Logs a table and pictures to Weights & Biases, if it is among the loggers, and ends its run."""
    for log in logger.values():
        if isinstance(log, WandbLogger):
            log.log_table(title, list(rows[0]), [list(row.values()) for row in rows])
            for picture in pictures:
                log.log_image(picture.stem.replace("_", " "), [str(picture)])
            log.experiment.finish()
