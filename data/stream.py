"""An endless, resumable order of training samples.

A run sees one long stream: all samples in the order of epoch 0, then in that of epoch 1, and so on. Batch `b` of a
run takes the stream's positions [b G, (b+1) G), G being the global batch, and each rank its own slice of them. So each
epoch has every sample exactly once over all ranks and workers, no remainder is dropped (a batch may straddle two
epochs), and any batch can be the first without reading those before.

Samples lie in packs. An epoch takes the packs in random order, a pool of them at a time, and shuffles within the pool:
with packs of mixed samples that is as good as a shuffle of all, and memory stays that of a pool.

Shapes: `n` samples of a pack, `V` views of a sample, `L` tokens of a view, `B` batch.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from enat.errors import InputError
from enat.randomness import rng_for


class Packs(Protocol):
    """Samples in packs that are read one at a time."""

    sizes: np.ndarray  # (packs,), samples of each
    pack_bytes: int  # of a full pack, in memory

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, V, L) and class ids (n,) of a pack."""


class OnePack:
    """Samples that are in memory, or mapped into it, as a single pack: token ids (n, V, L), class ids (n,)."""

    def __init__(self, token_ids: np.ndarray, class_ids: np.ndarray):
        self.token_ids, self.class_ids = token_ids, class_ids
        self.sizes, self.pack_bytes = np.array([len(class_ids)]), token_ids.nbytes

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        return self.token_ids, self.class_ids


class StreamPositions(Sampler[range]):
    """The stream's positions that one rank computes, batch after batch, without end.

    Args:
        batch_size: samples per batch on this rank.
        rank, world_size: which of how many.
        first_batch: where to start.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, first_batch: int):
        self.batch_size, self.rank, self.world_size, self.first_batch = batch_size, rank, world_size, first_batch

    def __iter__(self) -> Iterator[range]:
        for batch in count(self.first_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield range(start, start + self.batch_size)


class Pool(NamedTuple):
    """Some packs in memory, and the order, views and dropped classes of their samples in an epoch."""

    parts: list[tuple[np.ndarray, np.ndarray]]
    starts: np.ndarray  # of each part among the samples of the pool
    order: np.ndarray
    view: np.ndarray
    dropped: np.ndarray

    def take(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids (B, L), class ids (B,) and whether the class is dropped (B,), at slots (B,) of the order."""
        samples = self.order[slots]
        part = np.searchsorted(self.starts, samples, side="right") - 1
        token_ids = np.empty((len(slots), self.parts[0][0].shape[2]), dtype=self.parts[0][0].dtype)
        class_ids = np.empty(len(slots), dtype=np.int64)
        for number in np.unique(part):
            chosen = part == number
            rows = samples[chosen] - self.starts[number]
            token_ids[chosen] = self.parts[number][0][rows, self.view[slots[chosen]]]
            class_ids[chosen] = self.parts[number][1][rows]
        return token_ids, class_ids, self.dropped[slots]


class TokenStream(Dataset[tuple[Tensor, Tensor]]):
    """Samples by their position in the stream.

    Args:
        packs: where the samples lie.
        null_class_id: replaces a share of the class ids, drawn anew in each epoch.
        class_dropout: that share.
        seed: order, views and dropout are functions of it and the epoch.
        pool_bytes: memory of a pool; two of them may be held at a time.

    Raises:
        InputError: if there are no samples, or for a share out of range.
    """

    def __init__(self, packs: Packs, null_class_id: int, class_dropout: float, seed: int, pool_bytes: int = 2**27):
        if not 0 <= class_dropout <= 1:
            raise InputError(f"data.class_dropout={class_dropout}: expected a share between 0 and 1.")
        self.size = int(packs.sizes.sum())
        if not self.size:
            raise InputError("data: there are no samples to train on.")
        self.packs, self.null_class_id, self.class_dropout, self.seed = packs, null_class_id, class_dropout, seed
        self.pool_packs = max(pool_bytes // packs.pack_bytes, 1)
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._pool = lru_cache(maxsize=2)(self._load_pool)

    def _draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The packs of an epoch in order, and the slot at which each of its pools starts."""
        order = rng_for("order of packs", self.seed, epoch).permutation(len(self.packs.sizes))
        ends = np.cumsum(self.packs.sizes[order])
        return order, np.concatenate([[0], ends[self.pool_packs - 1 : -1 : self.pool_packs]])

    def _load_pool(self, epoch: int, number: int) -> Pool:
        order, _ = self._order(epoch)
        chosen = order[number * self.pool_packs : (number + 1) * self.pool_packs]
        rng = rng_for("order in a pool", self.seed, epoch, number)
        sizes = self.packs.sizes[chosen]
        size = int(sizes.sum())
        parts = [self.packs.read(int(pack)) for pack in chosen]
        return Pool(
            parts=parts,
            starts=np.cumsum(sizes) - sizes,
            order=rng.permutation(size),
            view=rng.integers(parts[0][0].shape[1], size=size),
            dropped=rng.random(size) < self.class_dropout,
        )

    def __getitems__(self, positions: range) -> tuple[Tensor, Tensor]:
        """Positions of the stream -> token ids (B, L) and class ids (B,), both int64."""
        epochs, slots = np.divmod(np.asarray(positions), self.size)
        pieces = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            slots_of_epoch = slots[epochs == epoch]
            _, starts = self._order(epoch)
            pools = np.searchsorted(starts, slots_of_epoch, side="right") - 1
            for number in range(pools[0], pools[-1] + 1):
                chosen = slots_of_epoch[pools == number] - starts[number]
                pieces.append(self._pool(epoch, int(number)).take(chosen))
        token_ids, class_ids, dropped = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        class_ids[dropped] = self.null_class_id
        return torch.from_numpy(token_ids.astype(np.int64)), torch.from_numpy(class_ids)


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
