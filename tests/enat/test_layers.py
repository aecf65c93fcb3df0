"""The block: modulations of images or of tokens, a context, another kernel."""

import pytest
import torch

from enat.kernels import sdpa
from enat.layers import Block, layer_norm

B, N, P, D = 3, 4, 6, 32


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block(D, num_heads=4)


def tensors():
    """Tokens, context, and modulations of images."""
    torch.manual_seed(1)
    return torch.randn(B, N, D), layer_norm(torch.randn(B, P, D)), torch.randn(B, 1, 8, D)


def test_modulations_of_tokens(block):
    """An image's modulation, repeated for each of its tokens, gives the same; that of one token changes that token."""
    x, context, modulation = tensors()
    expected = block(x, context, modulation)
    of_tokens, of_context = modulation.expand(B, N, 8, D), modulation.expand(B, P, 8, D)
    assert torch.equal(block(x, context, of_tokens, of_context), expected)
    changed = of_tokens.clone()
    changed[:, 0, 7] += 1  # the gate of the MLP
    difference = (block(x, context, changed, of_context) - expected).abs().amax(dim=2)
    assert (difference[:, 0] > 0).all()
    assert (difference[:, 1:] == 0).all()


def test_context_has_shift_and_scale_of_its_own(block):
    """They are vectors 2 and 3, which matter with a context only."""
    x, context, modulation = tensors()
    other = modulation.clone()
    other[:, :, 2:4] += 1
    assert torch.equal(block(x, None, other), block(x, None, modulation))
    assert not torch.equal(block(x, context, other), block(x, context, modulation))
    assert torch.equal(block(x, context, modulation, other), block(x, context, other))


def test_another_kernel(block):
    """It is given queries of the tokens, keys and values of context and tokens, and its result is used."""
    x, context, modulation = tensors()
    shapes = []

    def kernel(query, key, value):
        shapes.append((query.shape, key.shape, value.shape))
        return sdpa(query, key, value)

    expected = block(x, context, modulation)
    assert torch.equal(block(x, context, modulation, kernel=kernel), expected)
    assert shapes == [((B, 4, N, 8), (B, 4, P + N, 8), (B, 4, P + N, 8))]
    without = block(x, context, modulation, kernel=lambda query, key, value: 0 * query)
    assert not torch.equal(without, expected)


def test_an_untrained_block_is_the_identity(block):
    x, context, modulation = tensors()
    assert torch.equal(block(x, context, 0 * modulation), x)
