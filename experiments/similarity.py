"""task=similarity: what changes between two steps of sampling, and where: the reason to reuse features.

Shapes: `B` images, `L` tokens of an image on a square grid, `V` visible and `M` masked tokens, `D` width.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.progress import track
from torch import Tensor

from enat.errors import InputError
from enat.net import ENAT
from enat.sampler import Sampler
from enat.weights import load_weights
from experiments.device import device_for

KINDS = ("visible", "masked")


class Change(NamedTuple):
    """Tokens that are of one kind at a step and at the next, in `B` images."""

    step: int  # the later one
    kind: str
    positions: Tensor  # (B, N)
    similarity: Tensor  # cosine of a token's two features, (B, N)
    distance: Tensor  # to the nearest token revealed between the steps, in rows or columns, (B, N)


def distance_to(revealed: Tensor, num_tokens: int) -> Tensor:
    """Positions (B, N) -> the distance of every token of the grid to the nearest of them, (B, L), Chebyshev's."""
    side = math.isqrt(num_tokens)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side, device=revealed.device)] * 2, indexing="ij"), dim=-1)
    places = grid.flatten(0, 1)  # (L, 2)
    apart = (places[None, :, None] - places[revealed][:, None]).abs().amax(dim=-1)  # (B, L, N)
    return apart.amin(dim=2)


def changes(net: ENAT, states: list[Tensor], class_ids: Tensor) -> Iterator[Change]:
    """Compares consecutive steps, each computed from scratch: nothing is reused here.

    Args:
        net: the network.
        states: token ids that each step starts from, (B, L) each, [MASK] where masked.
        class_ids: (B,).
    """
    condition, before = net.condition(class_ids), None
    for step, token_ids in enumerate(states):
        is_masked = token_ids == net.mask_token_id
        order = is_masked.int().argsort(dim=1, stable=True)  # visible ones first
        visible, masked = order.split([int((~is_masked[0]).sum()), int(is_masked[0].sum())], dim=1)
        encoded = net.encode(token_ids, visible, condition)
        features = token_ids.new_zeros(*token_ids.shape, net.width, dtype=encoded.dtype)  # (B, L, D), by position
        for positions, values in ((visible, encoded), (masked, net.decode(encoded, masked, condition))):
            features.scatter_(1, positions.unsqueeze(2).expand(-1, -1, net.width), values.to(features.dtype))
        if before is not None and before[0].shape[1]:
            old_visible, was_masked, old_features = before
            similarity = F.cosine_similarity(features.float(), old_features.float(), dim=2)  # (B, L)
            new = (was_masked & ~is_masked).nonzero()[:, 1].view(len(token_ids), -1)
            distance = distance_to(new, token_ids.shape[1])
            for kind, positions in zip(KINDS, (old_visible, masked), strict=True):
                yield Change(step, kind, positions, similarity.gather(1, positions), distance.gather(1, positions))
        before = visible, is_masked, features


def summarize(found: list[Change]) -> pd.DataFrame:
    """By kind, step and distance: the number of tokens, their mean similarity, and the sum of their changes."""
    parts = [
        pd.DataFrame({"distance": one.distance.flatten().tolist(), "similarity": one.similarity.flatten().tolist()})
        .assign(kind=one.kind, step=one.step)
        .assign(change=lambda rows: 1 - rows["similarity"])
        for one in found
    ]
    grouped = pd.concat(parts).groupby(["kind", "step", "distance"], sort=True)
    return grouped.agg(
        tokens=("similarity", "size"), similarity=("similarity", "mean"), change=("change", "sum")
    ).reset_index()


def near_share(table: pd.DataFrame, kind: str, distance: int = 1) -> dict[str, float]:
    """Of the tokens of a kind, the share within a distance of new ones; and the share of all change that is there."""
    rows = table[table["kind"] == kind]
    near = rows[rows["distance"] <= distance]
    return {
        "tokens": float(near["tokens"].sum() / rows["tokens"].sum()),
        "change": float(near["change"].sum() / rows["change"].sum()),
    }


def mean_similarity(table: pd.DataFrame, kind: str) -> dict[str, float]:
    """Of the tokens of a kind, by distance, over all steps."""
    rows = table[table["kind"] == kind]
    sums = rows.assign(total=rows["similarity"] * rows["tokens"]).groupby("distance")[["total", "tokens"]].sum()
    return {str(distance): float(row["total"] / row["tokens"]) for distance, row in sums.iterrows()}


def plot(table: pd.DataFrame, example: Change, revealed: Tensor, side: int, path: Path) -> None:
    """Change over distance, a thin line for each step; and one image's visible tokens at one step."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for number, kind in enumerate(KINDS):
        rows = table[table["kind"] == kind]
        for _, step in rows.groupby("step"):
            left.plot(step["distance"], step["change"] / step["tokens"], color=f"C{number}", lw=0.7, alpha=0.35)
        sums = rows.groupby("distance")[["change", "tokens"]].sum()
        left.plot(sums.index, sums["change"] / sums["tokens"], "o-", color=f"C{number}", label=f"{kind}, all steps")
    left.set(
        xlabel="distance to the nearest newly revealed token",
        ylabel="mean change, 1 - cosine similarity",
        yscale="log",
        title="Features from scratch, a step and the one before (thin: single steps)",
    )
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(alpha=0.3)
    left.legend(fontsize=9)
    change = torch.full((side * side,), float("nan"))
    change[example.positions[0].cpu()] = 1 - example.similarity[0].cpu()
    right.imshow(torch.zeros(side, side), cmap=ListedColormap(["0.88"]))
    shown = right.imshow(change.view(side, side), cmap="viridis", vmin=0)
    for position in revealed[0].tolist():
        row, column = divmod(position, side)
        right.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="red", lw=1.6))
    right.set(title=f"Change of visible tokens at step {example.step}\n(red: new; grey: masked)", xticks=[], yticks=[])
    figure.colorbar(shown, ax=right, label="1 - cosine similarity")
    figure.savefig(path, dpi=120)


def check_sizes(net: ENAT, sampler: Sampler, num_images: int, batch_size: int) -> int:
    """The side of the grid.

    Raises:
        InputError: for a sampler of fewer than three steps, which has no two with visible tokens; sizes below 1; a grid
            that is no square.
    """
    if min(num_images, batch_size) < 1:
        raise InputError(f"num_images={num_images}, batch_size={batch_size}: expected at least 1.")
    if sampler.num_steps < 3:
        raise InputError(
            f"sampler.num_steps={sampler.num_steps}: expected at least 3, two of them with visible tokens."
        )
    side = math.isqrt(net.num_tokens)
    if side**2 != net.num_tokens:
        raise InputError(f"module.net.num_tokens={net.num_tokens}: expected a square, for distances on the grid.")
    return side


@torch.no_grad()
def similarity(
    net: ENAT,
    sampler: Sampler,
    weights: str | None,
    num_images: int,
    batch_size: int,
    seed: int,
    output: str,
    accelerator: str,
) -> dict[str, Any]:
    """Measures how much features change between steps, by distance to the newly revealed tokens.

    Args:
        net: gets the weights; an ENAT, which encodes visible and decodes masked tokens.
        sampler: says which tokens are revealed when.
        weights: a checkpoint of ours, an official one, or safetensors.
        num_images: how many, of all classes in turn; of the conditional branch.
        batch_size: images at a time.
        seed: of the noise.
        output: folder of `similarity.csv` and `similarity.png`.
        accelerator: as of Lightning's Trainer.

    Returns:
        `near`: by kind, the share of tokens within distance 1 of new ones, and of all change that is theirs;
        `by_distance`; the files, and where the weights come from.

    Raises:
        InputError: see `check_sizes`.
    """
    side = check_sizes(net, sampler, num_images, batch_size)
    source, device = load_weights(net, weights), device_for(accelerator)
    net.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    found: list[Change] = []
    first: list[Tensor] = []
    starts = range(0, num_images, batch_size)
    for start in track(starts, "images", console=Console(stderr=True)):
        numbers = torch.arange(start, min(start + batch_size, num_images), device=device)
        states: list[Tensor] = []
        sampler(net, numbers % net.num_classes, generator, states)
        found += changes(net, states, numbers % net.num_classes)
        first = first or states
    table, folder = summarize(found), Path(output)
    table.to_csv(folder / "similarity.csv", index=False)
    middle = sampler.num_steps // 2
    example = next(one for one in found if one.kind == "visible" and one.step >= middle)
    earlier, later = list(pairwise(first))[example.step - 1]
    new = ((earlier == net.mask_token_id) & (later != net.mask_token_id)).nonzero()
    plot(table, example, new[new[:, 0] == 0, 1][None], side, folder / "similarity.png")
    near = {kind: near_share(table, kind) for kind in KINDS}
    for kind, shares in near.items():
        print(
            f"{kind} tokens: {shares['tokens']:.0%} are next to a new one, with {shares['change']:.0%} of the change."
        )
    files = {"table": str(folder / "similarity.csv"), "plot": str(folder / "similarity.png")}
    return {"near": near, "by_distance": {kind: mean_similarity(table, kind) for kind in KINDS}, **files, **source}
