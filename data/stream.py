"""Orders the training samples as an endless stream that can be entered at any batch.

The stream holds all samples in the order of epoch 0, then all in the order of epoch 1, and so on. Batch `b` of a run
takes the stream's positions from `b * G` to `(b + 1) * G`, where `G` is the global batch size, and each rank takes its
own slice of them. So each epoch has every sample exactly once over all ranks and workers, no remainder is dropped (a
batch may hold the end of one epoch and the start of the next), and a resumed run starts at its batch without reading
the batches before it.

Samples are stored in packs. An epoch takes the packs in random order, several at a time (a pool), and shuffles the
samples of the pool. Tokenisation mixes the classes within each pack, so the result is as good as a shuffle of the whole
data set, and only a pool has to be in memory.

Shapes: `n` samples of a pack, `V` views of a sample, `L` tokens of a view, `B` samples of a batch.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
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
    """Stores samples in packs that are read one at a time."""

    sizes: np.ndarray  # (packs,), number of samples of each pack
    pack_bytes: int  # memory of a full pack

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token ids (n, V, L) and the class ids (n,) of a pack."""


class OnePack:
    """Offers token ids (n, V, L) and class ids (n,), in memory or mapped into it, as a single pack of `Packs`."""

    def __init__(self, token_ids: np.ndarray, class_ids: np.ndarray):
        self.samples = token_ids, class_ids
        self.sizes = np.array([len(class_ids)])
        self.pack_bytes = token_ids.nbytes

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        return self.samples


@dataclass
class StreamPositions(Sampler[range]):
    """Gives the stream positions of one rank, batch after batch, without end."""

    batch_size: int  # samples of a batch on this rank
    rank: int
    world_size: int
    first_batch: int  # number of the batch to start with

    def __iter__(self) -> Iterator[range]:
        for batch in count(self.first_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield range(start, start + self.batch_size)


class Pool(NamedTuple):
    """Holds some packs of an epoch in memory, and the random order, views and class dropout of their samples."""

    packs: list[tuple[np.ndarray, np.ndarray]]  # token ids (n, V, L) and class ids (n,) of each
    pack: np.ndarray  # pack of the sample at each place of the random order
    row: np.ndarray  # its place in the pack
    view: np.ndarray
    is_dropped: np.ndarray  # whether the sample loses its class


class TokenStream(Dataset[tuple[Tensor, Tensor]]):
    """Reads samples by their position in the stream.

    Args:
        packs: stores the samples.
        null_class_id: replaces the class ids that are dropped.
        class_dropout: share of the samples whose class is dropped; other samples in each epoch.
        seed: determines, with the number of the epoch, the order, the views and the class dropout.
        pool_bytes: memory of a pool. Where two pools meet, both are in memory.
        class_balance: 0 gives each sample once an epoch. With 1, samples are drawn so that all classes come equally
            often; with 0.5, a class comes as often as the root of its number of samples in the pool says.

    Raises:
        InputError: if there are no samples.
    """

    def __init__(
        self,
        packs: Packs,
        null_class_id: int,
        class_dropout: float,
        seed: int,
        pool_bytes: int = 2**27,
        class_balance: float = 0.0,
    ):
        self.size = int(packs.sizes.sum())
        if not self.size:
            raise InputError("data: there are no samples to train on.")
        self.packs = packs
        self.null_class_id = null_class_id
        self.class_dropout = class_dropout
        self.seed = seed
        self.class_balance = class_balance
        self.packs_per_pool = max(pool_bytes // packs.pack_bytes, 1)
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._pool = lru_cache(maxsize=2)(self._load_pool)

    def _draw_order(self, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Draws the order of the packs in an epoch; returns it, and the first sample of each pool and the end."""
        order = rng_for("order of packs", self.seed, epoch).permutation(len(self.packs.sizes))
        starts = np.cumsum([0, *self.packs.sizes[order]])[:-1]
        return order, [*starts[:: self.packs_per_pool].tolist(), self.size]

    def _load_pool(self, epoch: int, pool: int) -> Pool:
        numbers = self._order(epoch)[0][pool * self.packs_per_pool : (pool + 1) * self.packs_per_pool]
        rng = rng_for("order in a pool", self.seed, epoch, pool)
        sizes = self.packs.sizes[numbers]
        packs = [self.packs.read(int(number)) for number in numbers]
        order = rng.permutation(sizes.sum())
        if self.class_balance:
            class_ids = np.concatenate([class_ids for _, class_ids in packs])
            _, of_class, counts = np.unique(class_ids, return_inverse=True, return_counts=True)
            weights = counts[of_class] ** -float(self.class_balance)
            order = rng.choice(len(order), len(order), p=weights / weights.sum())
        return Pool(
            packs=packs,
            pack=np.repeat(np.arange(len(sizes)), sizes)[order],
            row=np.concatenate([np.arange(size) for size in sizes])[order],
            view=rng.integers(packs[0][0].shape[1], size=len(order)),
            is_dropped=rng.random(len(order)) < self.class_dropout,
        )

    def __getitems__(self, positions: range) -> tuple[Tensor, Tensor]:
        """Reads the samples at positions of the stream: token ids (B, L) and class ids (B,), both int64."""
        samples: list[tuple[np.ndarray, int]] = []
        while len(samples) < len(positions):
            epoch, start = divmod(positions[len(samples)], self.size)
            bounds = self._order(epoch)[1]
            number = bisect_right(bounds, start) - 1
            end = min(bounds[number + 1], start + len(positions) - len(samples))
            pool = self._pool(epoch, number)
            chosen = slice(start - bounds[number], end - bounds[number])
            for pack, row, view, is_dropped in zip(*(field[chosen].tolist() for field in pool[1:]), strict=True):
                token_ids, class_ids = pool.packs[pack]
                samples.append((token_ids[row, view], self.null_class_id if is_dropped else class_ids[row]))
        batch_token_ids, batch_class_ids = (np.array(values).astype(np.int64) for values in zip(*samples, strict=True))
        return torch.from_numpy(batch_token_ids), torch.from_numpy(batch_class_ids)


def per_device_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """Returns the batch size of one device and one of `accumulate` forward passes.

    Raises:
        InputError: if the global batch can't be divided evenly.
    """
    if batch_size % (world_size * accumulate):
        raise InputError(
            f"data.batch_size={batch_size}: expected a multiple of {world_size} devices x {accumulate} "
            "accumulated batches; it is the global batch."
        )
    return batch_size // (world_size * accumulate)
