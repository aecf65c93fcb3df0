"""The style and legend of all figures, and the panels of `task=report` and `task=dashboard` that show how runs went."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from enat.files import write_atomically

STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("paper", font_scale=1.2)}
STYLE["text.parse_math"] = False  # a name may have dollar signs
PANELS = {  # by section and title: logged scalars over `step`; the second of a panel is of held-out images
    "Scores": {
        "FID of validations": ["val/fid"],
        "Inception Score of validations": ["val/inception_score"],
        "Loss": ["train/loss", "val/loss"],
        "Accuracy on masked tokens": ["train/accuracy", "val/accuracy"],
    },
    "Optimisation": {
        "Learning rate": ["train/learning_rate"],
        "Gradient norm": ["train/grad_norm"],
        "Skipped steps": ["train/skipped_steps"],
        "Mask ratio": ["train/mask_ratio"],
    },
    "Speed": {
        "Samples per second": ["train/samples_per_second"],
        "Share of time waiting for data": ["train/data_wait"],
        "Memory (GB)": ["train/memory_gb"],
        "Share of peak matrix product speed": ["train/utilization"],
    },
}


def save(figure: Figure, path: Path) -> None:
    """Writes a figure with one legend of all labels below its axes, in as many columns as fit."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        if legend := axes.get_legend():  # seaborn puts one onto the data
            legend.remove()
    if handles:
        width = 0.55 + 0.075 * max(map(len, handles))  # of a column, in inches
        columns = max(1, min(len(handles), int(figure.get_figwidth() / width)))
        figure.legend(
            handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=columns, frameon=False
        )
    write_atomically(Path(path), partial(figure.savefig, format="png", dpi=150, bbox_inches="tight"))


@mpl.rc_context(STYLE)
def plot_panels(runs: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draws the panels with a colour for each run, of the scalars that `read_scalars` gives."""
    figure = Figure(figsize=(16, 2.8 * len(PANELS)), layout="constrained")
    palette = sns.color_palette("tab10" if len(runs) <= 10 else "husl", len(runs))
    for row, (section, panels) in zip(figure.subplots(len(PANELS), 4), PANELS.items(), strict=True):
        for axes, (title, series) in zip(row, panels.items(), strict=True):
            for color, (name, scalars) in zip(palette, runs.items(), strict=True):
                axes.plot([], [], color=color, label=name)
                for column, style in zip(series, ("-", "--"), strict=False):
                    values = scalars.get(column, pd.Series(dtype=float)).dropna()
                    axes.plot(values, style, color=color, marker="o" if len(values) < 15 else None, markersize=4)
            axes.set(title=title, xlabel="optimiser step")
            if not any(column in scalars for column in series for scalars in runs.values()):
                axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes, color="0.5")
                axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(section, fontweight="bold")
    axes.plot([], [], "k--", label="on held-out images")
    save(figure, path)
