"""Measures and draws how much the features of tokens change between two steps of sampling, and where on the grid.

Shapes: `B` images, `L` tokens of an image on a square grid, `V` visible and `M` masked tokens, `D` width.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from enat.net import ENAT
from enat.variants import NAT
from experiments.reporting.figures import STYLE, colours, save_with_labels_of

KINDS = ("visible", "masked")


class Change(NamedTuple):
    """How much tokens changed that are of one kind before and after a step, `N` in each of `B` images."""

    step: int  # the later of the two that are compared
    kind: str
    positions: Tensor  # (B, N)
    similarity: Tensor  # cosine of a token's two features, (B, N)
    distance: Tensor  # to the nearest token revealed between the steps, in rows or columns, (B, N)
    new: Tensor  # positions of the tokens revealed between the steps, (B, R)


def distance_to(positions: Tensor, num_tokens: int) -> Tensor:
    """Computes how far every token of the grid is from the nearest of some, by Chebyshev's distance.

    Args:
        positions: of the tokens that distances are to, (B, N).
        num_tokens: of the square grid.

    Returns:
        Distances in tokens, (B, L).
    """
    side = math.isqrt(num_tokens)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side, device=positions.device)] * 2, indexing="ij"), dim=-1)
    places = grid.flatten(0, 1)  # (L, 2)
    apart = (places[None, :, None] - places[positions][:, None]).abs().amax(dim=-1)  # (B, L, N)
    return apart.amin(dim=2)


def features(net: ENAT, token_ids: Tensor, visible: Tensor, masked: Tensor, modulations: Sequence[Tensor]) -> Tensor:
    """Computes the encoder's features of visible tokens and the decoder's of masked ones, (B, V+M, D), in this order.

    Visible tokens' are those that ENAT would reuse; the decoder's are those that the head gets.
    """
    if isinstance(net, NAT):
        return net.features(token_ids, visible, masked, modulations)
    encoded = net.encode(token_ids.gather(1, visible), visible, modulations)
    encoded = encoded[..., : net.width]  # keys and values follow in KeyValueReuse
    return torch.cat([encoded, net.decode(encoded, masked, modulations)], dim=1)


def changes(net: ENAT, states: list[Tensor], class_ids: Tensor) -> Iterator[Change]:
    """Compares the features at consecutive steps, each computed from scratch: nothing is reused.

    A step that reveals nothing is left out, and so is the first one with visible tokens, which has none before it.

    Args:
        net: the network.
        states: the token ids that each step starts from, (B, L) each, [MASK] where masked.
        class_ids: (B,).
    """
    modulations = net.modulations(class_ids)
    before = None
    for step, token_ids in enumerate(states):
        is_masked = token_ids == net.mask_token_id
        order = is_masked.int().argsort(dim=1, stable=True)  # visible ones first
        visible, masked = order.split([int((~is_masked[0]).sum()), int(is_masked[0].sum())], dim=1)
        if before is not None and visible.shape[1] == before[0].shape[1]:
            continue
        ordered = features(net, token_ids, visible, masked, modulations)
        by_position = torch.empty_like(ordered).scatter_(1, order.unsqueeze(2).expand_as(ordered), ordered)
        if before is not None and before[0].shape[1]:
            old_visible, was_masked, old = before
            similarity = F.cosine_similarity(by_position.float(), old.float(), dim=2)  # (B, L)
            new = (was_masked & ~is_masked).nonzero()[:, 1].view(len(token_ids), -1)
            distance = distance_to(new, token_ids.shape[1])
            for kind, positions in zip(KINDS, (old_visible, masked), strict=True):
                yield Change(step, kind, positions, similarity.gather(1, positions), distance.gather(1, positions), new)
        before = visible, is_masked, by_position


def table_of(compared: Sequence[Change]) -> pd.DataFrame:
    """Makes a table with a row for each token of each comparison: kind, step, distance, and change: 1 - similarity."""
    parts = [
        pd.DataFrame(
            {"distance": one.distance.flatten().tolist(), "change": (1 - one.similarity).flatten().tolist()}
        ).assign(kind=one.kind, step=one.step)
        for one in compared
    ]
    return pd.concat(parts, ignore_index=True)


def change_by(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Groups tokens by columns; gives their number, and the mean, median and 95th percentile of their change.

    A few tokens whose features turn around altogether may carry the mean; the median then tells of the others.
    """
    change = table.groupby(list(columns))["change"]
    statistics = change.agg(tokens="size", mean="mean", median="median", p95=lambda values: values.quantile(0.95))
    return statistics.reset_index()


def share_near_new(table: pd.DataFrame, kind: str, distance: int = 1) -> dict[str, float]:
    """Computes which share of the tokens of a kind is within a distance of new ones, and their share of all change."""
    rows = table[table["kind"] == kind]
    near = rows[rows["distance"] <= distance]
    return {"tokens": len(near) / len(rows), "change": float(near["change"].sum() / rows["change"].sum())}


@mpl.rc_context(STYLE)
def plot_changes(table: pd.DataFrame, example: Change, side: int, path: Path) -> None:
    """Draws change over distance, a thin line for each step; beside it, one image's visible tokens at one step.

    Args:
        table: as `table_of` gives it.
        example: of visible tokens; its first image is drawn.
        side: of the grid.
        path: of the picture.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for color, kind in zip(colours(2), KINDS, strict=True):
        rows = table[table["kind"] == kind]
        overall = change_by(rows, ["distance"])
        sns.lineplot(
            change_by(rows, ["step", "distance"]), x="distance", y="mean", units="step", estimator=None,
            color=color, linewidth=0.7, alpha=0.35, ax=left,
        )  # fmt: skip
        for statistic, style in (("mean", "o-"), ("median", "s--")):
            left.plot(overall["distance"], overall[statistic], style, color=color, label=f"{kind}: {statistic}")
    left.set(xlabel="distance to the nearest new token", ylabel="change (1 - cosine similarity)", yscale="log")
    left.set_title("Change between two steps (thin: means of single steps)")
    left.xaxis.get_major_locator().set_params(integer=True)
    change = np.full(side * side, np.nan)
    change[example.positions[0].cpu()] = 1 - example.similarity[0].cpu()
    right.set_facecolor("0.88")  # of masked tokens, which the map leaves out
    sns.heatmap(
        change.reshape(side, side), cmap="viridis", vmin=0, square=True, xticklabels=False, yticklabels=False, ax=right,
        cbar_kws={"label": "1 - cosine similarity"},
    )  # fmt: skip
    for position in example.new[0].tolist():
        row, column = divmod(position, side)
        right.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor="red", lw=1.6, clip_on=False))
    right.set_title(f"Visible tokens at step {example.step} (red: new; grey: masked)")
    save_with_labels_of(left, path)
