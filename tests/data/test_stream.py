"""The stream of training samples: every sample once per epoch, any start, no two ranks alike."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.stream import StreamPositions, TokenStream, per_device_batch
from enat.errors import InputError


def stream(size, seed=0, class_dropout=0.0):
    ids = torch.arange(size)
    return TokenStream(ids[:, None].expand(-1, 4), ids, null_class_id=-1, class_dropout=class_dropout, seed=seed)


@given(size=st.integers(1, 40), batch=st.integers(1, 7), world=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_epoch_has_each_sample_once(size, batch, world, seed):
    samples = stream(size, seed)
    batches = -(-3 * size // (batch * world))
    seen = [None] * (batches * world * batch)
    for rank in range(world):
        for index, positions in enumerate(islice(StreamPositions(batch, rank, world, 0), batches)):
            start = (index * world + rank) * batch
            seen[start : start + batch] = samples.__getitems__(positions)[1].tolist()
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return stream(50, seed).__getitems__(list(range(50 * epoch, 50 * epoch + 50)))[1].tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(first=st.integers(0, 30), rank=st.integers(0, 1))
def test_any_batch_can_be_the_first(first, rank):
    whole = islice(StreamPositions(3, rank, 2, 0), first, first + 5)
    assert list(whole) == list(islice(StreamPositions(3, rank, 2, first), 5))


def test_class_dropout_has_its_share_and_moves():
    samples = stream(20_000, class_dropout=0.15)
    tokens, classes = samples.__getitems__(list(range(40_000)))
    dropped = classes == -1
    assert abs(dropped.double().mean() - 0.15) < 0.01
    assert torch.equal(classes[~dropped], tokens[~dropped, 0])
    first, second = (set(tokens[i : i + 20_000, 0][dropped[i : i + 20_000]].tolist()) for i in (0, 20_000))
    assert abs(len(first & second) / 20_000 - 0.15**2) < 0.01


def test_global_batch_is_divided_or_refused():
    assert per_device_batch(48, 4, 3) == 4
    with pytest.raises(InputError, match=r"data\.batch_size=50: expected a multiple of 4 devices x 3"):
        per_device_batch(50, 4, 3)
