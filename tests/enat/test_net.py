"""The network beyond the golden tensors: gradients, reuse, edge cases, initialisation."""

import pytest
import torch

from enat.errors import InputError
from enat.net import ENAT

B, L = 3, 16


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return torch.randint(0, 12, (B, L)), torch.rand(B, L).argsort(1), torch.tensor([0, 3, 5])


def test_order_of_visible_tokens_does_not_matter(small_net, tokens):
    ids, order, classes = tokens
    masked, visible = order[:, :10], order[:, 10:]
    modulations = small_net.modulations(classes)
    logits, features = small_net(ids, visible, masked, modulations)
    again, flipped = small_net(ids, visible.flip(1), masked, modulations)
    torch.testing.assert_close(logits, again)
    torch.testing.assert_close(features, flipped.flip(1))


def test_masked_ids_have_no_influence(small_net, tokens):
    """Changing the ids at masked positions changes nothing, changing a visible token does."""
    ids, order, classes = tokens
    masked, visible = order[:, :10], order[:, 10:]
    modulations = small_net.modulations(classes)
    logits, _ = small_net(ids, visible, masked, modulations)
    other = ids.scatter(1, masked, (ids.gather(1, masked) + 1) % 12)
    assert torch.equal(logits, small_net(other, visible, masked, modulations)[0])
    other = ids.scatter(1, visible[:, :1], (ids.gather(1, visible[:, :1]) + 1) % 12)
    assert not torch.equal(logits, small_net(other, visible, masked, modulations)[0])


def test_visible_features_ignore_masked_positions(small_net, tokens):
    """Disentangled computation: the encoder does not see which tokens are masked."""
    ids, order, classes = tokens
    modulations = small_net.modulations(classes)
    _, features = small_net(ids, order[:, 10:], order[:, :10], modulations)
    _, fewer = small_net(ids, order[:, 10:], order[:, :4], modulations)
    assert torch.equal(features, fewer)


def test_nothing_revealed_passes_cache_through_reuse(small_net, tokens):
    ids, order, classes = tokens
    modulations = small_net.modulations(classes)
    _, features = small_net(ids, order[:, 10:], order[:, :10], modulations)
    _, again = small_net(ids, order[:, :0], order[:, :10], modulations, features)
    assert torch.equal(again, small_net.reuse(features))


def test_gradients_of_reuse(small_net, tokens):
    """R and the encoder's context projections learn from reuse only; the cache and the output table get nothing."""
    ids, order, classes = tokens
    masked, new, cached = order.split([10, 3, 3], dim=1)
    modulations = small_net.modulations(classes)
    cached_features = small_net.encode(ids.gather(1, cached), cached, modulations).detach().requires_grad_()

    def names(loss):
        small_net.zero_grad(set_to_none=True)
        loss.backward(retain_graph=True)
        return {name for name, p in small_net.named_parameters() if p.grad is not None}

    with_reuse = names(small_net(ids, new, masked, modulations, cached_features)[0].sum())
    without = names(small_net(ids, torch.cat([new, cached], 1), masked, modulations)[0].sum())
    assert cached_features.grad is None
    context = {f"encoder.{i}.attention.context_kv.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert with_reuse - without == context | {name for name in with_reuse if name.startswith("reuse.")}
    assert with_reuse == {name for name, _ in small_net.named_parameters()}
    small_net.zero_grad(set_to_none=True)
    small_net.logits(torch.randn(1, 2, 32)).sum().backward()
    assert small_net.token_embedding.weight.grad is None


def test_class_dropout_only_in_training(small_net):
    small_net.class_dropout = 1.0
    null = torch.tensor([small_net.null_class_id])
    with torch.no_grad():
        assert not torch.equal(small_net.modulations(torch.tensor([0]))[0], small_net.modulations(null)[0])
        small_net.train()
        assert torch.equal(small_net.modulations(torch.tensor([0]))[0], small_net.modulations(null)[0])


@pytest.mark.parametrize(("grid", "parameters"), [(16, 574_298_113), (32, 575_084_545)])
def test_number_of_parameters(grid, parameters):
    """ENAT-L as the official files have it, without the MLP in them that is never used."""
    with torch.device("meta"):
        net = ENAT(1024, 1000, grid**2, 1024, 16, 22, 2)
    unused = 2 * 1024 * 4096 + 4096 + 1024
    assert sum(p.numel() for p in net.parameters()) == parameters - unused


def test_initialisation_is_the_recipes(small_net):
    net = ENAT(
        codebook_size=500, num_classes=300, num_tokens=400, width=64, num_heads=4, encoder_depth=1, decoder_depth=1
    )
    assert all(not p.any() for block in net.blocks for p in block.modulation.parameters())
    for embedding in (net.token_embedding, net.position_embedding, net.class_embedding):
        assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.03)
    for linear in (net.encoder[0].attention.self_kv, net.encoder[0].mlp[0]):
        fan_in, fan_out = linear.in_features, linear.out_features
        assert linear.weight.std().item() == pytest.approx((2 / (fan_in + fan_out)) ** 0.5, rel=0.05)
        assert not linear.bias.any()


def test_width_that_the_heads_do_not_divide(make_net):
    with pytest.raises(InputError, match="width=32: expected a multiple of num_heads=5"):
        make_net(num_heads=5)
