"""Softmax attention behind one signature, by several implementations; a network is given the one it uses.

Each takes queries (B, H, N, d), keys and values (B, H, S, d) and gives (B, H, N, d), with scale d^-1/2. `sdpa` is the
oracle; the others compute the same and are worth their name on GPUs.

Shapes: `B` batch, `H` heads, `N` tokens that attend, `S` tokens attended to, `d = D/H`.
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from enat.errors import InputError

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
FASTEST_FIRST = [SDPBackend.CUDNN_ATTENTION, *WITHOUT_PLANS]


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's own; on GPUs not by cuDNN's kernel, which plans anew for each number of tokens, and training's vary."""
    if query.device.type != "cuda":
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(WITHOUT_PLANS, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value)


def cudnn_first(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Torch's own, by cuDNN's kernel where it can: the fastest in half precision on Hopper GPUs.

    Where it can't (a CPU, float32), the next one that can.
    """
    with sdpa_kernel(FASTEST_FIRST, set_priority=True):
        return F.scaled_dot_product_attention(query, key, value)


def xformers_operations(device: torch.device) -> ModuleType:
    """`xformers.ops`.

    Raises:
        InputError: where it is not installed, or for another device than a GPU.
    """
    if device.type != "cuda":
        raise InputError("attention=xformers: it runs on a GPU only; expected attention=sdpa or auto here.")
    try:
        return importlib.import_module("xformers.ops")
    except ImportError as error:
        raise InputError("attention=xformers: it is not installed; expected pip install 'enat[xformers]'.") from error


def xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """xformers' memory-efficient attention (`pip install xformers`); on GPUs only, see `xformers_operations`."""
    rows = (x.transpose(1, 2) for x in (query, key, value))  # (B, N, H, d)
    return xformers_operations(query.device).memory_efficient_attention(*rows).transpose(1, 2)


def auto(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`cudnn_first` on GPUs, `sdpa` elsewhere. For sampling, whose numbers of tokens are always the same."""
    return (cudnn_first if query.device.type == "cuda" else sdpa)(query, key, value)
