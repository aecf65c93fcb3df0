"""Floating-point operations: those of a network, counted from its sizes; those of a device, measured.

A multiply-add is two operations; only matrix products and attention are counted, as in `torch.utils.flop_counter`.

Shapes as in `enat.net`: `N` newly revealed, `P` cached, `M` masked and `V = P + N` visible tokens of an image.
"""

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch

from enat.errors import InputError
from enat.kernels import ONEDNN_TYPES
from enat.net import ENAT
from enat.plan import Step
from enat.reuse import LayerToLayerReuse, ReuseWithoutProjection
from enat.sampler import Sampler
from enat.variants import NAT, KeyValueReuse, SeparateBlock

Number = Any  # of tokens: an int for one image, or an array with a number for each of several images


def block_flops(net: ENAT, tokens: Number, context: Number) -> Number:
    """Counts the operations of a block on (1, tokens, D) that attends to a context (1, context, D)."""
    projections = 12 * tokens + 2 * context  # queries, keys, values, output and 8 of the MLP; keys and values
    if isinstance(net.blocks[0], SeparateBlock):
        projections += 2 * tokens * (context > 0)  # queries and output of the cross-attention
    return 2 * net.width**2 * projections + 4 * net.width * tokens * (tokens + context)


def num_projections(net: ENAT) -> int:
    """Returns how many projections R each reused token passes."""
    if isinstance(net, LayerToLayerReuse):
        return len(net.reuses)
    return 0 if isinstance(net, ReuseWithoutProjection) else 1


def encode_flops(net: ENAT, new: Number, cached: Number) -> Number:
    """Counts the operations of `ENAT.encode` for each image; without new tokens, the encoder does no work."""
    blocks = net.encoder_depth * block_flops(net, new, cached) * (new > 0)
    if isinstance(net, KeyValueReuse):
        return blocks - net.encoder_depth * 4 * net.width**2 * cached * (new > 0)
    return blocks + 16 * net.width**2 * cached * num_projections(net)


def step_flops(net: ENAT, masked: Number, new: Number, cached: Number) -> Number:
    """Counts the operations of `ENAT.forward` for each image."""
    head = 2 * net.width * masked * (net.width + net.codebook_size)
    if isinstance(net, NAT):
        attention = 4 * net.width * (masked + new) * cached  # to cached keys and values
        return len(net.blocks) * (block_flops(net, masked + new, 0 * masked) + attention) + head
    visible = net.num_tokens - masked
    return encode_flops(net, new, cached) + net.decoder_depth * block_flops(net, masked, visible) + head


def modulation_flops(net: ENAT) -> int:
    """Counts the operations of `ENAT.modulations` for an image."""
    return sum(2 * block.modulation.weight.numel() for block in net.blocks)


def training_flops(net: ENAT, counts: tuple[Number, Number, Number], batch_size: int) -> int:
    """Counts the operations of a training step: three times the forward pass, plus the pass that makes the cache.

    Args:
        net: the network.
        counts: masked, new and cached tokens of each image, see `enat.masking.Partition`.
        batch_size: number of images.
    """
    masked, new, cached = counts
    if net.caches_masked:
        cached = net.num_tokens * (cached > 0)
    forward = modulation_flops(net) + step_flops(net, masked, new, cached)
    if net.caches_masked:  # the cache takes a whole step, with the logits of the tokens that were masked then
        cache = step_flops(net, masked + new, counts[2], 0 * cached)
    else:
        cache = encode_flops(net, cached, 0 * cached)
    cache = (modulation_flops(net) + cache) * np.any(cached)
    return int(np.broadcast_to(3 * forward + cache, batch_size).sum())


def sampling_steps(net: ENAT, sampler: Sampler) -> list[dict[str, float]]:
    """Lists what each step computes for an image: tokens encoded, reused and decoded, branches, and GFLOP.

    Raises:
        InputError: for an order whose numbers depend on what is drawn.
    """
    if sampler.is_adaptive:
        raise InputError("order: its numbers of tokens depend on the image, so that operations can't be counted ahead.")
    plan = sampler.plan(net)
    rows = []
    for step, flops in zip(plan, plan_flops(net, plan), strict=True):
        reused = num_reused(net, step)
        numbers = {"step": step.number, "encoded": step.visible - step.reused, "reused": reused}
        rows.append(numbers | {"decoded": step.masked, "branches": step.branches, "gflop": flops / 1e9})
    return rows


def num_reused(net: ENAT, step: Step) -> int:
    """Returns how many tokens of an image have cached features that a step uses."""
    return net.num_tokens if net.caches_masked and step.number and step.reuses_all else step.reused


def plan_flops(net: ENAT, plan: Sequence[Step]) -> list[int]:
    """Counts the operations of each step of a plan (`Sampler.plan`) for an image."""
    flops = []
    for step in plan:
        encoded = step.visible - step.reused
        branch = step_flops(net, step.masked, encoded, num_reused(net, step))
        anew = step_flops(net, step.masked, step.visible, 0)  # of an unconditional branch that begins
        flops.append(branch + anew if step.starts_guidance else step.branches * branch)
    return flops


def sampling_flops(net: ENAT, sampler: Sampler) -> float:
    """Counts the operations for an image, including attention and the modulations of both branches."""
    steps = sampling_steps(net, sampler)
    return sum(1e9 * row["gflop"] for row in steps) + max(row["branches"] for row in steps) * modulation_flops(net)


def paper_operations(net: ENAT, sampler: Sampler) -> int:
    """Counts the operations for an image as the paper does, with what the official program computes in vain.

    A multiply-add is one operation. Both branches of the guidance are counted in every step, and so are the logits of
    all tokens and the modulations. The decoder of the tokenizer is not counted.
    """
    branches = 2 if net.num_classes else 1
    size = net.width * (net.width + net.codebook_size)
    total = 0
    for row in sampling_steps(net, sampler):
        masked, encoded, reused = (int(row[name]) for name in ("decoded", "encoded", "reused"))
        step = step_flops(net, masked, encoded, reused) + modulation_flops(net)
        total += branches * (step // 2 + (net.num_tokens - masked) * size)
    return total


def find_width(make_net: Callable[[int], ENAT], sampler: Sampler, operations: float, multiple: int) -> int:
    """Finds the width at which a network takes about as many operations for an image, as the paper counts them.

    Tables 1 and 2 of the paper compare networks of unlike depths in this way.

    Args:
        make_net: makes the network of a width; on the meta device it takes no memory.
        sampler: decides which tokens each step computes.
        operations: that an image may take, see `paper_operations`.
        multiple: of which the width has to be one, such as the number of heads.

    Returns:
        The width whose operations are nearest.

    Raises:
        InputError: if even these differ by more than 2 %.
    """
    counts: dict[int, int] = {}
    for width in count(multiple, multiple):
        counts[width] = paper_operations(make_net(width), sampler)
        if counts[width] >= operations:
            break
    nearest = min(counts, key=lambda width: abs(counts[width] - operations))
    if abs(counts[nearest] / operations - 1) > 0.02:
        raise InputError(
            f"No width that is a multiple of {multiple} takes {operations / 1e9:g} G operations within 2 %: width "
            f"{nearest} takes {counts[nearest] / 1e9:.4g} G. Choose other operations, or fewer heads."
        )
    return nearest


@torch.no_grad()
def product_speeds(device: torch.device, dtype: torch.dtype, size: int | None = None) -> list[float]:
    """Measures the operations per second of a large matrix product, four times.

    Args:
        device, dtype: of the matrices.
        size: side of the square matrices; None for one that suits the device.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    is_emulated = is_half and torch.bfloat16 not in ONEDNN_TYPES  # by CPUs that can't multiply in it: very slow
    size = size or (8192 if device.type == "cuda" else 256 if is_emulated else 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    speeds = []
    for _ in range(5):
        begun = time.perf_counter()
        product = a @ b
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        speeds.append(2 * size**3 / (time.perf_counter() - begun))
    del product
    return speeds[1:]  # the first one warms up


def measured_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Returns the best of `product_speeds`: what a network can reach at most."""
    return max(product_speeds(device, dtype, size))
