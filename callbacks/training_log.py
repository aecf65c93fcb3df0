"""What is logged of the training steps themselves."""

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from enat.training.module import AveragedModule


def logs_this_step(trainer: L.Trainer) -> bool:
    """Says whether the loggers record the optimiser step that is being computed."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


class TrainingLog(L.Callback):
    """Logs what a module says of an optimiser step, such as its loss, averaged over all groups, and the learning rate.

    The groups of a step may be spread over devices and over batches whose gradients are accumulated. `step`, the number
    of optimiser steps done, is the x-axis of the loggers.
    """

    def __init__(self) -> None:
        self.group_values: list[dict[str, Tensor]] = []  # of the current step, on this device

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, AveragedModule)
        self.group_values += pl_module.group_values

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        group_values, self.group_values = self.group_values, []
        if logs_this_step(trainer):
            for name in group_values[0]:
                mean = torch.stack([values[name] for values in group_values]).mean()
                pl_module.log(f"train/{name}", mean, sync_dist=True)
            pl_module.log("train/learning_rate", optimizer.param_groups[0]["lr"])
            pl_module.log("step", float(trainer.global_step + 1))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("step", float(trainer.global_step))
