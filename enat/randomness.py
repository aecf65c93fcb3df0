"""Random numbers by purpose: each purpose has a stream of its own, which does not depend on what ran before."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def rng_for(purpose: str, *key: int) -> np.random.Generator:
    """Returns NumPy's generator for a purpose and a key, such as ("training", seed, group, step)."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *key])


def generator_for(device: torch.device | str, purpose: str, *key: int) -> torch.Generator:
    """Returns torch's generator for a purpose and a key, on a device."""
    return torch.Generator(device).manual_seed(int(rng_for(purpose, *key).integers(2**63)))


def seed_default_generator(device: torch.device, seed: int) -> None:
    """Seeds the generator that dropout on a device uses, and no other: `torch.manual_seed` is slower."""
    is_cuda = device.type == "cuda"
    (torch.cuda.default_generators[device.index or 0] if is_cuda else torch.default_generator).manual_seed(seed)


def gumbel(shape: tuple[int, ...], device: torch.device, generators: Generators) -> Tensor:
    """Draws standard Gumbel noise in float32; several generators share the rows evenly, in order."""
    noise = torch.empty(shape, dtype=torch.float32, device=device)
    if generators is None or isinstance(generators, torch.Generator):
        noise.exponential_(generator=generators)
    else:
        for rows, generator in zip(noise.split(math.ceil(len(noise) / len(generators))), generators, strict=True):
            rows.exponential_(generator=generator)
    return -noise.clamp_min(torch.finfo(torch.float32).tiny).log()
