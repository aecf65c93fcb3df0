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

from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import Annotated, NamedTuple, Protocol

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from enat.errors import InputError
from enat.randomness import rng_for


class Packs(Protocol):
    """Stores samples in packs that are read one at a time.

    Attributes:
        sizes: the number of samples of each pack, (packs,).
        pack_bytes: memory of a full pack.
    """

    sizes: np.ndarray
    pack_bytes: int

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token ids (n, V, L) and the class ids (n,) of a pack."""


class OnePack:
    """Offers samples in memory, or mapped into memory, as a single pack; implements `Packs`.

    Args:
        token_ids: (n, V, L).
        class_ids: (n,).
    """

    def __init__(self, token_ids: np.ndarray, class_ids: np.ndarray):
        self.token_ids = token_ids
        self.class_ids = class_ids
        self.sizes = np.array([len(class_ids)])
        self.pack_bytes = token_ids.nbytes

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        return self.token_ids, self.class_ids


class StreamPositions(Sampler[range]):
    """Gives the stream positions of one rank, batch after batch, without end.

    Args:
        batch_size: samples of a batch on this rank.
        rank: number of this rank.
        world_size: number of ranks.
        first_batch: number of the batch to start with.
    """

    def __init__(self, batch_size: int, rank: int, world_size: int, first_batch: int):
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.first_batch = first_batch

    def __iter__(self) -> Iterator[range]:
        for batch in count(self.first_batch):
            start = (batch * self.world_size + self.rank) * self.batch_size
            yield range(start, start + self.batch_size)


class Pool(NamedTuple):
    """Holds some packs of an epoch in memory, and the random order, views and class dropout of their samples.

    A sample's number counts the samples of the pool in the order in which they are stored. A sample's slot is its
    place in the random order.
    """

    packs: list[tuple[np.ndarray, np.ndarray]]  # token ids (n, V, L) and class ids (n,) of each
    starts: np.ndarray  # number of the first sample of each pack
    order: np.ndarray  # number of the sample at each slot
    view: np.ndarray  # view of the sample at each slot
    is_dropped: np.ndarray  # whether the sample at each slot loses its class

    def take(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns token ids (B, L), class ids (B,) and whether the class is dropped (B,) of the slots (B,)."""
        numbers = self.order[slots]
        pack_of_sample = np.searchsorted(self.starts, numbers, side="right") - 1
        first_token_ids = self.packs[0][0]
        token_ids = np.empty((len(slots), first_token_ids.shape[2]), dtype=first_token_ids.dtype)
        class_ids = np.empty(len(slots), dtype=np.int64)
        for pack in np.unique(pack_of_sample):
            is_in_pack = pack_of_sample == pack
            rows = numbers[is_in_pack] - self.starts[pack]
            pack_token_ids, pack_class_ids = self.packs[pack]
            token_ids[is_in_pack] = pack_token_ids[rows, self.view[slots[is_in_pack]]]
            class_ids[is_in_pack] = pack_class_ids[rows]
        return token_ids, class_ids, self.is_dropped[slots]


class TokenStream(Dataset[tuple[Tensor, Tensor]]):
    """Reads samples by their position in the stream.

    Args:
        packs: stores the samples.
        null_class_id: replaces the class ids that are dropped.
        class_dropout: share of the samples whose class is dropped; other samples in each epoch.
        seed: determines, with the number of the epoch, the order, the views and the class dropout.
        pool_bytes: memory of a pool. Where two pools meet, both are in memory.

    Raises:
        InputError: if there are no samples.
    """

    def __init__(
        self,
        packs: Packs,
        null_class_id: int,
        class_dropout: Annotated[float, Ge(0), Le(1)],
        seed: int,
        pool_bytes: int = 2**27,
    ):
        self.size = int(packs.sizes.sum())
        if not self.size:
            raise InputError("data: there are no samples to train on.")
        self.packs = packs
        self.null_class_id = null_class_id
        self.class_dropout = class_dropout
        self.seed = seed
        self.packs_per_pool = max(pool_bytes // packs.pack_bytes, 1)
        self._order = lru_cache(maxsize=2)(self._draw_order)
        self._pool = lru_cache(maxsize=2)(self._load_pool)

    def _draw_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws the order of the packs in an epoch; returns it and the epoch's slot at which each pool starts."""
        order = rng_for("order of packs", self.seed, epoch).permutation(len(self.packs.sizes))
        ends = np.cumsum(self.packs.sizes[order])
        return order, np.concatenate([[0], ends[self.packs_per_pool - 1 : -1 : self.packs_per_pool]])

    def _load_pool(self, epoch: int, pool: int) -> Pool:
        order, _ = self._order(epoch)
        packs_of_pool = order[pool * self.packs_per_pool : (pool + 1) * self.packs_per_pool]
        rng = rng_for("order in a pool", self.seed, epoch, pool)
        sizes = self.packs.sizes[packs_of_pool]
        size = int(sizes.sum())
        packs = [self.packs.read(int(pack)) for pack in packs_of_pool]
        return Pool(
            packs=packs,
            starts=np.cumsum(sizes) - sizes,
            order=rng.permutation(size),
            view=rng.integers(packs[0][0].shape[1], size=size),
            is_dropped=rng.random(size) < self.class_dropout,
        )

    def __getitems__(self, positions: range) -> tuple[Tensor, Tensor]:
        """Reads the samples at positions of the stream: token ids (B, L) and class ids (B,), both int64."""
        epochs, slots = np.divmod(np.asarray(positions), self.size)
        pieces = []
        for epoch in range(epochs[0], epochs[-1] + 1):
            slots_of_epoch = slots[epochs == epoch]
            _, starts = self._order(epoch)
            pools = np.searchsorted(starts, slots_of_epoch, side="right") - 1
            for pool in range(pools[0], pools[-1] + 1):
                slots_of_pool = slots_of_epoch[pools == pool] - starts[pool]
                pieces.append(self._pool(epoch, int(pool)).take(slots_of_pool))
        token_ids, class_ids, is_dropped = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        class_ids[is_dropped] = self.null_class_id
        return torch.from_numpy(token_ids.astype(np.int64)), torch.from_numpy(class_ids)


def per_device_batch(batch_size: int, world_size: int, accumulate: int) -> int:
    """Returns the batch size of one device and one forward pass.

    Args:
        batch_size: global batch size of an optimiser step.
        world_size: number of devices.
        accumulate: number of accumulated batches.

    Raises:
        InputError: if the global batch can't be divided evenly.
    """
    if batch_size % (world_size * accumulate):
        raise InputError(
            f"data.batch_size={batch_size}: expected a multiple of {world_size} devices x {accumulate} "
            "accumulated batches; it is the global batch."
        )
    return batch_size // (world_size * accumulate)
