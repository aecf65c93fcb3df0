"""What a terminal, or the log of a job, shows of a training run."""

import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from enat.module import MaskedTokenModule

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[shown]}"))


class TrainingProgress(ProgressBar):
    """A summary of the run at its start; then steps, loss, speed and time left, on rank 0's stderr.

    A terminal has a bar, anything else a line every so often. Loss and speed are as of the last log.

    Args:
        seconds_between_lines: where there is no terminal.
    """

    def __init__(self, seconds_between_lines: float):
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self.console = Console(stderr=True)
        self.is_enabled = True  # Lightning asks for silence on all ranks but one
        self.bar = Progress(*COLUMNS, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal)

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.is_enabled:
            return
        self.console.print(self.summary(trainer, pl_module))
        self.begun, self.first_step, self.last_line = time.monotonic(), trainer.global_step, time.monotonic()
        self.task = self.bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, shown="")
        self.bar.start()

    def summary(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Table:
        """Parameters, devices, batches, steps and folder, as a table."""
        assert isinstance(pl_module, MaskedTokenModule)
        batch: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        devices, accumulated = trainer.world_size, trainer.accumulate_grad_batches
        parts = f"{devices} (devices) x {accumulated} (accumulated) x {batch // (devices * accumulated):,}"
        parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        kind = str(trainer.strategy.root_device.type).upper()
        rows = {
            "parameters": f"{parameters:,}",
            "devices": f"{devices} x {kind}, precision {trainer.precision}",
            "batch": f"{batch:,} = {parts}",
            "mask groups": str(pl_module.groups_here * devices * accumulated),
            "steps": f"{trainer.global_step:,} of {trainer.max_steps:,} done",
            "results": str(trainer.default_root_dir),
        }
        table = Table(show_header=False, box=None)
        for name, value in rows.items():
            table.add_row(f"[bold]{name}", value)
        return table

    def shown(self, trainer: L.Trainer) -> str:
        """Loss, speed and time left; validation counts in the latter two."""
        steps, seconds = trainer.global_step - self.first_step, time.monotonic() - self.begun
        left = timedelta(seconds=round(seconds / steps * (trainer.max_steps - trainer.global_step)))
        loss = trainer.logged_metrics.get("train/loss")
        return f"{'' if loss is None else f'loss {float(loss):.3f}, '}{steps / seconds:.1f} steps/s, {left} left"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.is_enabled or trainer.global_step == self.first_step:
            return
        if not self.bar.disable:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step % every == 0:  # the loss is on its way to the loggers at this step
                self.bar.update(self.task, shown=self.shown(trainer))
            self.bar.update(self.task, completed=trainer.global_step)
        elif time.monotonic() - self.last_line > self.seconds_between_lines:
            self.last_line = time.monotonic()
            self.console.print(f"step {trainer.global_step:,} of {trainer.max_steps:,}: {self.shown(trainer)}")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_enabled and trainer.training:
            self.bar.update(self.task, description="validation")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_enabled and trainer.training:
            self.bar.update(self.task, description="training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()
