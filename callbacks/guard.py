"""Skips training steps whose gradient is not finite."""

from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from torch import Tensor
from torch.optim import Optimizer

from callbacks.training_log import logs_this_step
from enat.errors import InputError, counted


class NonFiniteGuard(L.Callback):
    """Skips and counts steps whose gradient is not finite, and ends a run with too many of them in a row.

    It also logs the norm of the gradient. With DDP, gradients are the same on all ranks, so that all skip the same
    steps. With fp16, the loss scaler skips steps while it looks for a scale; they count as well.

    A fused optimiser skips on the device, and the step is counted one step later, so that the device never waits for
    the host.

    Args:
        max_skipped: the number of steps in a row that may be skipped; with 0, the first ends the run.

    Raises:
        InputError: in training, if more steps in a row have no finite gradient. Earlier checkpoints stay as they are.
    """

    def __init__(self, max_skipped: Annotated[int, Ge(0)]):
        self.max_skipped = max_skipped
        self.skipped = 0
        self.in_a_row = 0
        self.uncounted: tuple[int, Tensor] | None = None  # a step, and whether its gradient is not finite
        self.advice = ""  # on a training that diverges; set when training starts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.advice = advice_on_divergence(trainer)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(trainer.precision_plugin, "scaler", None)  # of fp16
        fused = bool(optimizer.defaults.get("fused"))
        if scaler is not None and fused:
            norm = norm / scaler.scale(torch.ones_like(norm))  # only a fused optimiser's gradients are still scaled
        self.count()
        self.uncounted = trainer.global_step, ~norm.isfinite()
        if logs_this_step(trainer) or not fused:
            self.count()
        if logs_this_step(trainer):
            pl_module.log_dict({"train/grad_norm": norm, "train/skipped_steps": float(self.skipped)})
        if scaler is None and fused:
            skip_fused_step(optimizer, ~norm.isfinite())
        elif scaler is None and self.in_a_row:
            optimizer.zero_grad(set_to_none=True)  # the optimiser does not change weights without a gradient

    def count(self) -> None:
        """Counts the last step unless it is counted already, which waits for its gradient."""
        if self.uncounted is None:
            return
        step, is_bad = self.uncounted
        self.uncounted = None
        self.in_a_row = self.in_a_row + 1 if is_bad else 0
        self.skipped += bool(self.in_a_row)
        if self.in_a_row > self.max_skipped:
            raise InputError(
                f"step {step}: the gradient is not finite, for {counted(self.in_a_row, 'step')} in a row; expected "
                f"at most callbacks.guard.max_skipped of them. {self.advice}"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.count()

    def state_dict(self) -> dict[str, Any]:
        self.count()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def advice_on_divergence(trainer: L.Trainer) -> str:
    """Returns a sentence on what may keep a training from diverging."""
    precision = "" if trainer.precision == "32-true" else " or trainer.precision=32-true"
    return f"A lower module.optimizer.lr{precision} may help."


def skip_fused_step(optimizer: Optimizer, is_skipped: Tensor) -> None:
    """Makes a fused optimiser's next step change nothing where `is_skipped`, a boolean tensor (), is true.

    These attributes, by which torch's GradScaler skips steps, are private to torch. The public way would be a
    GradScaler with a scale of 1, which Lightning accepts for the precision 16-mixed only.
    """
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.found_inf = is_skipped.float()  # type: ignore[attr-defined]
