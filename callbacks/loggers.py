"""Weights & Biases with an axis of its own, and a run that stays one through preemptions."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

BEST = {"val/fid": "min", "val/inception_score": "max", "val/loss": "min", "val/accuracy": "max"}


class StepWandbLogger(WandbLogger):
    """Lightning's logger, but for the axis `step`, optimiser steps done, and for what makes a run one.

    The run's id follows from its folder, so that a run that goes on is the same run; what it logs again, since it went
    back to a checkpoint, is left out.

    Args:
        project, name: of the run.
        save_dir: the run's folder.
        offline: True needs no account; `wandb sync` uploads it later.
        group: of runs that belong together, such as a sweep's, whose runs have the job type `sweep`.
        job: what tells the run from others of the group; joins the name.
    """

    def __init__(
        self,
        project: str,
        name: str,
        save_dir: str,
        offline: bool,
        group: str | None = None,
        job: str | None = None,
    ):
        folder = Path(save_dir).absolute()
        identity = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        super().__init__(
            name=name if job is None else f"{name}-{job}",
            save_dir=save_dir,
            project=project,
            offline=offline,
            id=identity,
            resume="allow",
            group=group,
            job_type="train" if group is None else "sweep",
        )
        self.record = folder / "wandb_steps.json"  # the last step logged of train/..., val/... and so on
        self.logged: dict[str, int] = json.loads(self.record.read_text()) if self.record.exists() else {}
        self.before = dict(self.logged)  # by earlier starts of the run
        self.defined = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs scalars at a step, but for those that were logged before the run went back to a checkpoint."""
        if step is None:  # pictures
            self.experiment.log(dict(metrics))
            return
        step = int(step)
        new = {name: value for name, value in metrics.items() if step > self.before.get(name.partition("/")[0], -1)}
        if not new:
            return
        run = self.experiment
        if not self.defined:
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            for name, summary in BEST.items():
                run.define_metric(name, step_metric="step", summary=summary)
            self.defined = True
        run.log({**new, "step": step})
        self.logged |= dict.fromkeys((name.partition("/")[0] for name in new), step)
        self.record.write_text(json.dumps(self.logged))


def log_table(
    logger: Mapping[str, Logger | None], title: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]
) -> None:
    """Gives rows and pictures to Weights & Biases, if it is among the loggers, and ends its run."""
    for log in logger.values():
        if isinstance(log, WandbLogger):
            log.log_table(title, list(rows[0]), [list(row.values()) for row in rows])
            for picture in pictures:
                log.log_image(picture.stem.replace("_", " "), [str(picture)])
            log.experiment.finish()
