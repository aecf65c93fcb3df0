"""Who computes attention and linear layers: implementations that differ in speed, not in what they compute.

An attention kernel takes queries (B, H, N, d), keys and values (B, H, S, d) and returns (B, H, N, d), with the scale
d^-1/2. `sdpa` is the reference that the others must agree with.

Shapes: `B` batch, `H` heads, `N` tokens that attend, `S` tokens attended to, `D` width, `d = D/H`.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import register_flop_formula

from enat.errors import InputError

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

WITHOUT_CUDNN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, *WITHOUT_CUDNN]


def unwrapped(kernel: Kernel) -> Kernel:
    """Returns the function of a `functools.partial` without arguments, and other kernels as they are.

    Hydra's own kind of partial checks each call against its list of targets. That takes 0.3 ms, ten times as long as
    the attention of a small network on a CPU, and torch can't compile it.
    """
    is_bare = isinstance(kernel, functools.partial) and not kernel.args and not kernel.keywords
    return kernel.func if is_bare else kernel  # type: ignore[attr-defined]


def with_padded_heads(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes attention with heads of a multiple of 8 dimensions, which kernels for GPUs want.

    Zeros are added to narrower heads, such as those of ENAT-S, and the scale stays d^-1/2, so that the result is the
    same. `attend` takes query, key, value and `scale`.
    """
    dimensions = query.shape[-1]
    if missing := -dimensions % 8:
        query, key, value = (F.pad(x, (0, missing)) for x in (query, key, value))
    return attend(query, key, value, scale=dimensions**-0.5)[..., :dimensions]


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes attention by PyTorch, on GPUs without cuDNN's kernel.

    cuDNN prepares a plan for each new number of tokens, which takes long where that number varies, as in training.
    """
    if query.device.type != "cuda":
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(WITHOUT_CUDNN, set_priority=True):
        return with_padded_heads(F.scaled_dot_product_attention, query, key, value)


def cudnn_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes attention by cuDNN's kernel, the fastest in half precision on Hopper GPUs.

    Where that kernel can't be used (on a CPU, in float32), PyTorch chooses the next one that can.
    """
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return with_padded_heads(F.scaled_dot_product_attention, query, key, value)


def auto(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes attention by `cudnn_first` on GPUs and by `sdpa` elsewhere: for sampling, whose token counts repeat."""
    return (cudnn_first if query.device.type == "cuda" else sdpa)(query, key, value)


def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Computes memory-efficient attention by xformers, on GPUs only.

    Raises:
        InputError: if xformers is not installed, or the tensors are on another device than a GPU.
    """
    if query.device.type != "cuda":
        raise InputError("attention@module.net.attention=xformers: it runs on a GPU only; expected sdpa or auto.")
    try:
        operations = importlib.import_module("xformers.ops")
    except ImportError as error:
        raise InputError(
            "attention@module.net.attention=xformers: `pip install -e '.[xformers]'` installs it."
        ) from error
    transposed = (x.transpose(1, 2) for x in (query, key, value))  # (B, N, H, d)
    return with_padded_heads(operations.memory_efficient_attention, *transposed).transpose(1, 2)


# Linear layers by oneDNN. Two operations that are used here are private in torch and have no public equivalent yet:
# `_linear_pointwise`, a linear layer with the activation after it, and `_is_mkldnn_bf16_supported`, which says whether
# the processor multiplies in bfloat16 (AVX-512 at least).

ONEDNN_TYPES: list[torch.dtype] = []  # in which oneDNN computes on this processor


class Linear(nn.Linear):
    """Computes `nn.Linear`, by oneDNN on a CPU where no gradient is needed.

    For float32, torch asks MKL, which is slower on AMD processors and rounds a row differently according to the number
    of rows. oneDNN does neither, and computes the activation in the same pass.
    `torch.backends.mkldnn.flags(enabled=False)` leaves it out.
    """

    def forward(self, x: Tensor, gelu: nn.GELU | None = None) -> Tensor:
        """(..., in) -> (..., out), then the activation if one is given."""
        if not torch.compiler.is_compiling() and self._is_for_onednn(x):
            kind = "none" if gelu is None else "gelu"
            variant = "" if gelu is None else gelu.approximate
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], variant)
        x = super().forward(x)
        return x if gelu is None else gelu(x)

    def _is_for_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and x.dtype == self.weight.dtype
            and x.dtype in ONEDNN_TYPES
            and bool(torch.backends.mkldnn.enabled)
            and x.numel() > 0
        )


class MLP(nn.Sequential):
    """Computes linear, tanh-GELU, linear: (..., D) -> (..., 4D) -> (..., D)."""

    def __init__(self, width: int):
        super().__init__(Linear(width, 4 * width), nn.GELU(approximate="tanh"), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        linear, gelu, out = self
        return out(linear(x, gelu))


def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Counts the operations of oneDNN's linear layer, which `torch.utils.flop_counter` does not know."""
    return 2 * x.numel() * weight[0]


if torch.backends.mkldnn.is_available():
    ONEDNN_TYPES.append(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ONEDNN_TYPES.append(torch.bfloat16)
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_flops)
