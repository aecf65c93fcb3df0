"""What happens when a loss or a gradient is not finite."""

from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer

from enat.errors import InputError
from enat.module import MaskedTokenModule


class NonFiniteGuard(L.Callback):
    """Skips a step whose gradient is not finite, counts such steps, and ends a run of too many.

    It also logs the gradient's norm. With DDP, gradients are the same on all ranks, and so is what becomes of them.
    With fp16, it is the loss scaler that skips steps, as a matter of course; they count as well.

    Args:
        max_skipped: so many steps in a row are skipped before the run ends; 0 ends it at the first.

    Raises:
        InputError: if the run ends for it; the checkpoints before are whole.
    """

    def __init__(self, max_skipped: int):
        if max_skipped < 0:
            raise InputError(f"callbacks.guard.max_skipped={max_skipped}: expected at least 0.")
        self.max_skipped, self.skipped, self.in_a_row = max_skipped, 0, 0

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm = norm / scaler.get_scale()  # a fused optimiser takes the scale away by itself, later
        self.in_a_row = 0 if norm.isfinite() else self.in_a_row + 1
        self.skipped += bool(self.in_a_row)
        if pl_module.logs_this_step:
            pl_module.log_dict({"train/grad_norm": norm, "train/skipped_steps": float(self.skipped)})
        if self.in_a_row > self.max_skipped:
            raise InputError(
                f"step {trainer.global_step}: the gradient is not finite, for {self.in_a_row} steps in a row; expected "
                "at most callbacks.guard.max_skipped of them. A lower module.optimizer.lr or trainer.precision="
                "32-true may help."
            )
        if self.in_a_row and scaler is None:
            optimizer.zero_grad(set_to_none=True)  # the optimiser leaves weights without a gradient as they are

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
