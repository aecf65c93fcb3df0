"""Keeps an exponential moving average of the network's weights."""

from copy import deepcopy
from typing import Annotated, Any

import lightning as L
from annotated_types import Interval
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.swa_utils import get_ema_multi_avg_fn

from enat.errors import counted
from enat.training.module import AveragedModule

MOST_UNTRAINED = 0.1  # share of the average that may be the network before training


class EMA(L.Callback):
    """Keeps an averaged copy of the network and hands it to the module as `ema_net`.

    The average starts from the initial weights and is updated after every optimiser step (docs/method.md, Recipe). It
    is a separate network, so that evaluation never swaps weights, and it is saved under the callback's own key. Buffers
    are copied: the codebook of a tokenizer, for example, is an average already.

    Args:
        decay: the weight of the earlier average in the new one.
    """

    def __init__(self, decay: Annotated[float, Interval(ge=0, le=1)] = 0.9999):
        self.decay = decay
        self.average = get_ema_multi_avg_fn(decay)
        self.last_step = 0
        self.is_restored = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, AveragedModule)
        self.current_names = pl_module.current_names
        self.net = deepcopy(pl_module.net).eval().requires_grad_(False)
        pl_module.__dict__["ema_net"] = self.net  # not by an assignment, which would make it a submodule

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.net.to(next(pl_module.parameters()))  # device and precision

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, AveragedModule)
        self.last_step = trainer.global_step  # a resumed run's step is not yet restored in on_fit_start
        if self.last_step and not self.is_restored:
            rank_zero_only(print)("The run had no average so far (callbacks.ema): it starts from the trained weights.")
            self.net.load_state_dict(pl_module.net.state_dict())
        untrained = self.decay**trainer.max_steps if trainer.max_steps > 0 else 0
        if untrained > MOST_UNTRAINED:
            rank_zero_only(print)(
                f"Note: {untrained:.0%} of the average will be the network before training; for "
                f"{counted(trainer.max_steps, 'step')}, choose a lower callbacks.ema.decay than {self.decay}."
            )
        self.parameters = list(self.net.parameters()), list(pl_module.net.parameters())
        self.buffers = list(self.net.buffers()), list(pl_module.net.buffers())

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.last_step:  # not while gradients are accumulated
            self.last_step = trainer.global_step
            self.average(*self.parameters, self.last_step)
            for own, trained in zip(*self.buffers, strict=True):
                own.copy_(trained)

    def state_dict(self) -> dict[str, Any]:
        return {"net": self.net.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.net.load_state_dict(self.current_names(state_dict["net"]))
        self.is_restored = True
