"""An endless, resumable order of training samples.

A run sees one long stream: a permutation of the samples for epoch 0, one for epoch 1, and so on. Batch
`b` of a run takes the stream's positions [b G, (b+1) G), G being the global batch, and each rank its own
slice of them. So each epoch has every sample exactly once over all ranks, no remainder is dropped (a batch
may straddle two epochs), and any batch can be the first without reading those before.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from enat.errors import InputError


class StreamPositions(Sampler[list[int]]):
    """The stream's positions that one rank computes, batch after batch, without end.

    Args:
        batch_size: samples per batch on this rank.
        rank, world_size: which of how many.
        first_batch: where to start.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, first_batch: int):
        self.batch_size, self.rank, self.world_size, self.first_batch = batch_size, rank, world_size, first_batch

    def __iter__(self) -> Iterator[list[int]]:
        for batch in count(self.first_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(start, start + self.batch_size))


class TokenStream(Dataset[tuple[Tensor, Tensor]]):
    """Samples by their position in the stream.

    Args:
        token_ids: (samples, L).
        class_ids: (samples,).
        null_class_id: replaces a share of the class ids, drawn anew in each epoch.
        class_dropout: that share.
        seed: the order and the dropout are functions of it and the epoch.
    """

    def __init__(self, token_ids: Tensor, class_ids: Tensor, null_class_id: int, class_dropout: float, seed: int):
        if not 0 <= class_dropout <= 1:
            raise InputError(f"data.class_dropout={class_dropout}: expected a share between 0 and 1.")
        self.token_ids, self.class_ids = token_ids, class_ids
        self.null_class_id, self.class_dropout, self.seed = null_class_id, class_dropout, seed
        self.epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        size = len(self.class_ids)
        return rng.permutation(size), rng.random(size) < self.class_dropout

    def __getitems__(self, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Positions of the stream -> token ids (B, L) and class ids (B,), both int64."""
        draws = [self.epoch(position // len(self.class_ids)) for position in positions]
        slots = [position % len(self.class_ids) for position in positions]
        index = torch.tensor([order[slot] for (order, _), slot in zip(draws, slots, strict=True)])
        dropped = torch.tensor([drop[slot] for (_, drop), slot in zip(draws, slots, strict=True)])
        class_ids = self.class_ids[index].masked_fill(dropped, self.null_class_id)
        return self.token_ids[index].long(), class_ids.long()


def per_device_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """The batch of one device and one forward pass, from the global batch.

    Raises:
        InputError: if the global batch can't be divided so.
    """
    if batch_size < 1 or batch_size % (world_size * accumulate):
        raise InputError(
            f"data.batch_size={batch_size}: expected a multiple of {world_size} devices x {accumulate} "
            "accumulated batches; it is the global batch."
        )
    return batch_size // (world_size * accumulate)
