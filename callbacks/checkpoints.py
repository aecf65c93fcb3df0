"""Checkpoints that a killed run can rely on, and leaving on a signal."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from enat.errors import InputError
from enat.files import write_atomically

LEFT_ON_SIGNAL = 75  # the exit status EX_TEMPFAIL: start the same command again


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))


class Checkpoints(Checkpoint):
    """Keeps the state of a run in files: `step_0001000.ckpt`, and `last.ckpt` and `best.ckpt` as links to them.

    It saves when the next batch starts, so that the step before is over with all that belongs to it: validation, logs,
    averages. A run that goes on from there does what the uninterrupted one would have done.

    Args:
        folder: of the files.
        every_n_steps: optimiser steps between two checkpoints; there is also one after each validation.
        keep: how many there are at a time, beside the best.
        monitor: the logged value that the best checkpoint has the lowest of; None for no best one.

    Raises:
        InputError: for numbers below 1.
    """

    def __init__(self, folder: str, every_n_steps: int, keep: int, monitor: str | None):
        if every_n_steps < 1 or keep < 1:
            raise InputError(f"callbacks.checkpoint: every_n_steps={every_n_steps}, keep={keep}: expected at least 1.")
        self.folder, self.every_n_steps, self.keep, self.monitor = Path(folder), every_n_steps, keep, monitor
        self.settings: Mapping[str, Any] = {}  # of the whole run, as plain values, for the files
        self.best: float | None = None
        self.saved_step, self.is_due, self.is_best = -1, False, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.is_due = True
        if self.monitor is None:
            return
        if self.monitor not in trainer.callback_metrics:
            raise InputError(f"callbacks.checkpoint.monitor={self.monitor}: nothing of that name is logged.")
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or value < self.best:
            self.best, self.is_best = value, True

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
        """Saves the state now, and removes what is no longer kept; all ranks have to call. Returns the file."""
        path = self.folder / f"step_{trainer.global_step:07d}.ckpt"
        if trainer.strategy.broadcast(trainer.global_step != self.saved_step or not path.exists()):  # all ranks do
            trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            self._link(path, "last.ckpt")
            if self.is_best:
                self._link(path, "best.ckpt")
            for old in sorted(self.folder.glob("step_*.ckpt"))[: -self.keep]:
                if old != path:
                    old.unlink()
        self.saved_step, self.is_due, self.is_best = trainer.global_step, False, False
        return path

    def _link(self, path: Path, name: str) -> None:
        """Gives a file a second name, at once."""
        temporary = self.folder / f"{name}.partial"
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        temporary.replace(self.folder / name)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for part in ("total", "current"):  # the batch that is about to start belongs to the run that goes on
            progress[part]["ready"] = progress[part]["completed"]
        checkpoint["settings"] = dict(self.settings)
        checkpoint["world_size"] = trainer.world_size

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


class LeaveOnSignal(L.Callback):
    """On SIGTERM, SIGUSR1 or SIGINT, all ranks save one checkpoint together and leave with status 75.

    Under SLURM, SIGUSR1 also puts the job into the queue again.

    The handlers only set a flag. Every few steps the ranks agree on it, on the CPU, so that nothing waits for a GPU;
    a second SIGINT ends the run at once.

    Args:
        every_n_steps: between two agreements.
        timeout_minutes: a rank that does not answer for so long ends the run with a message.
    """

    def __init__(self, every_n_steps: int, timeout_minutes: float):
        if every_n_steps < 1:
            raise InputError(f"callbacks.leave_on_signal.every_n_steps={every_n_steps}: expected at least 1.")
        self.every_n_steps, self.timeout = every_n_steps, timedelta(minutes=timeout_minutes)
        self.received = 0  # the signal's number
        self.group: Any = None
        self.earlier: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.earlier = self._install()  # before data workers start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._install()  # Lightning has put its own in front of SIGTERM's

    def _install(self) -> dict[int, Any]:
        """Sets the handlers; returns those that there were."""
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        return {number: signal.signal(number, self._receive) for number in numbers}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            self._restore()
            raise KeyboardInterrupt
        self.received = number

    def _restore(self) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)
        self.earlier = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % (trainer.accumulate_grad_batches * self.every_n_steps):
            return
        flag = torch.tensor(self.received)
        if self.group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        if not flag:
            return
        checkpoints = trainer.checkpoint_callback
        path = checkpoints.save(trainer) if isinstance(checkpoints, Checkpoints) else None
        if trainer.is_global_zero:
            name, what = signal.Signals(int(flag)).name, "nothing is saved" if path is None else f"saved {path}"
            print(f"\n{name}: {what}; the same command goes on from there.", file=sys.stderr)
            if flag == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:  # time is nearly over: in the queue again
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
        raise SystemExit(LEFT_ON_SIGNAL)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()
