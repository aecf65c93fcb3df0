"""Masks: sizes, positions, distributions, schedules."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from enat.masking import RandomMasking, num_masked
from enat.schedules import cosine


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 70), st.floats(0, 1))
def test_partition_is_a_permutation(seed, batch, num_tokens, reuse_prob):
    part = RandomMasking(reuse_prob=reuse_prob)(np.random.default_rng(seed), batch, num_tokens)
    pieces = [piece for piece in part if piece is not None]
    assert torch.equal(torch.cat(pieces, dim=1).sort(dim=1).values, torch.arange(num_tokens).expand(batch, -1))
    assert 1 <= part.masked.shape[1] <= num_tokens - 1


@given(st.floats(0, 1), st.integers(2, 5000))
def test_num_masked_is_the_nearest_allowed(ratio, num_tokens):
    count = num_masked(ratio, num_tokens)
    assert 1 <= count <= num_tokens - 1
    assert abs(count - np.clip(ratio * num_tokens, 1, num_tokens - 1)) <= 0.5 + 1e-3


def test_distributions():
    rng = np.random.default_rng(0)
    draws = [RandomMasking()(rng, 2, 1000) for _ in range(2000)]
    ratios = [part.masked.shape[1] / 1000 for part in draws]
    assert stats.kstest(ratios, stats.beta(12, 3).cdf).pvalue > 1e-3
    reused = [part for part in draws if part.cached is not None]
    assert abs(len(reused) / 2000 - 0.5) < 0.04
    shares = [part.new.shape[1] / (1000 - part.masked.shape[1]) for part in reused]
    assert stats.kstest(shares, "uniform").pvalue > 1e-3
    frequency = torch.zeros(1000)
    for part in draws:
        frequency[part.masked[0]] += 1
    expected = sum(ratios) / 2000
    assert ((frequency / 2000 - expected).abs() < 6 * (expected * (1 - expected) / 2000) ** 0.5).all()
    assert not torch.equal(draws[0].masked[0], draws[0].masked[1])


def test_only_the_seed_decides():
    torch.manual_seed(1)
    first = RandomMasking()(np.random.default_rng(5), 4, 30)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = RandomMasking()(np.random.default_rng(5), 4, 30)
    third = RandomMasking()(np.random.default_rng(6), 4, 30)
    assert torch.equal(first.masked, second.masked)
    assert not (first.masked.shape == third.masked.shape and torch.equal(first.masked, third.masked))
    assert torch.equal(state, torch.get_rng_state())


def test_cosine_is_float64():
    """Float32 gets these two cases wrong."""
    assert int(256 * cosine(2 / 3)) == 128
    assert 0 <= cosine(1.0) < 1e-15
