"""task=similarity: what changes between two steps of sampling, and where: the reason to reuse features.

Shapes: `B` images, `L` tokens of an image on a square grid, `V` visible and `M` masked tokens, `D` width.
"""

import math
from collections.abc import Iterator, Sequence
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

from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.net import ENAT
from enat.sampler import Sampler
from enat.variants import NAT
from experiments.runtime.launch import device_for

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


def features(net: ENAT, token_ids: Tensor, visible: Tensor, masked: Tensor, modulations: Sequence[Tensor]) -> Tensor:
    """Of visible tokens before they are reused, and of masked ones before the head, (B, V+M, D), in this order."""
    if isinstance(net, NAT):
        return net.features(token_ids, visible, masked, modulations)
    encoded = net.encode(token_ids.gather(1, visible), visible, modulations)
    encoded = encoded[..., : net.width]  # keys and values follow in KeyValueReuse
    return torch.cat([encoded, net.decode(encoded, masked, modulations)], dim=1)


def changes(net: ENAT, states: list[Tensor], class_ids: Tensor) -> Iterator[Change]:
    """Compares consecutive steps, each computed from scratch: nothing is reused. A step that reveals nothing is none.

    Args:
        net: the network.
        states: token ids that each step starts from, (B, L) each, [MASK] where masked.
        class_ids: (B,).
    """
    modulations, before = net.modulations(class_ids), None
    for step, token_ids in enumerate(states):
        is_masked = token_ids == net.mask_token_id
        order = is_masked.int().argsort(dim=1, stable=True)  # visible ones first
        visible, masked = order.split([int((~is_masked[0]).sum()), int(is_masked[0].sum())], dim=1)
        if before is not None and visible.shape[1] == before[0].shape[1]:
            continue
        ordered = features(net, token_ids, visible, masked, modulations)
        found = torch.empty_like(ordered).scatter_(1, order.unsqueeze(2).expand_as(ordered), ordered)  # by position
        if before is not None and before[0].shape[1]:
            old_visible, was_masked, old = before
            similarity = F.cosine_similarity(found.float(), old.float(), dim=2)  # (B, L)
            new = (was_masked & ~is_masked).nonzero()[:, 1].view(len(token_ids), -1)
            distance = distance_to(new, token_ids.shape[1])
            for kind, positions in zip(KINDS, (old_visible, masked), strict=True):
                yield Change(step, kind, positions, similarity.gather(1, positions), distance.gather(1, positions))
        before = visible, is_masked, found


def table_of(found: list[Change]) -> pd.DataFrame:
    """A row for each token of each comparison: kind, step, distance and change, 1 - similarity."""
    parts = [
        pd.DataFrame(
            {"distance": one.distance.flatten().tolist(), "change": (1 - one.similarity).flatten().tolist()}
        ).assign(kind=one.kind, step=one.step)
        for one in found
    ]
    return pd.concat(parts, ignore_index=True)


def summarize(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Of the groups: the number of tokens, their mean and median change, and that of their 95th percentile.

    A few tokens whose features turn round altogether may carry the mean; the median then tells of the others.
    """
    grouped = table.groupby(list(by), sort=True)["change"]
    columns = {
        "tokens": grouped.size(),
        "mean": grouped.mean(),
        "median": grouped.median(),
        "p95": grouped.quantile(0.95),
    }
    return pd.DataFrame(columns).reset_index()


def near_share(table: pd.DataFrame, kind: str, distance: int = 1) -> dict[str, float]:
    """Of the tokens of a kind, the share within a distance of new ones; and the share of all change that is there."""
    rows = table[table["kind"] == kind]
    near = rows[rows["distance"] <= distance]
    return {"tokens": len(near) / len(rows), "change": float(near["change"].sum() / rows["change"].sum())}


def plot(table: pd.DataFrame, example: Change, revealed: Tensor, side: int, path: Path) -> None:
    """Change over distance, a thin line for each step; and one image's visible tokens at one step."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for number, kind in enumerate(KINDS):
        rows, color = table[table["kind"] == kind], f"C{number}"
        for _, step in summarize(rows, ["step", "distance"]).groupby("step"):
            left.plot(step["distance"], step["mean"], color=color, lw=0.7, alpha=0.35)
        every = summarize(rows, ["distance"])
        left.plot(every["distance"], every["mean"], "o-", color=color, label=f"{kind}: mean")
        left.plot(every["distance"], every["median"], "s--", color=color, label=f"{kind}: median")
    left.set(
        xlabel="distance to the nearest newly revealed token",
        ylabel="change, 1 - cosine similarity",
        yscale="log",
    )
    left.set_title("Features of two consecutive steps (thin: means of single steps)", fontsize=10)
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
    right.set(xticks=[], yticks=[])
    right.set_title(f"Visible tokens, step {example.step} (red: new; grey: masked)", fontsize=10)
    figure.colorbar(shown, ax=right, label="1 - cosine similarity")
    figure.savefig(path, dpi=120)


def check_sizes(net: ENAT, sampler: Sampler, num_images: int, batch_size: int) -> int:
    """The side of the grid.

    Raises:
        InputError: for a sampler that has no two states with visible and masked tokens; sizes below 1; a grid that is
            no square.
    """
    if min(num_images, batch_size) < 1:
        raise InputError(f"num_images={num_images}, batch_size={batch_size}: expected at least 1.")
    if len({left for left in sampler.mask_counts(net.num_tokens) if 0 < left < net.num_tokens}) < 2:
        raise InputError(
            f"sampler.num_steps={sampler.num_steps}: expected at least 3, two of them with visible and masked tokens."
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
        net: gets the weights; an ENAT or one of its variants.
        sampler: says which tokens are revealed when.
        weights: a checkpoint of ours, an official one, or safetensors.
        num_images: how many, of all classes in turn; of the conditional branch.
        batch_size: images at a time.
        seed: of the noise.
        output: folder of `similarity.csv` and `similarity.png`.
        accelerator: as of Lightning's Trainer.

    Returns:
        `near`: by kind, the share of tokens within distance 1 of new ones, and of all change that is theirs;
        `change`: by kind and distance, as `summarize`; the files, and where the weights come from.

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
    table, folder = table_of(found), Path(output)
    summarize(table, ["kind", "step", "distance"]).to_csv(folder / "similarity.csv", index=False)
    middle = sampler.num_steps // 2
    example = min((one for one in found if one.kind == "visible"), key=lambda one: abs(one.step - middle))
    earlier, later = list(pairwise(first))[example.step - 1]
    new = ((earlier == net.mask_token_id) & (later != net.mask_token_id)).nonzero()
    plot(table, example, new[new[:, 0] == 0, 1][None], side, folder / "similarity.png")
    near = {kind: near_share(table, kind) for kind in KINDS}
    for kind, shares in near.items():
        print(
            f"{kind} tokens: {shares['tokens']:.0%} are next to a new one, with {shares['change']:.0%} of the change."
        )
    files = {"table": str(folder / "similarity.csv"), "plot": str(folder / "similarity.png")}
    change = {kind: summarize(rows, ["distance"]).to_dict("records") for kind, rows in table.groupby("kind")}
    return {"near": near, "change": change, **files, **source}
