"""Linear layers by oneDNN: the same numbers as torch's own, and rows that don't depend on their number."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from enat.layers import Linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.mark.parametrize("gelu", [None, nn.GELU(approximate="tanh"), nn.GELU()])
@pytest.mark.parametrize("shape", [(5, 48), (2, 7, 48), (2, 0, 48)])
def test_same_as_torch(shape, gelu):
    torch.manual_seed(0)
    layer, x = Linear(48, 80), torch.randn(shape)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    expected = expected if gelu is None else gelu(expected)
    torch.testing.assert_close(layer(x, gelu), expected)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        torch.testing.assert_close(layer(x, gelu), expected.detach())
    assert counter.get_total_flops() == 2 * x.numel() * 80


def test_oneDNN_is_used_without_gradient_only():  # noqa: N802
    layer, x = Linear(48, 80), torch.randn(5, 48)
    assert not layer._by_onednn(x)
    with torch.no_grad():
        assert layer._by_onednn(x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not layer._by_onednn(x)


def test_rows_do_not_depend_on_their_number():
    layer, x = Linear(1024, 512), torch.randn(300, 1024)
    with torch.no_grad():
        assert torch.equal(layer(x)[:7], layer(x[:7]))
