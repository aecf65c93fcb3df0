"""What all figures share: their style, colours, and a legend below the axes, clear of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MOST_NAMES = 10  # groups with a colour and a name in one figure
STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper", font_scale=1.2)}


def colours(count: int) -> list[Any]:
    """Gives colours that are easy to tell apart."""
    return list(sns.color_palette("tab10" if count <= 10 else "husl", count))


def save(figure: Figure, path: Path, handles: Sequence[Any] = (), labels: Sequence[str] = ()) -> None:
    """Writes a figure with one legend for all of its axes, below them, in as many columns as fit."""
    for axes in figure.axes:
        if legend := axes.get_legend():  # seaborn puts one onto the data
            legend.remove()
    if labels:
        column_width = 0.55 + 0.075 * max(map(len, labels))  # inches
        columns = max(1, min(len(labels), int(figure.get_figwidth() / column_width)))
        figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def save_with_labels_of(axes: Axes, path: Path) -> None:
    """Writes the figure of `axes`, whose labels are the legend."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    save(figure, path, *axes.get_legend_handles_labels())
