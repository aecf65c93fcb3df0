"""The panels that show how runs went: in a picture by `task=report`, on Weights & Biases by `task=dashboard`."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.reporting.figures import STYLE, colours, save

PANELS = {  # by section and title: logged scalars over `step`; the second of a panel is of held-out images
    "Scores": {
        "FID": ["val/fid"],
        "Inception Score": ["val/inception_score"],
        "Loss": ["train/loss", "val/loss"],
        "Accuracy on masked tokens": ["train/accuracy", "val/accuracy"],
    },
    "Optimization": {
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


@mpl.rc_context(STYLE)
def plot_panels(runs: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draws the panels, a colour for each run.

    Args:
        runs: scalars by name, as `read_scalars` gives them.
        path: of the picture.
    """
    columns = max(len(panels) for panels in PANELS.values())
    figure = Figure(figsize=(4 * columns, 2.8 * len(PANELS)), layout="constrained")
    rows = figure.subplots(len(PANELS), columns, squeeze=False)
    palette = dict(zip(runs, colours(len(runs)), strict=True))
    for row, (section, panels) in zip(rows, PANELS.items(), strict=True):
        for axes, (title, series) in zip(row, panels.items(), strict=True):
            for name, scalars in runs.items():
                for column, style in zip(series, ("-", "--"), strict=False):
                    values = scalars[column].dropna() if column in scalars else pd.Series(dtype=float)
                    marker = "o" if len(values) < 15 else None
                    sns.lineplot(values, color=palette[name], linestyle=style, marker=marker, ax=axes)
            axes.set(title=title, xlabel="optimizer step", ylabel="")
        row[0].set_ylabel(section, fontweight="bold")
    handles = [Line2D([], [], color=color) for color in palette.values()]
    handles += [Line2D([], [], color="black", linestyle="--")]
    save(figure, path, handles, [*runs, "on held-out images"])
