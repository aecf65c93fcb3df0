"""What happens when a loss or a gradient is not finite."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from enat.errors import InputError
from enat.module import MaskedTokenModule


class NonFiniteGuard(L.Callback):
    """Skips a step whose gradient is not finite, counts such steps, and ends a run of too many.

    It also logs the gradient's norm. With DDP, gradients are the same on all ranks, and so is what becomes of them.
    With fp16, it is the loss scaler that skips steps, as a matter of course; they count as well.

    A fused optimiser is told to skip on the device, and what it has been told is read a step later, so that the
    device never waits for the host.

    Args:
        max_skipped: so many steps in a row are skipped before the run ends; 0 ends it at the first.

    Raises:
        InputError: if the run ends for it; the checkpoints before are whole.
    """

    def __init__(self, max_skipped: int):
        if max_skipped < 0:
            raise InputError(f"callbacks.guard.max_skipped={max_skipped}: expected at least 0.")
        self.max_skipped, self.skipped, self.in_a_row = max_skipped, 0, 0
        self.uncounted: tuple[int, Tensor] | None = None  # a step, and whether its gradient is not finite

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if scaler is not None and fused:
            norm = norm / scaler._get_scale_async()  # a fused optimiser takes the scale away by itself, later
        self.count()
        self.uncounted = trainer.global_step, ~norm.isfinite()
        if pl_module.logs_this_step or not fused:
            self.count()
        if pl_module.logs_this_step:
            pl_module.log_dict({"train/grad_norm": norm, "train/skipped_steps": float(self.skipped)})
        if scaler is None and fused:
            optimizer.grad_scale, optimizer.found_inf = None, (~norm.isfinite()).float()  # type: ignore[attr-defined]
        elif scaler is None and self.in_a_row:
            optimizer.zero_grad(set_to_none=True)  # the optimiser leaves weights without a gradient as they are

    def count(self) -> None:
        """Counts the last step, if it was not counted yet; waits for its gradient."""
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
