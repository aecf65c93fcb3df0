"""Saves checkpoints that a killed run can go on from, and ends a run on a signal."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import lightning as L
import torch
import torch.distributed as dist
from annotated_types import Ge, Gt
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from callbacks.generation_metrics import ImageMetrics
from enat.errors import InputError
from enat.files import write_atomically

AUTO = "auto"
OWN_NAME = re.compile(r"step_\d{7,}\.ckpt")  # of a file that may be removed; a copy of it has another name
LEFT_ON_SIGNAL = 75  # the exit status EX_TEMPFAIL: start the same command again
TRAINED = "training is finished and saved; {} goes on with the scores."

# No signal, and those that end a run. Of several, the last one in this order counts: at the end of a job's time,
# SIGTERM follows SIGUSR1, and the job still has to be put into the queue again.
SIGNALS = (0, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# What is measured on the held-out samples themselves, of which `trainer.limit_val_batches` may take a part.
OF_BATCHES = [f"val/{name}" for name in ("loss", "accuracy", "psnr", "ssim", "codes_used", "perplexity")]

HIGHER_IS_BETTER = (  # ends of names
    *("accuracy", "psnr", "ssim", "codes_used", "perplexity"),
    *("inception_score", "precision", "recall", "density", "coverage"),
)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


class Checkpoints(Checkpoint):
    """Saves the state of a run in files `step_0001000.ckpt`, and keeps `last.ckpt` and `best.ckpt` as links to them.

    It saves when the next batch starts: validation, logs and averages of the step before are complete then, so that a
    run that goes on from the file does what an uninterrupted run would have done.

    Args:
        folder: where the files are.
        every_n_steps: the number of optimiser steps between two checkpoints; validation is followed by one, too.
        keep: the number of newest checkpoints that are kept; the best one is kept in addition.
        monitor: the logged value that is lowest at the best checkpoint; `auto` for `val/fid` or, where images are not
            scored, `val/loss`; None for no best one.

    Raises:
        InputError: for a monitored value that is highest at the best checkpoint.
    """

    def __init__(
        self, folder: str, every_n_steps: Annotated[int, Ge(1)], keep: Annotated[int, Ge(1)], monitor: str | None
    ):
        if monitor is not None and monitor.endswith(HIGHER_IS_BETTER):
            raise InputError(
                f"callbacks.checkpoint.monitor={monitor}: a higher value is better, and the best checkpoint is the one "
                "with the lowest; expected another value, such as val/loss."
            )
        self.folder = Path(folder)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.monitor = monitor
        self.best: float | None = None
        self.best_of: list[Any] | None = None  # the name of the value, and what it is measured on
        self.saved_step = -1
        self.is_due = False  # a checkpoint, before the next batch
        self.is_best = False  # the state that is due or, when a run goes on, its checkpoint

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        path = self._path(trainer)
        if self.is_best and trainer.is_global_zero and path.exists():  # the run may have been killed before it did this
            self._link(path, "best.ckpt")
        self.is_best = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.is_due = True
        if self.monitor is None:
            return
        logged = trainer.callback_metrics
        monitor = self.monitor if self.monitor != AUTO else "val/fid" if "val/fid" in logged else "val/loss"
        if monitor not in logged:
            raise InputError(f"callbacks.checkpoint.monitor={monitor}: nothing of that name is logged.")
        value = float(logged[monitor])
        scorers = [part for part in trainer.callbacks if isinstance(part, ImageMetrics)]  # type: ignore[attr-defined]
        compared = [monitor, *(value for scorer in scorers for value in scorer.identity())]
        if monitor in OF_BATCHES:
            compared = [monitor, validated_batches(trainer)]
        if self.best_of is not None and self.best_of != compared[: len(self.best_of)]:
            self.best = None  # (checkpoints of older versions say less, or nothing)
        self.best_of = compared
        if not math.isnan(value) and (self.best is None or math.isnan(self.best) or value < self.best):
            self.best = value
            self.is_best = True

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return  # within a step
        if self.is_due or trainer.global_step - self.saved_step >= self.every_n_steps:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> Path:
        """Saves the state, removes files that are no longer kept, and returns the path; all ranks have to call it."""
        path = self._path(trainer)
        if trainer.strategy.broadcast(trainer.global_step != self.saved_step or not path.exists()):  # as rank 0 says
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._link(path, "last.ckpt")
            if self.is_best:
                self._link(path, "best.ckpt")
            own = [file for file in self.folder.glob("step_*.ckpt") if OWN_NAME.fullmatch(file.name)]
            for old in sorted(own, key=lambda file: int(file.stem.removeprefix("step_")))[: -self.keep]:
                if old != path:
                    old.unlink()
        self.saved_step = trainer.global_step
        self.is_due = False
        self.is_best = False
        return path

    def _path(self, trainer: L.Trainer) -> Path:
        return self.folder / f"step_{trainer.global_step:07d}.ckpt"

    def _link(self, path: Path, name: str) -> None:
        """Gives a file a second name; the name always belongs to a whole file."""
        temporary = self.folder / f"{name}.partial"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # some network file systems have no links
            shutil.copyfile(path, temporary)
        temporary.replace(self.folder / name)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        forget_started_batch(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_of": self.best_of, "is_best": self.is_best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.best_of = state_dict.get("best_of")
        self.is_best = state_dict.get("is_best", False)


def validated_batches(trainer: L.Trainer) -> str | int:
    """Returns on how many held-out batches a validation is computed, on all devices together; `all` for all of them."""
    (number,) = trainer.num_val_batches
    return "all" if number == len(trainer.val_dataloaders) else int(number) * trainer.world_size  # type: ignore[arg-type]


def forget_started_batch(checkpoint: dict[str, Any]) -> None:
    """Removes the batch that is about to start from a checkpoint's progress, so that a run that goes on trains on it.

    The layout of this part of a checkpoint is private to Lightning. The public way would be a hook between two batches,
    where Lightning's own counters do not yet include the next one.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters["ready"] = counters["completed"]


class LeaveOnSignal(L.Callback):
    """Saves a checkpoint on SIGTERM, SIGUSR1 or SIGINT, and ends all ranks with status 75.

    Under SLURM, SIGUSR1 also puts the job into the queue again. The signal's handler only sets a flag. Every few steps
    and after training the ranks compare their flags, on the CPU, so that nothing waits for a GPU. A second SIGINT ends
    the run at once. While the trained network is scored, each rank that gets a signal leaves at once, with the ranks
    that it has started: all is saved.

    The handlers are installed within the context `handling`.

    Args:
        every_n_steps: the number of steps between two comparisons.
        timeout_minutes: a rank that does not answer for so long ends the run with a message.
    """

    def __init__(self, every_n_steps: Annotated[int, Ge(1)], timeout_minutes: Annotated[float, Gt(0)]):
        self.every_n_steps = every_n_steps
        self.timeout = timedelta(minutes=timeout_minutes)
        self.received = 0  # the number of the signal
        self.is_interrupted = False  # by a SIGINT
        self.group: Any = None
        self.earlier: dict[int, Any] = {}
        self.trained: L.Trainer | None = None  # after training
        self.command = "the same command"  # that goes on with the run

    @contextmanager
    def handling(self) -> Iterator[None]:
        """Installs the handlers, before data workers start, and the earlier ones in the end."""
        self.earlier = self._install()
        try:
            yield
        finally:
            self._restore()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=self.timeout)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()  # again, since Lightning has installed a handler of SIGTERM

    def _install(self) -> dict[int, Any]:
        """Installs the handlers, and returns the earlier ones."""
        return {number: signal.signal(number, self._receive) for number in SIGNALS[1:]}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.is_interrupted:
            self._restore()
            raise KeyboardInterrupt
        self.is_interrupted = self.is_interrupted or number == signal.SIGINT
        self.received = max(self.received, number, key=SIGNALS.index)
        if self.trained is not None:
            launcher = self.trained.strategy.launcher
            if launcher is not None:  # without torchrun or srun, this process may have started the other ranks
                launcher.kill(number)
            self._leave(self.trained, self.received, TRAINED.format(self.command))

    def _restore(self) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def _agreed(self) -> int:
        """Returns the number of a signal that a rank has got, or 0; all ranks have to call it."""
        flag = torch.tensor(SIGNALS.index(self.received))
        if self.group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return SIGNALS[int(flag)]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % (trainer.accumulate_grad_batches * self.every_n_steps):
            return
        number = self._agreed()
        if not number:
            return
        checkpoints = trainer.checkpoint_callback
        path = checkpoints.save(trainer) if isinstance(checkpoints, Checkpoints) else None
        what = f"saved {path}; {self.command} goes on from there."
        if path is None:
            what = "nothing is saved, for callbacks.checkpoint=null; the same command starts where this one did."
        self._leave(trainer, number, what)

    def finish_training(self, trainer: L.Trainer) -> None:
        """Ends all ranks if one has got a signal in the last steps; they have saved the last checkpoint before."""
        number = self._agreed()
        self.trained = trainer
        if number or self.received:
            self._leave(trainer, number or self.received, TRAINED.format(self.command))

    def _leave(self, trainer: L.Trainer, number: int, what: str) -> None:
        """Says what is saved, puts the job into the queue again on SIGUSR1, and ends this rank."""
        if trainer.is_global_zero:
            print(f"\n{signal.Signals(number).name}: {what}", file=sys.stderr)
            if number == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:  # the time limit is near
                _requeue(os.environ["SLURM_JOB_ID"])
        raise SystemExit(LEFT_ON_SIGNAL)


def _requeue(job: str) -> None:
    """Puts a job of SLURM into the queue again, or says that the program for that is not here, as in a container."""
    if shutil.which("scontrol") is None:
        print(f"Job {job} is not put into the queue again, for there is no scontrol here.", file=sys.stderr)
        return
    subprocess.run(["scontrol", "requeue", job], check=False)
