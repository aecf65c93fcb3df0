"""What happens when a gradient is not finite."""

from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from torch import Tensor
from torch.optim import Optimizer

from callbacks.training_log import logs_this_step
from enat.errors import InputError


class NonFiniteGuard(L.Callback):
    """Skips and counts optimiser steps whose gradient is not finite, and ends a run with too many of them in a row.

    It also logs the norm of the gradient. With DDP, gradients are the same on all ranks, so all ranks decide alike.
    With fp16, the loss scaler skips steps, now and then even in healthy training; they are counted as well.

    A fused optimiser skips a step on the device. The host reads only one step later whether it did, so that the device
    never waits for the host.

    Args:
        max_skipped: the number of steps in a row that may be skipped; 0 ends the run at the first one.

    Raises:
        InputError: if the run ends; the checkpoints saved before are intact.
    """

    def __init__(self, max_skipped: Annotated[int, Ge(0)]):
        self.max_skipped = max_skipped
        self.skipped = 0
        self.in_a_row = 0
        self.uncounted: tuple[int, Tensor] | None = None  # a step, and whether its gradient is not finite

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16
        fused = _can_skip_on_device(optimizer)
        if scaler is not None and fused:
            norm = norm / _scale_of(scaler)  # gradients are still scaled here: a fused optimiser unscales them itself
        self.count()
        self.uncounted = trainer.global_step, ~norm.isfinite()
        if logs_this_step(trainer) or not fused:
            self.count()
        if logs_this_step(trainer):
            pl_module.log_dict({"train/grad_norm": norm, "train/skipped_steps": float(self.skipped)})
        if scaler is None and fused:
            _skip_on_device(optimizer, ~norm.isfinite())
        elif scaler is None and self.in_a_row:
            optimizer.zero_grad(set_to_none=True)  # the optimiser leaves weights without a gradient as they are

    def count(self) -> None:
        """Counts the last step if it was not counted yet; waits until its gradient is known.

        Raises:
            InputError: if more than `max_skipped` steps in a row had a gradient that is not finite.
        """
        if self.uncounted is None:
            return
        step, is_bad = self.uncounted
        self.uncounted = None
        self.in_a_row = self.in_a_row + 1 if is_bad else 0
        self.skipped += bool(self.in_a_row)
        if self.in_a_row > self.max_skipped:
            raise InputError(
                f"step {step}: the gradient is not finite, for {self.in_a_row} steps in a row; expected "
                "at most callbacks.guard.max_skipped of them. A lower module.optimizer.lr or trainer.precision="
                "32-true may help."
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count()

    def state_dict(self) -> dict[str, Any]:
        self.count()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


# How torch's loss scaler tells a fused optimiser to skip a step without waiting for the device. These names are private
# in torch, and there is no public way yet.


def _can_skip_on_device(optimizer: Optimizer) -> bool:
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def _skip_on_device(optimizer: Optimizer, is_bad: Tensor) -> None:
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]


def _scale_of(scaler: torch.amp.GradScaler) -> Tensor:
    scale = scaler._get_scale_async()
    assert scale is not None  # it is set when the first loss is scaled
    return scale
