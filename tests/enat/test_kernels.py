"""Attention kernels compute the formula, those of GPUs where there is one; linear layers agree with torch's own."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from enat import kernels
from enat.errors import InputError
from enat.kernels import Linear, auto, cudnn_first, sdpa, with_padded_heads, xformers

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def by_formula(query, key, value):
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(dim=-1)
    return weights @ value


def random_heads(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sizes = (7, 19, 19)  # more to attend to than attend, as with a context
    return [torch.randn(2, 3, n, 16, generator=generator).to(device, dtype) for n in sizes]


@pytest.mark.parametrize("backend", [sdpa, cudnn_first, auto])
def test_formula(backend):
    heads = random_heads()
    expected = by_formula(*(x.double() for x in heads))
    torch.testing.assert_close(backend(*heads).double(), expected, rtol=1e-5, atol=1e-6)


@GPU
@pytest.mark.parametrize("backend", [sdpa, cudnn_first, auto, xformers])
def test_formula_on_a_gpu(backend):
    if backend is xformers:
        pytest.importorskip("xformers.ops")
    heads = random_heads("cuda", torch.bfloat16)
    expected = by_formula(*(x.double() for x in heads))
    torch.testing.assert_close(backend(*heads).double(), expected, rtol=2e-2, atol=2e-2)


def test_xformers_is_given_its_own_order_of_dimensions(monkeypatch):
    """xformers wants (B, N, H, d); a stand-in that computes by the formula shows what it is handed."""

    def memory_efficient_attention(query, key, value, scale):
        assert (query.shape, key.shape) == ((2, 7, 3, 16), (2, 19, 3, 16))
        assert scale == 16**-0.5
        return by_formula(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2)

    stand_in = SimpleNamespace(memory_efficient_attention=memory_efficient_attention)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=stand_in))
    monkeypatch.setitem(sys.modules, "xformers.ops", stand_in)
    heads = random_heads()
    pretended = [_OnGPU(x) for x in heads]
    torch.testing.assert_close(xformers(*pretended), by_formula(*heads))


class _OnGPU:
    """A tensor that says that it is on a GPU."""

    device = torch.device("cuda")

    def __init__(self, tensor):
        self.tensor = tensor

    def transpose(self, *dims):
        return self.tensor.transpose(*dims)


@pytest.mark.parametrize("dimensions", [61, 53, 48, 64])
def test_heads_of_any_size(dimensions):
    """The paper's small networks have heads of 61, 53 and 48 dimensions; kernels for GPUs see multiples of 8."""
    generator = torch.Generator().manual_seed(0)
    heads = [torch.randn(2, 3, n, dimensions, generator=generator, dtype=torch.float64) for n in (7, 19, 19)]
    seen = []

    def attend(query, key, value, scale):
        seen.extend(x.shape[-1] for x in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    torch.testing.assert_close(with_padded_heads(attend, *heads), by_formula(*heads), rtol=1e-12, atol=1e-12)
    assert seen == [{61: 64, 53: 56}.get(dimensions, dimensions)] * 3


def test_xformers_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="GPU only"):
        xformers(*random_heads())


@pytest.mark.parametrize(("backend", "expected"), [(sdpa, False), (auto, True)])
def test_on_gpus_cudnn_is_for_sampling(monkeypatch, backend, expected):
    """cuDNN prepares a plan for each new number of tokens, so that the default leaves its kernel out."""
    seen = []

    def attend(query, *_, **__):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return torch.zeros(query.shape)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), shape=(2, 3, 7, 16))
    backend(on_gpu, on_gpu, on_gpu)
    assert seen == [expected]


# Linear layers by oneDNN


@ONEDNN
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


@ONEDNN
def test_oneDNN_is_used_without_gradient_only():  # noqa: N802
    layer, x = Linear(48, 80), torch.randn(5, 48)
    assert not layer._is_for_onednn(x)
    with torch.no_grad():
        assert layer._is_for_onednn(x)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not layer._is_for_onednn(x)


@ONEDNN
def test_rows_do_not_depend_on_their_number():
    layer, x = Linear(1024, 512), torch.randn(300, 1024)
    with torch.no_grad():
        assert torch.equal(layer(x)[:7], layer(x[:7]))


@pytest.mark.parametrize("name", ["sdpa", "auto", "xformers"])
@pytest.mark.parametrize("variant", ["enat", "separate"])
def test_a_configuration_gives_the_plain_function(compose_config, name, variant):
    """Hydra's partials check each call, which is slower than the attention, and which torch can't compile."""
    config = compose_config("experiment=debug", f"attention@module.net.attention={name}", f"variant={variant}")
    net = instantiate(config.module.net)
    parts = [part for part in net.modules() if hasattr(part, "kernel")]
    assert len(parts) >= len(net.blocks)
    assert all(part.kernel is getattr(kernels, name) for part in parts)
