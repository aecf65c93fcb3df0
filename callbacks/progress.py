"""Shows the progress of training in a terminal or in the log of a job."""

import time
from datetime import timedelta
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from enat.training.module import AveragedModule

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}"))


class TrainingProgress(ProgressBar):
    """Prints a summary of the run when it starts, then steps, loss, speed and time left, on rank 0's stderr.

    A terminal shows a bar, anything else a line from time to time. The bar's loss and speed are from the last log.

    Args:
        seconds_between_lines: the time between two lines where there is no terminal.
    """

    def __init__(self, seconds_between_lines: Annotated[float, Ge(0)]):
        super().__init__()
        self.seconds_between_lines = seconds_between_lines
        self.console = Console(stderr=True)
        self.is_enabled = True  # Lightning disables it on all ranks but one
        self.bar = Progress(*COLUMNS, TimeElapsedColumn(), console=self.console, disable=not self.console.is_terminal)

    def disable(self) -> None:
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.is_enabled:
            return
        self.console.print(self.summary(trainer, pl_module))
        self.start_time = time.monotonic()
        self.last_line_time = self.start_time
        self.first_step = trainer.global_step
        self.task = self.bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, status="")
        self.bar.start()

    def summary(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Table:
        """Returns a table of parameters, devices, batches, steps and the folder of the results."""
        assert isinstance(pl_module, AveragedModule)
        batch: int = trainer.datamodule.batch_size  # type: ignore[attr-defined]
        devices = trainer.world_size
        accumulated = trainer.accumulate_grad_batches
        factors = f"{devices} (devices) x {accumulated} (accumulated) x {batch // (devices * accumulated):,}"
        parameters = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        kind = str(trainer.strategy.root_device.type).upper()
        rows = {
            "parameters": f"{parameters:,}",
            "devices": f"{devices} x {kind}, precision {trainer.precision}",
            "batch": f"{batch:,} = {factors}",
            **pl_module.summary_rows(),
            "steps": f"{trainer.global_step:,} of {trainer.max_steps:,} done",
            "results": str(trainer.default_root_dir),
        }
        table = Table(show_header=False, box=None)
        for name, value in rows.items():
            table.add_row(f"[bold]{name}", value)
        return table

    def status(self, trainer: L.Trainer) -> str:
        """Describes loss, speed and time left; speed and time include validation."""
        steps = trainer.global_step - self.first_step
        seconds = time.monotonic() - self.start_time
        left = timedelta(seconds=round(seconds / steps * (trainer.max_steps - trainer.global_step)))
        loss = trainer.logged_metrics.get("train/loss")
        return f"{'' if loss is None else f'loss {float(loss):.3f}, '}{steps / seconds:.1f} steps/s, {left} left"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if not self.is_enabled or trainer.global_step == self.first_step:
            return
        if not self.bar.disable:
            every = trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and trainer.global_step % every == 0:  # only then, since the loggers wait for the loss anyway
                self.bar.update(self.task, status=self.status(trainer))
            self.bar.update(self.task, completed=trainer.global_step)
        elif time.monotonic() - self.last_line_time > self.seconds_between_lines:
            self.last_line_time = time.monotonic()
            self.console.print(f"step {trainer.global_step:,} of {trainer.max_steps:,}: {self.status(trainer)}")

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
