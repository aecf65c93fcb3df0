"""Floating-point operations: of the network, counted from its sizes; of a device, measured.

A multiply-add is two operations; only matrix products and attention count, as in `torch.utils.flop_counter`.
Shapes as in `enat.net`: `N` new, `P` reused, `M` masked, `V = P + N` visible tokens of an image.
"""

import time

import torch

from enat.masking import Partition
from enat.net import ENAT


def block_flops(width: int, tokens: int, context: int) -> int:
    """Of a block on (1, tokens, D) that attends to (1, context, D) too."""
    projections = 12 * tokens + 2 * context  # queries, keys, values, output, 8 of the MLP; keys and values
    return 2 * width**2 * projections + 4 * width * tokens * (tokens + context)


def encode_flops(net: ENAT, new: int, reused: int) -> int:
    """Of `ENAT.encode` for one image; an encoder without new tokens does nothing."""
    blocks = net.encoder_depth * block_flops(net.width, new, reused) if new else 0
    return blocks + 16 * net.width**2 * reused


def decode_flops(net: ENAT, masked: int, visible: int) -> int:
    """Of `ENAT.decode` and `ENAT.logits` for one image."""
    head = 2 * net.width * masked * (net.width + net.codebook_size)
    return net.decoder_depth * block_flops(net.width, masked, visible) + head


def condition_flops(net: ENAT) -> int:
    """Of `ENAT.condition` for one image."""
    return len(net.blocks) * 16 * net.width**2


def training_flops(net: ENAT, part: Partition) -> int:
    """Of a training step on a batch: three times the forward pass, and once the one that makes the cache."""
    batch, masked = part.masked.shape
    new, reused = part.revealed.shape[1], 0 if part.cached is None else part.cached.shape[1]
    forward = condition_flops(net) + encode_flops(net, new, reused) + decode_flops(net, masked, new + reused)
    cache = 0 if part.cached is None else condition_flops(net) + encode_flops(net, reused, 0)
    return batch * (3 * forward + cache)


@torch.no_grad()
def measured_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Operations per second of a large matrix product, the best of several; what a network can at most reach.

    Args:
        size: side of the square matrices; None for one that fits the device.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        out = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    del out
    return 2 * size**3 / best
