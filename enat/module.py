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
from enat.flops import training_flops
from enat.masking import RandomMasking
from enat.net import ENAT
from enat.randomness import rng_for, seed_default_generator

Batch = tuple[Tensor, Tensor]  # token ids (B, L) and class ids (B,)


class MaskedTokenModule(L.LightningModule):
    """Trains a network to predict masked tokens (SPEC 3).

    The global batch falls into groups of equal size, each with a mask ratio, a draw of reuse and dropout of its own.
    Every random number of a training step is a function of (seed, group, step): a resumed run draws what the
    uninterrupted one would have drawn, nothing that runs between two steps can change it, and any layout of devices
    and accumulated batches computes the same groups.

    Args:
        net: the network.
        masking: draws a partition of the tokens, see `enat.masking.RandomMasking`.
        loss: callable on logits (B, M, K) and targets (B, M).
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped once per step, from the optimiser.
        mask_groups: groups of the global batch; None for one per device and accumulated batch, as in the official
            program, whose recipe (16 devices) any smaller number of devices repeats with `mask_groups=16`.
        seed: of masks, reuse and dropout.
        cache_from_ema: whether the EMA network makes the cached features of a step with reuse, as in the
            official recipe; otherwise the network itself does, in training mode.
        compile: whether torch compiles the blocks, once for all of them and any number of tokens.

    Raises:
        InputError: when training starts, for a number of groups that the devices can't share.
    """

    ema_net: ENAT | None  # set by callbacks.EMA; no submodule, so that checkpoints and DDP leave it alone

    def __init__(
        self,
        net: ENAT,
        masking: RandomMasking,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        mask_groups: int | None = None,
        seed: int = 0,
        cache_from_ema: bool = True,
        compile: bool = False,
    ):
        super().__init__()
        self.net, self.masking, self.loss = net, masking, loss
        self.optimizer, self.scheduler = optimizer, scheduler
        self.mask_groups, self.seed = mask_groups, seed
        self.cache_from_ema, self.compile_blocks = cache_from_ema, compile
        self.window: list[dict[str, Tensor]] = []  # what the groups of a step gave
        self.flops = 0.0  # of the training steps so far, on this device
        self.__dict__["ema_net"] = None

    @property
    def averaged_net(self) -> ENAT:
        """The network that generates: the EMA network where there is one."""
        return self.net if self.ema_net is None else self.ema_net

    @property
    def logs_this_step(self) -> bool:
        """Whether the loggers see the step that is computed now."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def on_fit_start(self) -> None:
        if self.cache_from_ema and self.ema_net is None and self.masking.reuse_prob:
            raise InputError("callbacks.ema=null: expected module.cache_from_ema=false with it.")
        devices, accumulated = self.trainer.world_size, self.trainer.accumulate_grad_batches
        groups = devices * accumulated if self.mask_groups is None else self.mask_groups
        if groups < 1 or groups % (devices * accumulated):
            raise InputError(
                f"module.mask_groups={groups}: expected a multiple of {devices} devices x {accumulated} "
                "accumulated batches."
            )
        self.groups_here = groups // (devices * accumulated)
        if self.compile_blocks:
            self.compile_networks()

    def compile_networks(self) -> None:
        """Compiles the blocks of both networks, in place: the weights keep their names."""
        # One, or any number, of tokens; no, one, or any number of context tokens; with and without gradient, and in
        # inference mode.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * 3 * 3)
        torch._dynamo.config.optimize_ddp = False  # it would split the blocks, which are small enough to overlap
        for block in [*self.net.blocks, *self.averaged_net.blocks]:
            block.compile(dynamic=True)

    def predict_masked(self, net: ENAT, batch: Batch, rng: np.random.Generator) -> dict[str, Any]:
        """One masked prediction: loss, accuracy on masked tokens, and mask ratio."""
        token_ids, class_ids = batch
        part = self.masking(rng, token_ids.shape[0], token_ids.shape[1], token_ids.device)
        cached = None
        if net.training:
            self.flops += training_flops(net, part.counts, len(token_ids))
        if part.cached is not None:
            cache_net = self.averaged_net if self.cache_from_ema else net
            with torch.no_grad():
                cached = part.encode_cached(cache_net, token_ids, cache_net.condition(class_ids))
        logits, targets = part.predict(net, token_ids, net.condition(class_ids), cached)
        return {
            "loss": self.loss(logits, targets),
            "accuracy": (logits.detach().argmax(dim=2) == targets).float().mean(),
            "mask_ratio": torch.full((), targets.numel() / token_ids.numel(), device=token_ids.device),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if len(batch[0]) % self.groups_here:
            raise InputError(f"module.mask_groups={self.mask_groups}: expected a divisor of data.batch_size.")
        accumulated = self.trainer.accumulate_grad_batches
        micro_batch = batch_idx % accumulated
        first = (micro_batch * self.trainer.world_size + self.global_rank) * self.groups_here
        found = []
        for group, part in enumerate(zip(*(x.chunk(self.groups_here) for x in batch), strict=True), first):
            rng = rng_for("training", self.seed, group, self.global_step, 0)  # the 0 is of an older layout of the key
            seed_default_generator(self.device, int(rng.integers(2**63)))  # for dropout
            found.append(self.predict_masked(self.net, part, rng))
        if self.logs_this_step:
            self.window += [{name: value.detach() for name, value in one.items()} for one in found]
            if micro_batch == accumulated - 1:
                means = {f"train/{name}": torch.stack([one[name] for one in self.window]).mean() for name in found[0]}
                self.window.clear()
                self.log_dict(means, sync_dist=True)
                self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
                self.log("step", float(self.global_step + 1))  # the loggers' axis: optimiser steps done
        return torch.stack([one["loss"] for one in found]).mean() if len(found) > 1 else found[0]["loss"]

    def on_validation_epoch_end(self) -> None:
        self.log("step", float(self.global_step))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        block = batch_idx * self.trainer.world_size + self.global_rank
        rng = rng_for("validation", self.seed, 0, block)  # the same masks every time, on any number of devices
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
