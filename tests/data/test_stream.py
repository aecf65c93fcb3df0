"""The stream of training samples: every sample once per epoch, at any start, over any ranks."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.stream import OnePack, StreamPositions, TokenStream, per_device_batch
from enat.errors import InputError


class SmallPacks:
    """Stores packs of 7 samples with 2 views; the tokens of view v of sample n are n + 100,000 v."""

    pack_bytes = 7

    def __init__(self, size):
        self.samples = np.array_split(np.arange(size), -(-size // 7))
        self.sizes = np.array([len(pack) for pack in self.samples])

    def read(self, pack):
        ids = self.samples[pack]
        tokens = np.stack([ids, ids + 100_000], axis=1)[:, :, None].repeat(4, axis=2)
        return tokens.astype(np.uint32), ids.astype(np.uint16)


def stream(size, seed=0, class_dropout=0.0, pool_bytes=21):
    return TokenStream(
        SmallPacks(size), null_class_id=-1, class_dropout=class_dropout, seed=seed, pool_bytes=pool_bytes
    )


@given(
    size=st.integers(1, 60),
    batch=st.integers(1, 7),
    world=st.integers(1, 4),
    seed=st.integers(0, 99),
    pool_bytes=st.integers(1, 50),
)
def test_each_epoch_has_each_sample_once(size, batch, world, seed, pool_bytes):
    samples = stream(size, seed, pool_bytes=pool_bytes)
    batches = -(-3 * size // (batch * world))
    class_ids = [None] * (batches * world * batch)
    for rank in range(world):
        for index, positions in enumerate(islice(StreamPositions(batch, rank, world, 0), batches)):
            start = (index * world + rank) * batch
            class_ids[start : start + batch] = samples.__getitems__(positions)[1].tolist()
    for epoch in range(3):
        assert sorted(class_ids[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return stream(50, seed).__getitems__(range(50 * epoch, 50 * epoch + 50))[1].tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_views_are_drawn_at_random():
    first, second = (stream(5000).__getitems__(range(start, start + 5000))[0][:, 0] for start in (0, 5000))
    assert abs((first >= 100_000).double().mean() - 0.5) < 0.04
    views = [dict(zip((x % 100_000).tolist(), (x >= 100_000).tolist(), strict=True)) for x in (first, second)]
    same = sum(views[0][sample] == views[1][sample] for sample in range(5000)) / 5000
    assert abs(same - 0.5) < 0.04


def test_small_pools_mix_packs_and_bound_memory():
    samples = stream(700, pool_bytes=70)
    reads = []
    read = samples.packs.read
    samples.packs.read = lambda pack: reads.append(pack) or read(pack)
    for start in range(0, 1400, 10):
        samples.__getitems__(range(start, start + 10))
    assert len(reads) == 200  # each pack once per epoch
    first = samples.__getitems__(range(70))[1]
    assert len(set((first // 7).tolist())) == 10  # a pool of ten packs ...
    assert (first.diff() == 1).sum() < 10  # ... well mixed


@given(first=st.integers(0, 30), rank=st.integers(0, 1))
def test_any_batch_can_be_the_first(first, rank):
    whole = islice(StreamPositions(3, rank, 2, 0), first, first + 5)
    assert list(whole) == list(islice(StreamPositions(3, rank, 2, first), 5))


def test_class_dropout_has_its_share_and_moves():
    samples = stream(20_000, class_dropout=0.15, pool_bytes=3000)
    tokens, classes = samples.__getitems__(range(40_000))
    dropped = classes == -1
    assert abs(dropped.double().mean() - 0.15) < 0.01
    assert torch.equal(classes[~dropped], tokens[~dropped, 0] % 100_000)
    first, second = (set((tokens[i : i + 20_000, 0] % 100_000)[dropped[i : i + 20_000]].tolist()) for i in (0, 20_000))
    assert abs(len(first & second) / 20_000 - 0.15**2) < 0.01


def test_global_batch_is_divided_or_refused():
    assert per_device_batch(48, 4, 3) == 4
    with pytest.raises(InputError, match=r"data\.batch_size=50: expected a multiple of 4 devices x 3"):
        per_device_batch(50, 4, 3)


@pytest.mark.parametrize(("balance", "share"), [(0.0, 0.9), (0.5, 0.75), (1.0, 0.5), (1, 0.5)])
def test_classes_can_come_more_evenly(balance, share):
    """Of two classes with 900 and 100 samples; the root of the sizes is 30 and 10."""
    tokens = np.arange(1000, dtype=np.uint16).reshape(1000, 1, 1)
    packs = OnePack(tokens, np.repeat([0, 1], [900, 100]))
    drawn = TokenStream(packs, -1, class_dropout=0.0, seed=0, class_balance=balance).__getitems__(range(20_000))
    assert (drawn[1] == 0).float().mean().item() == pytest.approx(share, abs=0.02)
    again = TokenStream(packs, -1, class_dropout=0.0, seed=0, class_balance=balance).__getitems__(range(5_000, 5_100))
    assert torch.equal(again[0], drawn[0][5_000:5_100])
