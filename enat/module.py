"""The LightningModule: mask, forward, loss, log, optimiser. Shapes: `B` batch, `L` tokens of an image."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from enat.errors import InputError
from enat.masking import RandomMasking
from enat.net import ENAT
from enat.randomness import rng_for

Batch = tuple[Tensor, Tensor]  # token ids (B, L) and class ids (B,)


class MaskedTokenModule(L.LightningModule):
    """Trains a network to predict masked tokens (SPEC 3).

    Every random number of a training step is a function of (seed, rank, step): a resumed run draws what the
    uninterrupted one would have drawn, and nothing that runs between two steps can change it.

    Args:
        net: the network.
        masking: draws a partition of the tokens, see `enat.masking.RandomMasking`.
        loss: callable on logits (B, M, K) and targets (B, M).
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped once per step, from the optimiser.
        seed: of masks, reuse and dropout.
        cache_from_ema: whether the EMA network makes the cached features of a step with reuse, as in the
            official recipe; otherwise the network itself does, in training mode.
    """

    ema_net: ENAT | None  # set by callbacks.EMA; no submodule, so that checkpoints and DDP leave it alone

    def __init__(
        self,
        net: ENAT,
        masking: RandomMasking,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        seed: int = 0,
        cache_from_ema: bool = True,
    ):
        super().__init__()
        self.net, self.masking, self.loss = net, masking, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.seed, self.cache_from_ema = seed, cache_from_ema
        self.__dict__["ema_net"] = None

    @property
    def averaged_net(self) -> ENAT:
        """The network that generates: the EMA network where there is one."""
        return self.net if self.ema_net is None else self.ema_net

    def on_fit_start(self) -> None:
        if self.cache_from_ema and self.ema_net is None and self.masking.reuse_prob:
            raise InputError("callbacks.ema=null: expected module.cache_from_ema=false with it.")

    def predict_masked(self, net: ENAT, batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
        """One masked prediction: loss, accuracy on masked tokens, and mask ratio."""
        token_ids, class_ids = batch
        part = self.masking(rng, token_ids.shape[0], token_ids.shape[1], token_ids.device)
        cached = None
        if part.cached is not None:
            cache_net = self.averaged_net if self.cache_from_ema else net
            with torch.no_grad():
                cached = cache_net.encode(token_ids, part.cached, cache_net.condition(class_ids))
        logits, _ = net(token_ids, part.revealed, part.masked, net.condition(class_ids), cached)
        targets = token_ids.gather(1, part.masked)
        return {
            "loss": self.loss(logits, targets),
            "accuracy": (logits.detach().argmax(dim=2) == targets).float().mean(),
            "mask_ratio": part.masked.shape[1] / token_ids.shape[1],
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        rng = rng_for("training", self.seed, self.global_rank, self.global_step, micro_batch)
        torch.manual_seed(int(rng.integers(2**63)))  # for dropout
        values = self.predict_masked(self.net, batch, rng)
        self.log_dict({f"train/{name}": value for name, value in values.items() if name != "loss"})
        self.log("train/loss", values["loss"], prog_bar=True)
        self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.log("step", float(self.global_step + 1))  # the loggers' axis: optimiser steps done
        return values["loss"]

    def on_validation_epoch_end(self) -> None:
        self.log("step", float(self.global_step))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        rng = rng_for("validation", self.seed, self.global_rank, batch_idx)  # the same masks every time
        values = self.predict_masked(self.averaged_net, batch, rng)
        self.log_dict(
            {f"val/{name}": value for name, value in values.items()}, sync_dist=True, batch_size=len(batch[0])
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["net_sizes"] = self.net.sizes  # heads and depths leave no trace in the weights' shapes

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.optimizer(self.net.parameters())
        except (ValueError, TypeError, IndexError) as error:
            raise InputError(f"module.optimizer: {error}.") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}
