"""Each variant differs from ENAT in what its name says, and in nothing else."""

from functools import partial

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from enat.errors import InputError
from enat.flops import sampling_flops
from enat.layers import layer_norm
from enat.loss import MaskedCrossEntropy
from enat.masking import Partition, RandomMasking
from enat.net import ENAT
from enat.packed import PerSampleMasking
from enat.prediction import predict
from enat.reuse import AllTokensReuse, LayerToLayerReuse, ReuseWithoutProjection
from enat.sampler import EVERY_IMAGE_ALIKE, Sampler
from enat.schedules import constant, cosine, falling, rising
from enat.steps import State
from enat.variants import INTERACTIONS, NAT, ContextReuse, KeyValueReuse, SeparateBlock

VARIANTS = {
    "nat": (NAT, {}, 0.0),
    "nat, visible tokens alone": (NAT, {"interactions": INTERACTIONS[:2]}, 0.0),
    "nat with cached keys and values": (ContextReuse, {}, 1.0),
    "nat with half of them": (ContextReuse, {}, 0.5),
    "separate": (ENAT, {"block": SeparateBlock}, 1.0),
    "keys and values": (KeyValueReuse, {}, 1.0),
    "without projection": (ReuseWithoutProjection, {}, 1.0),
    "layer to layer": (LayerToLayerReuse, {}, 1.0),
    "layer to layer, half": (LayerToLayerReuse, {}, 0.5),
    "all tokens": (AllTokensReuse, {}, 1.0),
    "all tokens, nothing": (AllTokensReuse, {}, 0.0),
    "half": (ENAT, {}, 0.5),
    "nothing": (ENAT, {}, 0.0),
}


def sampler(reuse_share, num_steps=6, **options):
    return Sampler(num_steps, 2.0, 1.0, 1.0, cosine, rising, falling, falling, reuse_share, **options)


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    order = torch.rand(3, 16).argsort(dim=1)
    return torch.randint(12, (3, 16)), torch.tensor([0, 3, 5]), order[:, :7], order[:, 7:]


@pytest.mark.parametrize("name", VARIANTS)
def test_operations_are_those_that_torch_counts(name, make_net):
    kind, options, share = VARIANTS[name]
    net, chosen = make_net(kind, **options), sampler(share)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        token_ids = chosen(net, torch.tensor([0, 1, 2]))
    assert counter.get_total_flops() == 3 * sampling_flops(net, chosen)
    assert token_ids.max() < 12


@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_gpu_nothing_waits_for_it(name, make_net):
    """Tensors without values, as if on a GPU: sampling and a training step's loss need none on the host."""
    kind, options, share = VARIANTS[name]
    with FakeTensorMode():
        with torch.device("cuda"):
            net = make_net(kind, **options)
            class_ids, order = torch.tensor([0, 1, 2]), torch.rand(3, 16).argsort(dim=1)
        token_ids = sampler(share)(net, class_ids)
        reuses = share > 0 and kind is not ContextReuse  # in training
        masked, new, cached = order.split([9, 4, 3] if reuses else [9, 7, 0], dim=1)
        part = Partition(masked, new, cached if reuses else None)
        net.train()
        loss = MaskedCrossEntropy()(*predict(net, net, token_ids, class_ids, part))
        with pytest.raises(DataDependentOutputException):  # what the host would wait for
            loss.item()
    assert {token_ids.device.type, loss.device.type} == {"cuda"}
    assert token_ids.shape == (3, 16)


def test_a_share_of_nothing_reuses_nothing(monkeypatch, make_net):
    """Every step starts from scratch; a share of one is the sampler's usual way."""
    net, class_ids = make_net(), torch.tensor([0, 1])
    seen = []
    forward = ENAT.forward

    def watched(self, token_ids, new, masked, modulations, cached_features=None):
        seen.append((new.shape[1], 0 if cached_features is None else cached_features.shape[1], masked.shape[1]))
        return forward(self, token_ids, new, masked, modulations, cached_features)

    monkeypatch.setattr(ENAT, "forward", watched)
    for share in (0.0, 0.5, 1.0):
        seen.clear()
        sampler(share)(net, class_ids, torch.Generator().manual_seed(0))
        for new, reused, masked in seen:
            assert new + reused + masked == 16
        before = [0, *(new + reused for new, reused, _ in seen[:-1])]
        # what a step has seen before, it reuses in that share
        assert [reused for _, reused, _ in seen] == [0, *(round(share * visible) for visible in before[1:])]


def test_the_half_that_is_reused_is_the_older_one(make_net):
    """In the last step, the result depends on the stale features of the older half and not of the others."""
    net = make_net()
    state_tokens = torch.randint(12, (1, 16))
    modulations = net.modulations(torch.tensor([0]))
    cached, new, masked = (torch.arange(*ends)[None] for ends in ((0, 8), (8, 12), (12, 16)))
    cached_features = net.encode(state_tokens.gather(1, cached), cached, modulations)
    chosen = sampler(0.5, 2)
    noise = [torch.zeros(1, 4, 12), torch.zeros(1, 4), torch.zeros(1, 0)]
    step = chosen.plan(net, [12, 4, 0])[1]._replace(visible=12, reused=4, branches=1, starts_guidance=False)

    def last(features):
        state = State(state_tokens, masked, new, cached, features, torch.zeros(1, 0))
        return chosen._step(net, state, modulations, noise, step, EVERY_IMAGE_ALIKE)

    expected = last(cached_features)
    assert expected.cached_positions.tolist() == [list(range(12))]
    younger = cached_features.clone()
    younger[:, 4:] += 1
    assert torch.equal(last(younger).cached_features, expected.cached_features)
    older = cached_features.clone()
    older[:, :4] += 1
    assert not torch.equal(last(older).cached_features, expected.cached_features)


# NAT


@pytest.mark.parametrize("gone", INTERACTIONS)
def test_an_interaction_that_is_switched_off_has_no_influence(gone, make_net):
    """In one block: the target's output is the same to the last bit, while other tokens of the source change."""
    source, target = gone.split("_to_")
    whole, without = (
        make_net(NAT, encoder_depth=1, decoder_depth=1, interactions=kept)
        for kept in (INTERACTIONS, set(INTERACTIONS) - {gone})
    )
    for net in (whole, without):
        net.decoder = net.decoder[:0]
    torch.manual_seed(2)
    visible, masked = torch.arange(7)[None], torch.arange(7, 16)[None]
    token_ids = torch.randint(12, (1, 16))
    kinds = {"visible": slice(0, 7), "masked": slice(7, 16)}
    changed = 0 if source == "visible" else 7  # one token of the source
    others = [i for i in range(16)[kinds[target]] if i != changed]

    def outputs(net, moved):
        modulations = net.modulations(torch.tensor([0]))
        embed = net.embed

        def other_embedding(ids, positions):
            x = embed(ids, positions)
            x[:, changed] += moved
            return x

        net.embed = other_embedding
        features = net.features(token_ids, visible, masked, modulations)
        net.embed = embed
        return features[:, others]

    noise = torch.randn(32)
    with torch.no_grad():
        assert torch.equal(outputs(without, 0), outputs(without, noise))
        assert not torch.equal(outputs(whole, 0), outputs(whole, noise))


def test_masked_tokens_that_see_no_visible_ones(tokens, make_net):
    """Over all blocks: without visible_to_masked, the logits do not depend on the visible tokens."""
    token_ids, class_ids, visible, masked = tokens
    for kept, same in ((INTERACTIONS, False), ([n for n in INTERACTIONS if n != "visible_to_masked"], True)):
        net = make_net(NAT, interactions=kept)
        modulations = net.modulations(class_ids)
        logits = [net(ids, visible, masked, modulations)[0] for ids in (token_ids, (token_ids + 1) % 12)]
        assert torch.equal(*logits) == same


def test_all_interactions_are_plain_attention(tokens, make_net):
    token_ids, class_ids, visible, masked = tokens
    net = make_net(NAT)
    modulations = net.modulations(class_ids)
    expected = net(token_ids, visible, masked, modulations)[0]
    x = net.embed(torch.cat([token_ids.gather(1, visible), torch.full((3, 9), 12)], 1), torch.cat([visible, masked], 1))
    for block, modulation in zip(net.blocks, modulations, strict=True):
        x = block(x, None, modulation)
    assert torch.equal(expected, net.logits(x[:, 7:]))


def test_nat_reuses_nothing(tokens, make_net):
    token_ids, class_ids, *_ = tokens
    net = make_net(NAT)
    with pytest.raises(InputError, match=r"sampler\.reuse_share=0"):
        sampler(1.0)(net, class_ids)
    part = RandomMasking(reuse_prob=1.0)(np.random.default_rng(3), 3, 16)
    with pytest.raises(InputError, match="reuse_prob=0"):
        predict(net, net, token_ids, class_ids, part)
    part = PerSampleMasking()(np.random.default_rng(3), 3, 16)
    with pytest.raises(InputError, match="per_group"):
        predict(net, net, token_ids, class_ids, part)
    with pytest.raises(InputError, match="interactions=visible_to_all"):
        make_net(NAT, interactions=["visible_to_all"])


# Separate self- and cross-attention


def test_separate_attentions(tokens, make_net):
    """Without a context it is self-attention; with one, both residuals are those of the formula."""
    _, class_ids, _, _ = tokens
    net = make_net(block=SeparateBlock)
    block, modulation = net.encoder[0], net.modulations(class_ids)[0]
    x, context = torch.randn(3, 4, 32), layer_norm(torch.randn(3, 6, 32))
    with torch.no_grad():
        alone = block(x, None, modulation)
        assert torch.allclose(alone, block(x, context, modulation * no_cross(modulation)), atol=1e-6)
        assert not torch.allclose(alone, block(x, context, modulation), atol=1e-3)
        # Attention to the context is a softmax of its own: what the tokens are does not compete with it.
        heads = lambda y: y.unflatten(2, (4, 8)).transpose(1, 2)  # noqa: E731
        cross = block.cross_attention
        key, value = cross.context_kv(context).chunk(2, dim=2)
        weights = (heads(cross.query(x)) @ heads(key).mT / 8**0.5).softmax(dim=-1)
        expected = cross.out((weights @ heads(value)).transpose(1, 2).flatten(2))
        torch.testing.assert_close(cross(x, context), expected, rtol=1e-4, atol=1e-5)


def no_cross(modulation):
    """A factor that takes the gate of the cross-attention, the last vector, to zero."""
    factor = torch.ones_like(modulation)
    factor[:, :, -1] = 0
    return factor


@pytest.mark.parametrize("kind", [NAT, ContextReuse, KeyValueReuse])
def test_blocks_without_a_context_are_of_the_default_kind(kind, make_net):
    with pytest.raises(InputError, match=r"^block=SeparateBlock: expected the default, "):
        make_net(kind, block=SeparateBlock)


def test_cached_keys_and_values_of_the_same_tokens_change_nothing(tokens, make_net):
    """A step that finds all visible tokens in the cache agrees with one that computes all, to rounding."""
    token_ids, class_ids, visible, masked = tokens
    net = make_net(ContextReuse)
    modulations = net.modulations(class_ids)
    with torch.no_grad():
        expected, cached = net(token_ids, visible, masked, modulations)
        assert cached.shape == (3, 7, 2 * 32 * len(net.blocks))
        logits, features = net(token_ids, visible[:, :0], masked, modulations, cached)
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(features, cached)
        # The cache of each block is used.
        for number in range(len(net.blocks)):
            other = cached.clone()
            other[..., 64 * number : 64 * (number + 1)] += 1
            assert not torch.allclose(net(token_ids, visible[:, :0], masked, modulations, other)[0], expected)


def test_context_reuse_refreshed_in_each_step_is_nat(tokens, make_net):
    """With the same weights; refreshed less often, it takes fewer operations, and its logits are other ones."""
    token_ids, class_ids, visible, masked = tokens
    nat, net = make_net(NAT), make_net(ContextReuse)
    net.load_state_dict(nat.state_dict())
    hot = partial(Sampler, 6, 1.0, 8.0, 1.0, cosine, rising, constant, falling)  # else it draws one token everywhere
    expected = hot(0.0)(nat, class_ids, torch.Generator().manual_seed(5))
    costs = []
    for refresh_every in (1, 2, None):
        chosen = hot(1.0, refresh_every=refresh_every)
        token_ids_of_reuse = chosen(net, class_ids, torch.Generator().manual_seed(5))
        assert refresh_every != 1 or torch.equal(token_ids_of_reuse, expected)
        costs.append(sampling_flops(net, chosen))
    assert len(expected.unique()) > 3
    assert sampling_flops(nat, hot(0.0)) == costs[0] > costs[1] > costs[2]
    modulations = nat.modulations(class_ids)
    with torch.no_grad():
        exact = nat(token_ids, visible, masked, modulations)[0]
        before = net(token_ids, visible[:, :4], torch.cat([visible[:, 4:], masked], dim=1), modulations)[1]
        stale, features = net(token_ids, visible[:, 4:], masked, modulations, before)
    assert not torch.allclose(stale, exact)
    assert torch.equal(features[:, :4], before)  # in the order of the positions, which a correction relies on


def test_context_reuse_needs_all_interactions(make_net):
    with pytest.raises(InputError, match="all interactions"):
        make_net(ContextReuse, interactions=["visible_to_masked"])


@pytest.mark.parametrize("kind", [ENAT, AllTokensReuse, ContextReuse])
def test_a_refresh_encodes_all_visible_tokens(kind, make_net):
    """Every second step is one of a sampler without reuse, as torch's counter confirms."""
    net, chosen = make_net(kind), sampler(1.0, refresh_every=2)
    encoded = [[step.visible - step.reused for step in one.plan(net)] for one in (chosen, sampler(0.0), sampler(1.0))]
    refreshed, without, reusing = encoded
    assert refreshed[::2] == without[::2]
    assert refreshed[1::2] == reusing[1::2] != without[1::2]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        chosen(net, torch.tensor([0, 1, 2]))
    assert counter.get_total_flops() == 3 * sampling_flops(net, chosen)
    assert chosen.identity() != sampler(1.0).identity() == sampler(1.0, refresh_every=None).identity()


# Keys and values


def test_keys_and_values_of_old_tokens_are_kept(tokens, make_net):
    """Old tokens do not see the new ones; the new ones see what the old ones were in each block."""
    token_ids, class_ids, visible, _ = tokens
    net = make_net(KeyValueReuse)
    modulations = net.modulations(class_ids)

    def encode(token_ids, positions, cached_features=None):
        return net.encode(token_ids.gather(1, positions), positions, modulations, cached_features)

    with torch.no_grad():
        old = encode(token_ids, visible[:, :4])
        every = encode(token_ids, visible[:, 4:], old)
        assert every.shape == (3, 7, 32 * 5)
        assert torch.equal(every[:, :4], old)
        changed = token_ids.scatter(1, visible[:, 4:], 0)
        assert torch.equal(encode(changed, visible[:, 4:], old)[:, :4], old)
        # Keys and values are used: other ones make other features of the new tokens, in each block.
        for number in range(2):
            other = old.clone()
            other[..., 32 * (1 + 2 * number) : 32 * (3 + 2 * number)] += 1
            assert not torch.allclose(encode(token_ids, visible[:, 4:], other)[:, 4:], every[:, 4:])
        other = old.clone()
        other[..., :32] += 1  # features alone do not matter to the encoder
        assert torch.equal(encode(token_ids, visible[:, 4:], other)[:, 4:], every[:, 4:])


def test_without_a_cache_keys_and_values_are_enat(tokens, make_net):
    token_ids, class_ids, visible, masked = tokens
    net, enat = make_net(KeyValueReuse), make_net()
    enat.load_state_dict(net.state_dict(), strict=False)
    with torch.no_grad():
        logits = [x(token_ids, visible, masked, x.modulations(class_ids))[0] for x in (net, enat)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_without_the_projection_features_stay_as_they_are(tokens, make_net):
    token_ids, class_ids, visible, _ = tokens
    net = make_net(ReuseWithoutProjection)
    assert not [name for name, _ in net.named_parameters() if name.startswith("reuse")]
    cached = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        new = visible[:, 4:]
        features = net.encode(token_ids.gather(1, new), new, net.modulations(class_ids), cached)
        alone = net.encode(token_ids.gather(1, new), new, net.modulations(class_ids))
    assert torch.equal(features[:, :4], cached)
    assert not torch.allclose(features[:, 4:], alone)  # the new tokens attend to them


def test_features_of_masked_tokens_reach_the_encoder_alone(tokens, make_net):
    """Without them the network is ENAT, to the bit; without new tokens to attend to them, they have no influence."""
    token_ids, class_ids, visible, masked = tokens
    enat, net = make_net(), make_net(AllTokensReuse)
    cached, others = (torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    new = visible[:, 4:]
    with torch.no_grad():
        modulations = net.modulations(class_ids)
        of_enat, _ = enat(token_ids, new, masked, modulations, cached[:, :4])
        assert torch.equal(net(token_ids, new, masked, modulations, cached[:, :4])[0], of_enat)
        logits, features = net(token_ids, new, masked, modulations, cached)
        assert features.shape == (3, 16, 32)
        assert not torch.allclose(logits, of_enat)
        changed = torch.cat([cached[:, :7], others[:, 7:]], dim=1)
        without_new = [net(token_ids, visible[:, :0], masked, modulations, x)[0] for x in (cached, changed)]
        assert torch.equal(*without_new)


def test_the_first_step_caches_both_branches(make_net, monkeypatch):
    """Features of masked tokens are reused already in the second step, so that guidance needs both branches of them."""
    net = make_net(AllTokensReuse)
    seen = []

    def forward(token_ids, new, masked, modulations, cached=None):
        seen.append((len(token_ids), None if cached is None else tuple(cached.shape)))
        return AllTokensReuse.forward(net, token_ids, new, masked, modulations, cached)

    monkeypatch.setattr(net, "forward", forward)
    sampler(1.0, num_steps=3)(net, torch.tensor([0, 1]))
    assert seen == [(4, None), (4, (4, 16, 32)), (4, (4, 16, 32))]


def test_training_caches_what_sampling_would(tokens, make_net):
    """The cache of a training batch is that of a step in which the cached tokens alone were visible."""
    token_ids, class_ids, visible, masked = tokens
    net = make_net(AllTokensReuse)
    part = Partition(masked, visible[:, 4:], visible[:, :4])
    with torch.no_grad():
        modulations = net.modulations(class_ids)
        others = torch.cat([part.new, part.masked], dim=1)
        _, cached = net(token_ids, part.cached, others, modulations)
        expected, _ = net(token_ids, part.new, masked, modulations, cached)
        assert torch.equal(predict(net, net, token_ids, class_ids, part)[0], expected)


def test_layer_to_layer(tokens, make_net):
    """What one block gave in the step before reaches the same block and those after it, and no earlier one."""
    token_ids, class_ids, visible, _ = tokens
    net = make_net(LayerToLayerReuse, encoder_depth=3)
    cached = torch.randn(3, 4, 4 * 32, generator=torch.Generator().manual_seed(0))
    new = visible[:, 4:]

    def features(cache):
        with torch.no_grad():
            return net.encode(token_ids.gather(1, new), new, net.modulations(class_ids), cache)

    before = features(cached)
    assert before.shape == (3, 7, 4 * 32)
    assert torch.equal(before[:, 4:, 64:96], before[:, 4:, 96:])  # the decoder attends to what the last block gives
    for layer in range(4):
        changed = cached.clone()
        changed[..., 32 * layer : 32 * layer + 32] += 1 + torch.arange(32.0)
        difference = features(changed) - before
        changes = [bool(part.any()) for part in difference[:, 4:].split(32, dim=2)]  # of each block's new tokens
        assert changes == [layer < 3 and block >= layer for block in range(4)]
        assert [bool(part.any()) for part in difference[:, :4].split(32, dim=2)] == [i == layer for i in range(4)]


@pytest.mark.parametrize("name", ["separate", "keys and values", "without projection", "layer to layer", "all tokens"])
def test_every_weight_learns(name, tokens, make_net):
    kind, options, _ = VARIANTS[name]
    token_ids, class_ids, visible, masked = tokens
    net = make_net(kind, **options).train()
    part = Partition(masked, visible[:, 4:], visible[:, :4])
    logits, _ = predict(net, net, token_ids, class_ids, part)
    logits.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
