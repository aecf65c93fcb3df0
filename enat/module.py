"""The LightningModule: mask, forward, loss, optimiser. Shapes: `B` batch, `L` tokens, `M` masked, `K` codebook."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from enat.checkpoints.names import split_blocks
from enat.compilation import compile_blocks
from enat.errors import InputError
from enat.flops import training_flops
from enat.masking import Partition, RandomMasking
from enat.net import ENAT
from enat.prediction import predict
from enat.randomness import rng_for, seed_default_generator
from enat.training.module import AveragedModule

Batch = tuple[Tensor, Tensor]  # token ids (B, L) and class ids (B,)


class MaskedTokenModule(AveragedModule):
    """Trains a network to predict masked tokens (docs/method.md, Masking, Loss, Reuse in training).

    The global batch consists of groups of equal size, each with its own mask ratio, reuse and dropout. Random numbers
    depend on seed, group and step alone. A resumed run repeats them and, if `mask_groups` is set, so does a run on
    another number of devices.

    Args:
        net: the network.
        masking: draws a partition of the tokens, see `enat.masking.RandomMasking`.
        loss: callable on logits (B, M, K) and targets (B, M).
        optimizer, scheduler: see `AveragedModule`.
        mask_groups: number of groups. None makes one group for each device and accumulated batch, as the official
            program does on its 16 devices; `mask_groups=16` repeats its recipe on fewer.
        seed: the seed of masks, reuse and dropout.
        cache_from_ema: whether the EMA network computes the cached features (official recipe), or the network itself.
        compile: whether torch compiles the blocks.
    """

    net: ENAT
    groups_per_batch: int  # set by `on_fit_start`

    def __init__(
        self,
        net: ENAT,
        masking: RandomMasking,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        mask_groups: Annotated[int, Ge(1)] | None = None,
        seed: int = 0,
        cache_from_ema: bool = True,
        compile: bool = False,
    ):
        super().__init__(net, optimizer, scheduler)
        self.masking = masking
        self.loss = loss
        self.mask_groups = mask_groups
        self.seed = seed
        self.cache_from_ema = cache_from_ema
        self.is_compiled = compile
        self.partitions: list[Partition] = []  # of the groups of the last training batch

    def summary_rows(self) -> dict[str, str]:
        groups = self.groups_per_batch * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return {"mask groups": str(groups)}

    def batch_flops(self, batch: Batch) -> int:
        group_size = len(batch[0]) // len(self.partitions)
        return sum(training_flops(self.net, partition.counts, group_size) for partition in self.partitions)

    def current_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return split_blocks(state, self.net.encoder_depth)

    def on_fit_start(self) -> None:
        if self.cache_from_ema and self.ema_net is None and self.masking.reuse_prob:
            raise InputError("callbacks.ema=null: expected module.cache_from_ema=false, for there is no EMA network.")
        batches = self.trainer.world_size * self.trainer.accumulate_grad_batches  # of a step, on all devices
        groups = self.mask_groups or batches
        if groups % batches:
            raise InputError(f"module.mask_groups={groups}: expected a multiple of {batches}, the batches of a step.")
        self.groups_per_batch = groups // batches
        if self.is_compiled:
            compile_blocks(self.net, self.averaged_net)

    def group_loss(self, net: ENAT, batch: Batch, partition: Partition) -> dict[str, Tensor]:
        """Computes the loss of one group, and the accuracy on masked tokens and the mask ratio for the logs."""
        cache_net = self.averaged_net if self.cache_from_ema else net  # docs/method.md, Reuse in training
        logits, targets = predict(net, cache_net, *batch, partition)
        return {
            "loss": self.loss(logits, targets),
            "accuracy": (logits.detach().argmax(dim=2) == targets).float().mean(),
            "mask_ratio": torch.full((), targets.numel() / batch[0].numel(), device=targets.device),
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if len(batch[0]) % self.groups_per_batch:
            raise InputError(f"module.mask_groups={self.mask_groups}: expected a divisor of data.batch_size.")
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        # A step numbers its groups over accumulated batches and devices, so that other numbers of these draw the same.
        first_group = (micro_batch * self.trainer.world_size + self.global_rank) * self.groups_per_batch
        groups: list[dict[str, Tensor]] = []
        self.partitions = []
        token_ids, class_ids = (tensor.chunk(self.groups_per_batch) for tensor in batch)
        for group, rows in enumerate(zip(token_ids, class_ids, strict=True), first_group):
            rng = rng_for("training", self.seed, group, self.global_step, 0)  # 0 keeps the numbers of older versions
            seed_default_generator(self.device, int(rng.integers(2**63)))  # for dropout
            self.partitions.append(self.masking(rng, len(rows[0]), self.net.num_tokens, self.device))
            groups.append(self.group_loss(self.net, rows, self.partitions[-1]))
        # For the logs (`callbacks.training_log`).
        self.group_values = [{name: value.detach() for name, value in values.items()} for values in groups]
        return torch.stack([values["loss"] for values in groups]).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        batch_number = batch_idx * self.trainer.world_size + self.global_rank
        rng = rng_for("validation", self.seed, 0, batch_number)  # the same masks every time, on any number of devices
        partition = self.masking(rng, len(batch[0]), self.net.num_tokens, self.device)
        values = self.group_loss(self.averaged_net, batch, partition)
        self.log_dict({f"val/{name}": x for name, x in values.items()}, sync_dist=True, batch_size=len(batch[0]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["net_sizes"] = self.net.sizes  # weights do not show the number of heads
