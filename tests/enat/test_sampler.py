"""The sampler on a network with known logits: what is drawn, what is revealed, what is computed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_net import K, KnownNet, L, make

from enat.errors import InputError
from enat.schedules import constant, cosine, falling, rising


@given(st.integers(1, 40), st.integers(2, 300), st.sampled_from([cosine, falling]))
def test_mask_counts_fall_to_zero(num_steps, num_tokens, schedule):
    counts = make(num_steps=num_steps, mask_schedule=schedule).mask_counts(num_tokens)
    assert len(counts) == num_steps
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0
    assert counts[0] < num_tokens


def test_official_mask_counts():
    """floor(L cos(pi r / 2)) by exact arithmetic where it is a whole number."""
    assert make(num_steps=3).mask_counts(256) == [221, 128, 0]
    assert make(num_steps=8).mask_counts(256) == [math.floor(256 * math.cos(math.pi * s / 16)) for s in range(1, 8)] + [
        0
    ]


def test_greedy_result_is_the_guided_argmax():
    """Without noise, each token is the argmax under the guidance of the step that reveals it."""
    net, record = KnownNet(), []
    classes = torch.tensor([0, 1])
    tokens = make()(net, classes, record=record)
    states = [*record, tokens]
    for step in range(4):
        guided = net.table[classes] + 2.0 * step / 4 * (net.table[classes] - net.table[2])
        newly = (states[step] == K) & (states[step + 1] != K)
        assert torch.equal(tokens[newly], guided.argmax(2)[newly])
        confidence = guided.log_softmax(2).amax(2).masked_fill(states[step] != K, torch.inf)
        left = confidence.masked_fill(states[step + 1] != K, -torch.inf).amax(1)
        assert (left <= confidence.masked_fill(~newly, torch.inf).amin(1)).all()  # the least confident stay masked
        kept = states[step] != K
        assert torch.equal(states[step + 1][kept], states[step][kept])  # visible tokens never change


def test_only_needed_work_is_done():
    """No unconditional branch in a first step without guidance, nor ever without guidance; each token encoded once."""
    net = KnownNet()
    make()(net, torch.tensor([0, 1]))
    assert [len(call[0]) for call in net.calls] == [2, 4, 4, 4]
    counts = make().mask_counts(L)
    assert [call[2].shape[1] for call in net.calls] == [L, *counts[:-1]]
    assert [call[1].shape[1] for call in net.calls] == [0, L - counts[0], counts[0] - counts[1], counts[1] - counts[2]]
    net = KnownNet()
    make(guidance_scale=0.0)(net, torch.tensor([0, 1]))
    assert [len(call[0]) for call in net.calls] == [2] * 4
    net = KnownNet()
    make(guidance_schedule=constant)(net, torch.tensor([0, 1]))
    assert [len(call[0]) for call in net.calls] == [4] * 4


def test_draws_follow_the_softmax():
    """One step without reordering: tokens are drawn from softmax(logits / temperature)."""
    net = KnownNet()
    sampler = make(num_steps=1, guidance_scale=0.0, sampling_temperature=2.0, sampling_temperature_schedule=constant)
    tokens = sampler(net, torch.zeros(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    frequency = torch.nn.functional.one_hot(tokens, K).double().mean(0)  # (L, K)
    expected = (net.table[0].log_softmax(-1) / 2.0).softmax(-1)
    assert (frequency - expected).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_gumbel_temperature_changes_the_order_only():
    """With a huge one, which tokens are revealed first is uniform: each position equally often."""
    net, record = KnownNet(scale=3.0), []
    sampler = make(num_steps=2, guidance_scale=0.0, gumbel_temperature=1e6, mask_schedule=falling)
    sampler(net, torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0), record)
    share = (record[1] != K).double().mean(0)
    assert (share - 0.5).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_generator_decides(small_net):
    sampler = make(sampling_temperature=6.0, gumbel_temperature=1.5)
    classes = torch.tensor([0, 1, 4])
    draw = [sampler(small_net, classes, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert draw[0].min() >= 0
    assert draw[0].max() < small_net.codebook_size


@pytest.mark.slow
def test_compiled_steps_draw_the_same(small_net):
    classes = torch.tensor([0, 1, 4])
    settings = {"num_steps": 3, "sampling_temperature": 6.0, "gumbel_temperature": 1.5}
    plain, compiled = (make(**settings, compile=compile) for compile in (False, True))
    torch._dynamo.utils.counters.clear()
    for seed in (0, 1):  # each step once: the second call finds all of them
        expected = plain(small_net, classes, torch.Generator().manual_seed(seed))
        assert torch.equal(compiled(small_net, classes, torch.Generator().manual_seed(seed)), expected)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_several_generators_share_the_rows(small_net):
    """Each makes of its rows what it would make of them alone."""
    sampler = make(sampling_temperature=30.0, gumbel_temperature=1.5)
    classes = torch.tensor([0, 1, 4, 2, 3, 3])
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    together = sampler(small_net, classes, generators)
    for seed, rows in enumerate(classes.split(2)):
        alone = sampler(small_net, rows, torch.Generator().manual_seed(seed))
        assert torch.equal(together[2 * seed : 2 * seed + 2], alone)
    assert len({tuple(ids.tolist()) for ids in together}) == 6


@pytest.mark.parametrize("schedule", [rising, constant])
def test_a_mask_schedule_must_fall(schedule):
    with pytest.raises(InputError, match=r"mask_schedule=.*: expected one that falls from 1 to 0"):
        make(mask_schedule=schedule)
