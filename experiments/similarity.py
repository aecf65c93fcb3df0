"""task=similarity: how much features change between two steps of sampling, and where: the reason to reuse them.

It repeats the observation behind the temporal interactions of the paper (section 4.2).

Shapes: `B` images, `L` tokens of an image on a square grid, `V` visible and `M` masked tokens, `D` width.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from annotated_types import Ge
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.progress import track
from torch import Tensor

from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.generation import balanced_classes
from enat.net import ENAT
from enat.sampler import Sampler
from enat.variants import NAT
from experiments.reporting.figures import STYLE, save
from experiments.runtime.launch import Accelerator, device_for

KINDS = ("visible", "masked")  # both before and after a step
NEW = "new"  # masked before it, and visible after it
MAPPED = 2  # images that are drawn


class Change(NamedTuple):
    """How much the tokens of one kind changed in a step, `N` in each of `B` images."""

    step: int  # the later of the two that are compared, from 0
    kind: str
    positions: Tensor  # (B, N)
    change: Tensor  # 1 - cosine similarity of a token's two features, (B, N)
    distance: Tensor  # to the nearest token revealed between the steps, in rows or columns, (B, N)
    new: Tensor  # positions of the tokens revealed between the steps, (B, R)


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
        net: an ENAT or one of its variants; gets the weights.
        sampler: says which tokens are revealed when.
        weights: a checkpoint of ours, an official one, or safetensors.
        num_images: images to sample, of all classes in turn; the unconditional half of guidance is not measured.
        batch_size: images at a time.
        seed: of the noise.
        output: folder of `similarity.csv`, `similarity.png` and `similarity_maps.png`, which is the paper's Fig. 5.
        accelerator: as Lightning's Trainer takes it.

    Returns:
        `near`: for each kind of token, the share that is within distance 1 of a new one, and its share of all change;
        `change`: for each kind, rows of `change_by` over the distance; the files, and where the weights come from.
    """
    check_steps(net, sampler)
    source = load_weights(net, weights)
    device = device_for(accelerator)
    net.to(device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    compared: list[Change] = []
    images = torch.arange(num_images, device=device).split(batch_size)
    for numbers in track(images, "images", console=Console(stderr=True)):
        states: list[Tensor] = []
        class_ids = balanced_classes(net, numbers)
        sampler(net, class_ids, generator, states)
        compared += changes(net, states, class_ids)
    table = table_of(compared)
    csv = Path(output) / "similarity.csv"
    change_by(table, ["kind", "step", "distance"]).to_csv(csv, index=False)
    visible = [one for one in compared if one.kind == "visible"]
    example = min(visible, key=lambda one: abs(one.step - sampler.num_steps // 2))
    save(plot_changes(table, example, math.isqrt(net.num_tokens)), csv.with_suffix(".png"))
    maps = csv.with_name("similarity_maps.png")
    save(plot_maps(compared, table, math.isqrt(net.num_tokens)), maps)
    near = {kind: share_near_new(table, kind) for kind in KINDS}
    for kind, share in near.items():
        near_new = f"{share['tokens']:.0%} of the {kind} tokens are next to a new one"
        print(f"{near_new}, with {share['change']:.0%} of the change.")
    change = {kind: change_by(rows, ["distance"]).to_dict("records") for kind, rows in table.groupby("kind")}
    files = {"table": str(csv), "plot": str(csv.with_suffix(".png")), "maps": str(maps)}
    return {"near": near, "change": change, **files, **source}


def distance_to(positions: Tensor, num_tokens: int) -> Tensor:
    """Computes how far each of `num_tokens` tokens is from the nearest at `positions` (B, N), by Chebyshev's distance.

    Returns:
        Distances in tokens of the square grid, (B, L).
    """
    side = torch.arange(math.isqrt(num_tokens), dtype=torch.float, device=positions.device)
    places = torch.cartesian_prod(side, side)  # (L, 2)
    return torch.cdist(places, places, p=torch.inf).int()[positions].amin(dim=1)


def features(net: ENAT, token_ids: Tensor, visible: Tensor, masked: Tensor, modulations: Sequence[Tensor]) -> Tensor:
    """Computes the encoder's features of visible tokens, then the decoder's features of masked tokens, (B, V+M, D)."""
    if isinstance(net, NAT):
        return net.features(token_ids, visible, masked, modulations)
    encoded = net.encode(token_ids.gather(1, visible), visible, modulations)
    encoded = encoded[..., : net.width]  # keys and values follow in KeyValueReuse
    return torch.cat([encoded, net.decode(encoded, masked, modulations)], dim=1)


def check_steps(net: ENAT, sampler: Sampler) -> None:
    """Checks that the steps of a sampler can be compared.

    Raises:
        InputError: for too few steps, for an order whose numbers of tokens depend on the image, and for tokens that are
            not those of a square.
    """
    if len({left for left in sampler.mask_counts(net.num_tokens) if 0 < left < net.num_tokens}) < 2:
        raise InputError(
            f"sampler.num_steps={sampler.num_steps}: expected at least 3, two of them with visible and masked tokens."
        )
    if sampler.is_adaptive:
        raise InputError(
            "sampler.order: EntropyBound reveals other numbers of tokens in each image, so that their steps can't be "
            "compared; expected another order, such as order@sampler.order=confidence."
        )
    if math.isqrt(net.num_tokens) ** 2 != net.num_tokens:
        raise InputError(f"module.net.num_tokens={net.num_tokens}: expected a square, for distances on the grid.")


def changes(net: ENAT, states: Iterable[Tensor], class_ids: Tensor) -> Iterator[Change]:
    """Compares the features at consecutive steps, each computed from scratch: nothing is reused.

    A step that reveals nothing is left out, and so is the first one with visible tokens, which has none before it.
    Tokens that a correction masks again are of no kind.
    Each step starts from the token ids in `states`, (B, L), [MASK] where masked.
    """
    modulations = net.modulations(class_ids)
    before = None
    for step, token_ids in enumerate(states):
        is_masked = token_ids == net.mask_token_id
        order = is_masked.int().argsort(dim=1, stable=True)  # visible ones first
        visible, masked = order.tensor_split([int((~is_masked[0]).sum())], dim=1)
        if before is not None and not (before[0] & ~is_masked).any():
            continue
        ordered = features(net, token_ids, visible, masked, modulations)
        by_position = torch.empty_like(ordered).scatter_(1, order.unsqueeze(2).expand_as(ordered), ordered)
        if before is not None and not before[0].all():
            was_masked, old = before
            change = (1 - F.cosine_similarity(by_position.float(), old.float(), dim=2)).clamp(min=0)  # (B, L)
            new = _positions(was_masked & ~is_masked)
            distance = distance_to(new, token_ids.shape[1])
            at_both = ~was_masked & ~is_masked, was_masked & is_masked
            for kind, positions in zip(KINDS, map(_positions, at_both), strict=True):
                yield Change(step, kind, positions, change.gather(1, positions), distance.gather(1, positions), new)
            yield Change(step, NEW, new, change.gather(1, new), distance.gather(1, new), new)
        before = is_masked, by_position


def _positions(chosen: Tensor) -> Tensor:
    """Returns the positions of chosen tokens, (B, N), as many in each image."""
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def table_of(compared: Sequence[Change]) -> pd.DataFrame:
    """Makes a table with a row for each token of each comparison: kind, step, distance, change."""
    tables = [
        pd.DataFrame({"distance": one.distance.flatten().tolist(), "change": one.change.flatten().tolist()})
        for one in compared
    ]
    return pd.concat(tables, keys=[(one.kind, one.step) for one in compared], names=["kind", "step"]).reset_index()


def change_by(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Groups tokens by columns; gives their number, and the mean, median and 95th percentile of their change."""
    change = table.groupby(list(columns))["change"]
    statistics = change.agg(tokens="size", mean="mean", median="median", p95=lambda values: values.quantile(0.95))
    return statistics.reset_index()


def share_near_new(table: pd.DataFrame, kind: str) -> dict[str, float]:
    """Computes which share of the tokens of a kind is within distance 1 of new ones, and their share of all change."""
    rows = table[table["kind"] == kind]
    near = rows[rows["distance"] <= 1]
    return {"tokens": len(near) / len(rows), "change": float(near["change"].sum() / rows["change"].sum())}


@mpl.rc_context(STYLE)
def plot_changes(table: pd.DataFrame, example: Change, side: int) -> Figure:
    """Draws change over distance, a thin line for each step; beside it, one image's visible tokens at one step."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for color, kind in zip(("C0", "C1"), KINDS, strict=True):
        rows = table[table["kind"] == kind]
        steps = change_by(rows, ["step", "distance"]).pivot(index="distance", columns="step", values="mean")
        overall = change_by(rows, ["distance"]).set_index("distance")
        left.plot(steps, color=color, linewidth=0.7, alpha=0.35)
        left.plot(overall["mean"], "o-", color=color, label=f"{kind}: mean")
        left.plot(overall["median"], "s--", color=color, label=f"{kind}: median")
    left.set(xlabel="distance to the nearest new token", ylabel="change (1 - cosine similarity)", yscale="log")
    left.set_title("Change between two steps (thin: means of single steps)")
    left.xaxis.get_major_locator().set_params(integer=True)
    change = np.full(side * side, np.nan)
    change[example.positions[0].cpu()] = example.change[0].cpu()
    right.set_facecolor("0.88")  # of masked tokens, which the map leaves out
    sns.heatmap(
        change.reshape(side, side), cmap="viridis", vmin=0, square=True, xticklabels=False, yticklabels=False, ax=right,
        cbar_kws={"label": "1 - cosine similarity"},
    )  # fmt: skip
    for position in example.new[0].tolist():
        row, column = divmod(position, side)
        right.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="red", lw=1.6, clip_on=False))
    right.set_title(f"Visible tokens at step {example.step} (red: new; grey: masked)")
    return figure


@mpl.rc_context(STYLE)
def plot_maps(compared: Sequence[Change], table: pd.DataFrame, side: int) -> Figure:
    """Draws the paper's Fig. 5: where two images change between an early and a late pair of steps, and the averages.

    Args:
        compared: the changes of the first images come first.
        table: the changes of all images, as `table_of` gives them.
        side: of the token grid.
    """
    steps = sorted(table["step"].unique())
    shown = [steps[0], steps[-2]] if len(steps) > 2 else steps
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    subfigures: Any = figure.subfigures(1, 2, width_ratios=[5, 2])
    left, right = subfigures
    num_images = min(MAPPED, len(compared[0].positions))
    grid = left.subplots(num_images, 2 * len(shown), squeeze=False)
    colors = {"cmap": "viridis", "square": True, "xticklabels": False, "yticklabels": False}
    for row in range(num_images):
        for place, step in enumerate(shown):
            parts = [one for one in compared if one.step == step][: len(KINDS) + 1]  # of the first batch
            similarity, is_new = np.full(side**2, np.nan), np.zeros(side**2)
            for one in parts:
                similarity[one.positions[row].cpu()] = 1 - one.change[row].cpu()
                is_new[one.new[row].cpu()] = 1
            new, features = grid[row, 2 * place : 2 * place + 2]
            sns.heatmap(is_new.reshape(side, side), vmin=0, vmax=1.4, cbar=False, **{**colors, "cmap": "Reds"}, ax=new)
            sns.heatmap(similarity.reshape(side, side), vmax=1, **colors, ax=features)
            new.set_ylabel(f"image {row + 1}" if not place else "")
            if not row:
                new.set_title(f"newly decoded in step {step}")
                features.set_title(f"similarity, steps {step}-{step + 1}")
    axes = right.subplots()
    for color, kind in zip(("C0", "C1", "C3"), (*KINDS, NEW), strict=True):
        means = 1 - table[table["kind"] == kind].groupby("step")["change"].mean()
        axes.plot(means, "o-", color=color, label=f"{kind} tokens")
    axes.set_xticks(steps, [f"{step}-{step + 1}" for step in steps])
    axes.set(xlabel="steps that are compared", ylabel="cosine similarity", title="Mean over all images")
    return figure
