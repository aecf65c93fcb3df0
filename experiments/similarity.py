"""task=similarity: how much features change between two steps of sampling, and where: the reason to reuse them.

It repeats the observation behind the temporal interactions of the paper (section 4.2).
"""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from rich.console import Console
from rich.progress import track
from torch import Tensor

from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.net import ENAT
from enat.sampler import Sampler
from experiments.reporting.similarity import (
    KINDS,
    Change,
    change_by,
    changes,
    plot_changes,
    share_near_new,
    table_of,
)
from experiments.runtime.launch import Accelerator, device_for


@torch.no_grad()
def similarity(
    net: ENAT,
    sampler: Sampler,
    weights: str | None,
    num_images: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    seed: int,
    output: str,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Measures how much features change between steps, by distance to the newly revealed tokens.

    Args:
        net: gets the weights; an ENAT or one of its variants.
        sampler: says which tokens are revealed when.
        weights: a checkpoint of ours, an official one, or safetensors.
        num_images: images to sample, of all classes in turn; the unconditional half of guidance is not measured.
        batch_size: images at a time.
        seed: of the noise.
        output: folder of `similarity.csv` and `similarity.png`.
        accelerator: as Lightning's Trainer takes it.

    Returns:
        `near`: for each kind of token, the share that is within distance 1 of a new one, and its share of all change;
        `change`: for each kind, rows of `change_by` over the distance; the files, and where the weights come from.

    Raises:
        InputError: for weights that do not fit; see `check_grid_and_steps`.
    """
    side = check_grid_and_steps(net, sampler)
    source = load_weights(net, weights)
    device = device_for(accelerator)
    net.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    compared: list[Change] = []
    for start in track(range(0, num_images, batch_size), "images", console=Console(stderr=True)):
        numbers = torch.arange(start, min(start + batch_size, num_images), device=device)
        states: list[Tensor] = []
        sampler(net, numbers % net.num_classes, generator, states)
        compared += changes(net, states, numbers % net.num_classes)
    table = table_of(compared)
    csv, picture = (Path(output) / f"similarity.{suffix}" for suffix in ("csv", "png"))
    change_by(table, ["kind", "step", "distance"]).to_csv(csv, index=False)
    middle = sampler.num_steps // 2
    example = min((one for one in compared if one.kind == "visible"), key=lambda one: abs(one.step - middle))
    plot_changes(table, example, side, picture)
    near = {kind: share_near_new(table, kind) for kind in KINDS}
    for kind, shares in near.items():
        tokens, change = shares["tokens"], shares["change"]
        print(f"{tokens:.0%} of the {kind} tokens are next to a new one, with {change:.0%} of the change.")
    return {
        "near": near,
        "change": {kind: change_by(rows, ["distance"]).to_dict("records") for kind, rows in table.groupby("kind")},
        "table": str(csv),
        "plot": str(picture),
        **source,
    }


def check_grid_and_steps(net: ENAT, sampler: Sampler) -> int:
    """Computes the side of the grid.

    Raises:
        InputError: for a sampler with fewer than two states that have visible and masked tokens; for a grid that is no
            square.
    """
    if len({left for left in sampler.mask_counts(net.num_tokens) if 0 < left < net.num_tokens}) < 2:
        raise InputError(
            f"sampler.num_steps={sampler.num_steps}: expected at least 3, two of them with visible and masked tokens."
        )
    side = math.isqrt(net.num_tokens)
    if side**2 != net.num_tokens:
        raise InputError(f"module.net.num_tokens={net.num_tokens}: expected a square, for distances on the grid.")
    return side
