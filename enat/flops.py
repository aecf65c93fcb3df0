"""Floating-point operations: of the network, counted from its sizes; of a device, measured.

A multiply-add is two operations; only matrix products and attention count, as in `torch.utils.flop_counter`.
Shapes as in `enat.net`: `N` new, `P` reused, `M` masked, `V = P + N` visible tokens of an image.
"""

import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from enat.layers import ONEDNN_TYPES
from enat.net import ENAT
from enat.sampler import Sampler
from enat.variants import NAT, KeyValueReuse, SeparateBlock

Number = Any  # of tokens: an int, or an array with one for each image


def block_flops(net: ENAT, tokens: Number, context: Number) -> Number:
    """Of one of its blocks on (1, tokens, D) that attends to (1, context, D) too."""
    projections = 12 * tokens + 2 * context  # queries, keys, values, output, 8 of the MLP; keys and values
    if isinstance(net.blocks[0], SeparateBlock):
        projections += 2 * tokens * (context > 0)  # queries and output of the cross-attention
    return 2 * net.width**2 * projections + 4 * net.width * tokens * (tokens + context)


def encode_flops(net: ENAT, new: Number, reused: Number) -> Number:
    """Of `ENAT.encode` for one image, or for each of several; an encoder without new tokens does nothing."""
    blocks = net.encoder_depth * block_flops(net, new, reused) * (new > 0)
    if isinstance(net, KeyValueReuse):
        return blocks - net.encoder_depth * 4 * net.width**2 * reused * (new > 0)
    return blocks + 16 * net.width**2 * reused


def step_flops(net: ENAT, masked: Number, new: Number, reused: Number) -> Number:
    """Of `ENAT.forward` for one image, or for each of several."""
    head = 2 * net.width * masked * (net.width + net.codebook_size)
    if isinstance(net, NAT):
        return len(net.blocks) * block_flops(net, masked + new, 0 * masked) + head
    return encode_flops(net, new, reused) + net.decoder_depth * block_flops(net, masked, new + reused) + head


def condition_flops(net: ENAT) -> int:
    """Of `ENAT.condition` for one image."""
    return sum(2 * block.modulation.weight.numel() for block in net.blocks)


def training_flops(net: ENAT, counts: tuple[Number, Number, Number], batch_size: int) -> int:
    """Of a training step on a batch: three times the forward pass, and once the one that makes the cache.

    Args:
        net: the network.
        counts: masked, new and reused tokens of each image, see `enat.masking.Partition`.
        batch_size: images.
    """
    masked, new, reused = counts
    forward = condition_flops(net) + step_flops(net, masked, new, reused)
    cache = (condition_flops(net) + encode_flops(net, reused, 0 * reused)) * np.any(reused)
    return int(np.broadcast_to(3 * forward + cache, batch_size).sum())


def sampling_steps(net: ENAT, sampler: Sampler) -> list[dict[str, float]]:
    """What each step computes for one image: tokens encoded, reused and decoded, branches, and GFLOP."""
    rows = []
    encoded = reused = 0
    for step, (masked, left) in enumerate(pairwise([net.num_tokens, *sampler.mask_counts(net.num_tokens)])):
        if not masked:
            break
        branches = 1 if not any(sampler.guidance_scales) or (step == 0 and not sampler.guidance_scales[0]) else 2
        kept = sampler.num_reused(reused)
        encoded, reused = encoded + reused - kept, kept
        flops = branches * step_flops(net, masked, encoded, reused)
        rows.append(
            {"step": step, "encoded": encoded, "reused": reused, "decoded": masked, "branches": branches}
            | {"gflop": flops / 1e9}
        )
        encoded, reused = masked - left, encoded + reused
    return rows


def sampling_flops(net: ENAT, sampler: Sampler) -> float:
    """Operations for one image, attention and the condition of both branches included."""
    steps = sampling_steps(net, sampler)
    return sum(1e9 * row["gflop"] for row in steps) + max(row["branches"] for row in steps) * condition_flops(net)


@torch.no_grad()
def product_speeds(device: torch.device, dtype: torch.dtype, size: int | None = None) -> list[float]:
    """Operations per second of a large matrix product, several times.

    Args:
        device, dtype: of the matrices.
        size: side of the square matrices; None for one that fits the device.
    """
    halves = dtype in (torch.bfloat16, torch.float16)
    emulated = halves and torch.bfloat16 not in ONEDNN_TYPES  # by CPUs without them, very slowly
    size = size or (8192 if device.type == "cuda" else 256 if emulated else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    speeds = []
    for _ in range(5):
        begun = time.perf_counter()
        out = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(2 * size**3 / (time.perf_counter() - begun))
    del out
    return speeds[1:]  # the first warms up


def measured_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """The best of `product_speeds`: what a network can at most reach."""
    return max(product_speeds(device, dtype, size))
