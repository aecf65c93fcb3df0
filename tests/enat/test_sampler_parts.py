"""The parts of the sampler: orders, schedules, draws, guidance in an interval, corrections, options of an image."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_net import K, KnownNet, L, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from enat.corrections import ConfidenceRemasking, LeastConfident, Remasking, choose
from enat.draws import ImageOptions, likely
from enat.errors import InputError
from enat.flops import sampling_flops
from enat.orders import Candidates, Entropy, EntropyBound, Fixed, Halton, Moment, Random, radical_inverse
from enat.scheduler import TokenScheduler
from enat.schedules import arccos, constant, exponential, falling, interval, plateau, power_cosine

FOUR = {"num_steps": 4, "guidance_scale": 0.0, "mask_schedule": falling}  # reveals L/4 = 3 tokens in each step
CLASSES = torch.tensor([0, 1])


def revealed_in(net, **settings):
    """Returns, for each image and token, the step that reveals it, (B, L), and the tokens."""
    record = []
    tokens = make(**{**FOUR, **settings})(net, CLASSES, torch.Generator().manual_seed(0), record)
    states = torch.stack([*record, tokens])  # (T+1, B, L)
    return (states == K).sum(dim=0) - 1, tokens


# Orders


def test_a_fixed_order():
    positions = [3, 0, 1, 2, 11, 10, 9, 8, 4, 6, 5, 7]
    steps, _ = revealed_in(KnownNet(), order=Fixed(positions))
    assert steps[:, positions].tolist() == [[0] * 3 + [1] * 3 + [2] * 3 + [3] * 3] * 2


@pytest.mark.parametrize("positions", [[0, 1, 1], [1, 2, 3], []])
def test_a_fixed_order_has_each_position_once(positions):
    with pytest.raises(InputError, match=r"order\.positions: "):
        make(order=Fixed(positions))(KnownNet(), CLASSES)


def test_the_halton_sequence():
    """The first points are (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9)."""
    assert [radical_inverse(n, 2) for n in range(1, 6)] == [1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]
    assert [radical_inverse(n, 3) for n in range(1, 6)] == pytest.approx([1 / 3, 2 / 3, 1 / 9, 4 / 9, 7 / 9])
    positions = Halton().list_positions(16)  # rows by base 2, columns by base 3
    assert positions[:5] == [2 * 4 + 1, 1 * 4 + 2, 3 * 4 + 0, 0 * 4 + 1, 2 * 4 + 3]
    assert sorted(positions) == list(range(16))


@given(st.integers(1, 9), st.integers(1, 9))
def test_the_halton_order_is_an_order(height, width):
    assert sorted(Halton(height, width).list_positions(height * width)) == list(range(height * width))


def test_halton_spreads_tokens():
    """Each quarter of the image has as many of the first 16 of 64 tokens, within one."""
    first = Halton().list_positions(64)[:16]
    quarters = [(position // 8 >= 4) * 2 + (position % 8 >= 4) for position in first]
    assert all(abs(quarters.count(quarter) - 4) <= 1 for quarter in range(4))


def test_halton_needs_a_grid_of_the_tokens():
    with pytest.raises(InputError, match=r"order\.height=5 .*order\.width=3: expected sides of a grid of 12 tokens"):
        make(order=Halton(5, 3))(KnownNet(), CLASSES)


def test_entropy_reveals_what_is_sure():
    net = KnownNet(scale=3.0)
    steps, _ = revealed_in(net, order=Entropy())
    log_probs = net.table[CLASSES].log_softmax(2)
    entropies = -(log_probs.exp() * log_probs).sum(2)
    assert torch.equal(steps, entropies.argsort(1).argsort(1) // 3)


def test_the_random_order_ignores_the_network():
    """Each position is revealed in each step equally often, whatever the network thinks of it."""
    net = KnownNet(scale=9.0)
    record = []
    sampler = make(**{**FOUR, "order": Random()})
    tokens = sampler(net, torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0), record)
    first = (torch.stack([*record, tokens])[1] != K).double().mean(0)
    assert (first - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_the_moment_sampler_draws_from_the_powers():
    """Of one token revealed, position i and token x have a probability in proportion to q_i(x) p_i(x)^(1/g)."""
    net, count = KnownNet(scale=1.5), 40_000
    shares = [(L - 1) / L, 0.0]
    sampler = make(
        num_steps=2, guidance_scale=0.0, order=Moment(), mask_schedule=shares, gumbel_temperature=2.0,
        gumbel_temperature_schedule=constant, sampling_temperature=1.5, sampling_temperature_schedule=constant,
    )  # fmt: skip
    record = []
    sampler(net, torch.zeros(count, dtype=torch.long), torch.Generator().manual_seed(0), record)
    visible = record[1] != K
    assert visible.sum(1).eq(1).all()
    position = visible.long().argmax(1)
    token = record[1].gather(1, position[:, None])[:, 0]
    drawn = torch.bincount(position * K + token, minlength=L * K).view(L, K) / count
    log_p = net.table[0].log_softmax(1)
    expected = ((log_p / 1.5).log_softmax(1) + log_p / 2.0).exp()
    expected = expected / expected.sum()
    assert (drawn - expected).abs().max() < 5 * (expected.max() / count) ** 0.5


def test_the_entropy_bound_reveals_what_is_nearly_independent():
    entropies = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    bound = EntropyBound(0.35)
    assert bound.num_revealed(-entropies) == 3  # 0 + 0.1 + (0.1 + 0.2), and 0.6 would be too much
    assert EntropyBound(0.0).num_revealed(-entropies) == 1
    assert EntropyBound(9.0).num_revealed(-entropies) == 4


def test_the_entropy_bound_gives_each_image_its_numbers():
    """The same images one by one; each has what its entropies say, at least one token a step, and all in the end."""
    net, record = KnownNet(scale=2.0), []
    sampler = make(num_steps=4, guidance_scale=0.0, order=EntropyBound(1.0))
    tokens = sampler(net, CLASSES, [torch.Generator().manual_seed(seed) for seed in (0, 1)], record)
    assert (tokens != K).all()
    numbers = (torch.stack([*record, tokens]) == K).sum(2)  # (T+1, B)
    log_probs = net.table[CLASSES].log_softmax(2)
    entropies = (-log_probs.exp() * log_probs).sum(2).sort(1).values
    for row in range(2):
        left = entropies[row]
        for step in range(3):
            count = max(1, int(((left.cumsum(0) - left) <= 1.0).sum()))
            assert numbers[step, row] - numbers[step + 1, row] == min(count, len(left))
            left = left[count:]
        alone = sampler(net, CLASSES[row : row + 1], torch.Generator().manual_seed(row))
        assert torch.equal(alone[0], tokens[row])


def test_the_entropy_bound_takes_no_correction():
    with pytest.raises(InputError, match="order: EntropyBound takes no correction"):
        make(order=EntropyBound(1.0), correction=Remasking())
    with pytest.raises(InputError, match="operations can't be counted ahead"):
        sampling_flops(KnownNet(), make(order=EntropyBound(1.0)))


# Schedules


def test_schedules_by_their_formulas():
    assert [arccos(r) for r in (0, 0.5, 1)] == pytest.approx([1, 2 / 3, 0])
    assert [exponential(r) for r in (0, 0.5, 1)] == pytest.approx([1 - math.exp(-5), 1 - math.exp(-2.5), 0])
    assert [power_cosine(r, 2.0) for r in (0, 0.5, 1)] == pytest.approx([0, (1 - math.cos(math.pi / 4)) / 2, 1])
    assert [interval(r, 0.25, 0.5) for r in (0, 0.25, 0.4, 0.5, 0.51)] == [0, 1, 1, 1, 0]
    assert [plateau(r, falling, 0.4, 0.8) for r in (0, 0.4, 0.6, 0.8, 0.9, 1)] == pytest.approx(
        [1, 0.6, 0.6, 0.6, 0.3, 0]
    )


def test_the_values_that_autonat_found():
    """The values of AutoNAT for 8 steps, one for each step."""
    shares = [0.953165, 0.879541, 0.794023, 0.745996, 0.624979, 0.407322, 0.260659, 0.0]
    gumbel = [2.4049, 2.4776, 1.1917, 0.7685, 1.0673, 0.9354, 0.7844, 0.0]
    sampling = [2.8999, 1.8673, 1.1444, 1.3796, 1.4700, 1.3761, 1.7082, 0.7133]
    guidance = [0, 0, 0, 0.9151, 1.6160, 1.1946, 1.3832, 1.2268]
    sampler = make(
        num_steps=8, guidance_scale=1.0, sampling_temperature=1.0, gumbel_temperature=1.0, mask_schedule=shares,
        guidance_schedule=guidance, sampling_temperature_schedule=sampling, gumbel_temperature_schedule=gumbel,
    )  # fmt: skip
    assert sampler.mask_counts(256) == [244, 225, 203, 190, 159, 104, 66, 0]
    assert sampler.gumbel_temperatures == gumbel
    net, record = KnownNet(), []
    tokens = sampler(net, CLASSES, torch.Generator().manual_seed(0), record)
    assert (tokens != K).all()
    assert [len(call[0]) for call in net.calls] == [2, 2, 2, 2, 2, 4, 4, 4, 4]  # both branches, apart at first


@pytest.mark.parametrize("name", ["mask_schedule", "guidance_schedule", "gumbel_temperature_schedule"])
@pytest.mark.parametrize("values", [[0.5, 0.0], [0.9, 0.5, 0.1, math.nan]])
def test_a_list_has_a_value_for_each_step(name, values):
    with pytest.raises(InputError, match=rf"{name}=.*: expected a list of num_steps=4 finite numbers"):
        make(**{name: values})


# Draws


def test_the_most_likely_tokens():
    logits = torch.tensor([[[0.5, 0.2, 0.15, 0.1, 0.05]]]).log()
    assert likely(logits, None, None) is logits
    assert likely(logits, 2, None).isfinite().tolist() == [[[True, True, False, False, False]]]
    assert likely(logits, None, 0.7).isfinite().tolist() == [[[True, True, False, False, False]]]
    assert likely(logits, None, 0.71).isfinite().tolist() == [[[True, True, True, False, False]]]
    assert likely(logits, None, 0.01).isfinite().tolist() == [[[True, False, False, False, False]]]
    assert likely(logits, 3, 0.99).isfinite().tolist() == [[[True, True, True, False, False]]]
    assert likely(logits.flip(2), None, 0.7).isfinite().tolist() == [[[False, False, False, True, True]]]


def test_a_draw_of_the_most_likely_ones():
    net = KnownNet()
    settings = {
        "num_steps": 1,
        "sampling_temperature": 9.0,
        "sampling_temperature_schedule": constant,
        "guidance_scale": 0.0,
    }
    tokens = make(top_k=2, **settings)(net, torch.zeros(2000, dtype=torch.long), torch.Generator().manual_seed(0))
    best = net.table[0].topk(2, dim=1).indices  # (L, 2)
    assert (tokens[..., None] == best).any(2).all()
    assert all(set(tokens[:, i].tolist()) == set(best[i].tolist()) for i in range(L))


# Exact work of the branches, against an oracle that keeps nothing


class Watched:
    """Passes calls on to a network, and keeps the logits of each step by branch and position."""

    def __init__(self, net):
        self.net = net
        self.calls = []

    def __getattr__(self, name):
        return getattr(self.net, name)

    def __call__(self, token_ids, new, masked, modulations, cached_features=None):
        logits, features = self.net(token_ids, new, masked, modulations, cached_features)
        dense = torch.full((*token_ids.shape, logits.shape[2]), torch.nan)
        self.calls.append(dense.scatter(1, masked.unsqueeze(2).expand_as(logits), logits))
        return logits, features


def oracle(net, states, step, class_ids, fresh):
    """Computes the logits of a step from its tokens, of which those that were visible at `fresh` were encoded then."""
    modulations, features = net.modulations(class_ids), None
    visible_before = torch.zeros_like(states[0], dtype=torch.bool)
    for now in range(fresh, step + 1):
        is_visible = states[now] != net.mask_token_id
        is_new = is_visible & ~visible_before
        new = is_new.nonzero()[:, 1].view(len(class_ids), -1)
        features = net.encode(states[step].gather(1, new), new, modulations, features)
        visible_before = is_visible
    masked = (~visible_before).nonzero()[:, 1].view(len(class_ids), -1)
    logits = net.logits(net.decode(features, masked, modulations))
    dense = torch.full((*states[0].shape, logits.shape[2]), torch.nan)
    return dense.scatter(1, masked.unsqueeze(2).expand_as(logits), logits)


@torch.no_grad()
def test_guidance_in_an_interval_is_exact(small_net):
    """The conditional branch goes on as ever; the other encodes all visible tokens when it starts, twice here."""
    watched, record = Watched(small_net), []
    classes = torch.tensor([0, 3])
    scales = [0.0, 0.0, 2.0, 2.0, 0.0, 3.0]
    sampler = make(num_steps=6, guidance_scale=1.0, guidance_schedule=scales, gumbel_temperature=1.0)
    sampler(watched, classes, torch.Generator().manual_seed(0), record)
    null = torch.full_like(classes, small_net.null_class_id)
    calls = iter(watched.calls)
    for step, (scale, starts) in enumerate(zip(scales, [False, False, True, False, False, True], strict=True)):
        conditional = next(calls)
        unconditional = None
        if starts:
            unconditional = next(calls)
        elif scale:
            conditional, unconditional = conditional.chunk(2)
        torch.testing.assert_close(
            conditional, oracle(small_net, record, step, classes, 0), atol=1e-5, rtol=0, equal_nan=True
        )
        assert (unconditional is not None) == bool(scale)
        if scale:
            expected = oracle(small_net, record, step, null, 2 if step < 5 else 5)
            torch.testing.assert_close(unconditional, expected, atol=1e-5, rtol=0, equal_nan=True)
    assert not list(calls)


@torch.no_grad()
@pytest.mark.parametrize("recompute", [True, False])
def test_masking_again_is_exact_if_all_is_encoded_again(small_net, recompute):
    """With `recompute`, a step after a correction is as if nothing had been cached; without, it is not."""
    watched, record = Watched(small_net), []
    classes = torch.tensor([0, 3])
    settings = {"num_steps": 5, "guidance_scale": 0.0, "gumbel_temperature": 1.0, "mask_schedule": falling}
    sampler = make(**settings, correction=Remasking(cap=0.5, recompute=recompute))
    sampler(watched, classes, torch.Generator().manual_seed(0), record)
    differences = []
    for step in (2, 3, 4):
        expected = oracle(small_net, record, step, classes, step)
        assert torch.equal(watched.calls[step].isnan(), expected.isnan())
        differences.append((watched.calls[step] - expected).nan_to_num().abs().max())
    assert sampler.plan(small_net)[1].masked_again > 0
    assert max(differences) < 1e-5 if recompute else max(differences) > 1e-4


@pytest.mark.parametrize("correction", [Remasking(), Remasking(rescale=0.3, recompute=False), LeastConfident(cap=0.5)])
def test_the_numbers_of_a_correction(small_net, correction):
    """Of v visible tokens, with m left masked, min(cap, rescale min(1, m / v)) v are masked again."""
    record = []
    sampler = make(num_steps=6, guidance_scale=0.0, gumbel_temperature=1.0, correction=correction)
    tokens = sampler(small_net, torch.tensor([0, 3]), torch.Generator().manual_seed(0), record)
    states = torch.stack([*record, tokens]) == small_net.mask_token_id  # masked, (T+1, B, L)
    left = sampler.mask_counts(16)
    assert states[1:].sum(2).T.tolist() == [left, left]
    for step in range(6):
        visible = 16 - int(states[step, 0].sum())
        share = min(correction.cap, correction.rescale * min(1, left[step] / visible)) if visible else 0
        expected = round(share * visible)
        assert (states[step + 1] & ~states[step]).sum(1).tolist() == [expected, expected]
    assert (states[1:] & ~states[:-1]).any()


def test_who_is_masked_again():
    probabilities = torch.tensor([[0.9, 0.1, 0.5, math.nan]])
    may_change = probabilities.isfinite()
    chosen, kept = choose(LeastConfident().scores(probabilities, torch.zeros(1, 4)), may_change, 2)
    assert chosen.tolist() == [[1, 2]]
    assert kept.tolist() == [[0, 3]]
    noise = torch.distributions.Gumbel(0, 1).sample((40_000, 3))
    scores = ConfidenceRemasking().scores(torch.tensor([0.9, 0.1, 0.5]).expand(40_000, 3), noise)
    frequency = torch.bincount(scores.argmax(1), minlength=3) / 40_000
    expected = torch.softmax(-torch.tensor([0.9, 0.1, 0.5]), 0)
    assert (frequency - expected).abs().max() < 5 * (0.25 / 40_000) ** 0.5


def test_the_loop_of_remdm(small_net):
    """Between the ends of a plateau, as many tokens are shown as are masked again."""
    record = []
    sampler = make(
        num_steps=10, guidance_scale=0.0, mask_schedule=lambda r: plateau(r, falling, 0.4, 0.8),
        correction=Remasking(cap=0.3, start=0.45, end=0.85), gumbel_temperature=1.0,
    )  # fmt: skip
    sampler(small_net, torch.tensor([0]), torch.Generator().manual_seed(0), record)
    plan = sampler.plan(small_net)
    assert [step.masked for step in plan] == [16, 14, 12, 11, 9, 9, 9, 9, 9, 4]
    assert [step.masked_again for step in plan] == [0, 0, 0, 0, 2, 2, 2, 2, 0, 0]
    assert [step.revealed for step in plan][4:8] == [2, 2, 2, 2]


# Operations


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_schedule": [0.0, 0.0, 1.0, 0.0, 1.0]},
        {"guidance_schedule": [0.0, 1.0, 0.0, 0.0, 0.0]},
        {"correction": Remasking(cap=0.5)},
        {"correction": LeastConfident(recompute=False)},
        {"correction": Remasking(), "reuse_share": 0.5, "order": Halton()},
        {"order": Moment(), "top_k": 3, "mask_schedule": exponential},
    ],
    ids=["guided in parts", "guided once", "recomputed", "stale", "half reused", "moment"],
)
def test_operations_are_those_that_torch_counts(small_net, settings):
    sampler = make(**{"num_steps": 5, "gumbel_temperature": 1.0, **settings})
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler(small_net, torch.tensor([0, 3, 1]), torch.Generator().manual_seed(0))
    assert counter.get_total_flops() == 3 * sampling_flops(small_net, sampler)


# Given tokens, and options of an image


@pytest.mark.parametrize(
    "settings",
    [{}, {"correction": Remasking()}, {"order": EntropyBound(2.0)}],
    ids=["default", "correction", "adaptive"],
)
def test_given_tokens_stay(small_net, settings):
    generator = torch.Generator().manual_seed(0)
    is_given = torch.rand(2, 16, generator=generator).argsort(1) < 7
    tokens = torch.randint(12, (2, 16), generator=generator)
    record = []
    sampler = make(gumbel_temperature=1.0, sampling_temperature=1.0, **settings)
    drawn = sampler(
        small_net, torch.tensor([0, 3]), generator, record, given=tokens.where(is_given, small_net.mask_token_id)
    )
    for state in [*record, drawn]:
        assert torch.equal(state[is_given], tokens[is_given])
    assert (drawn < 12).all()


def test_given_tokens_are_as_many_in_each_image(small_net):
    tokens = torch.full((2, 16), small_net.mask_token_id)
    tokens[0, 0] = 1
    with pytest.raises(InputError, match="given: expected as many masked tokens in each image"):
        make()(small_net, torch.tensor([0, 3]), given=tokens)
    with pytest.raises(InputError, match="given: expected as many masked tokens in each image"):
        make()(small_net, torch.tensor([0, 3]), given=torch.zeros_like(tokens))


def test_options_of_an_image_are_those_of_a_sampler(small_net):
    """Each image of a batch is as a sampler of these options draws it alone."""
    settings = {"guidance_scale": 2.0, "sampling_temperature": 4.0, "gumbel_temperature": 1.5}
    options = ImageOptions(*(torch.tensor([1.0, factor]) for factor in (3.0, 0.5, 2.0)))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    together = make(**settings)(small_net, torch.tensor([0, 3]), generators, options=options)
    changed = {"guidance_scale": 6.0, "sampling_temperature": 2.0, "gumbel_temperature": 3.0}
    for row, own in enumerate([settings, changed]):
        alone = make(**own)(small_net, torch.tensor([0, 3])[row : row + 1], torch.Generator().manual_seed(row))
        assert torch.equal(alone[0], together[row])


def test_guidance_away_from_a_class():
    net = KnownNet()
    options = ImageOptions(negative_class_ids=torch.tensor([1, 2]))
    tokens = make(num_steps=1, guidance_schedule=constant)(net, torch.tensor([0, 0]), options=options)
    for row, negative in enumerate((1, 2)):
        guided = net.table[0] + 2.0 * (net.table[0] - net.table[negative])
        assert torch.equal(tokens[row], guided.argmax(1))


def test_candidates_of_an_order_know_the_positions():
    net, seen = KnownNet(), []

    class Spy(Random):
        def __call__(self, candidates: Candidates):
            seen.append(candidates)
            return super().__call__(candidates)

    make(**{**FOUR, "order": Spy()})(net, CLASSES, torch.Generator().manual_seed(0))
    assert [candidates.positions.shape[1] for candidates in seen] == [12, 9, 6, 3]
    for candidates in seen:
        expected = net.table[CLASSES].log_softmax(2).gather(1, candidates.positions[..., None].expand(-1, -1, K))
        torch.testing.assert_close(candidates.log_probs, expected)


# The scheduler


@pytest.mark.parametrize("order", [None, Halton(3, 4), Entropy()], ids=["confidence", "halton", "entropy"])
def test_a_scheduler_reveals_what_the_sampler_does(order):
    """Without noise on the order, the same tokens in the same steps, given the same logits."""
    net, record = KnownNet(scale=3.0), []
    sampler = make(guidance_scale=0.0, order=order)
    tokens = sampler(net, CLASSES, torch.Generator().manual_seed(0), record)
    states = [*record, tokens]
    for t in range(4):
        generator = torch.Generator().manual_seed(t)
        revealed = TokenScheduler(sampler).step(net.table[CLASSES], t, states[t], K, generator)
        assert torch.equal(revealed, states[t + 1])


def test_a_scheduler_says_what_it_expects():
    with pytest.raises(InputError, match="correction: expected a sampler without one"):
        TokenScheduler(make(correction=Remasking()))
    with pytest.raises(InputError, match="t=4: expected a step from 0 to 3"):
        TokenScheduler(make()).step(torch.zeros(1, L, K), 4, torch.full((1, L), K), K)
