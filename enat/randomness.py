"""Random numbers by purpose: streams of different purposes never meet, and none depends on what ran before."""

import zlib

import numpy as np
import torch


def rng_for(purpose: str, *key: int) -> np.random.Generator:
    """The generator of a purpose and a key, such as ("training", seed, rank, step)."""
    return np.random.default_rng([zlib.crc32(purpose.encode()), *key])


def generator_for(device: torch.device | str, purpose: str, *key: int) -> torch.Generator:
    """The same for torch, on a device."""
    return torch.Generator(device).manual_seed(int(rng_for(purpose, *key).integers(2**63)))


def seed_default_generator(device: torch.device, seed: int) -> None:
    """Seeds what dropout on a device draws from; `torch.manual_seed` seeds all kinds of devices, which takes time."""
    cuda = device.type == "cuda"
    (torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator).manual_seed(seed)
