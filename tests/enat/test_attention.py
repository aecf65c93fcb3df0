"""The attention backends compute what the formula says; those of GPUs are tested where there is one."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from enat.errors import InputError
from enat.kernels import auto, cudnn_first, sdpa, xformers

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


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


def test_xformers_is_given_its_own_layout(monkeypatch):
    """xformers wants (B, N, H, d); a stand-in that computes by the formula shows what it is handed."""

    def memory_efficient_attention(query, key, value):
        assert (query.shape, key.shape) == ((2, 7, 3, 16), (2, 19, 3, 16))
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


def test_xformers_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="GPU only"):
        xformers(*random_heads())


@pytest.mark.parametrize(("backend", "expected"), [(sdpa, False), (auto, True)])
def test_on_gpus_cudnn_is_for_sampling(monkeypatch, backend, expected):
    """cuDNN's kernel plans anew for each number of tokens, so that the default leaves it out."""
    seen = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *_: seen.append(torch.backends.cuda.cudnn_sdp_enabled())
    )
    on_gpu = SimpleNamespace(device=torch.device("cuda"))
    backend(on_gpu, on_gpu, on_gpu)
    assert seen == [expected]
