"""task=report: what runs have logged, as the panels of a dashboard."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from enat.errors import InputError

PANELS = {  # by section and title: series over `step`, which `task=dashboard` shows on W&B too
    "Scores": {
        "FID": ["val/fid"],
        "Inception Score": ["val/inception_score"],
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
        "Share of the time waiting for data": ["train/data_wait"],
        "Memory (GB)": ["train/memory_gb"],
        "Share of the matrix-product peak": ["train/utilization"],
    },
}


def read_scalars(run: Path) -> pd.DataFrame:
    """The scalars of a run by optimiser step, one row each; what a later start logged replaces what an earlier did.

    Raises:
        InputError: if a file can't be read.
    """
    parts: list[pd.DataFrame] = []
    starts = sorted(run.glob("metrics/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in starts:
        try:
            rows = pd.read_csv(path).dropna(subset="step").groupby("step").first()
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            raise InputError(f"{path}: expected scalars with a column step: {error}") from error
        parts = [part[part.index < rows.index.min()] for part in parts] + [rows]
    return pd.concat(parts).sort_index()


def plot_panels(runs: dict[str, pd.DataFrame], path: Path) -> None:
    """Draws the panels, a colour for each run, the second series of a panel dashed."""
    columns = max(map(len, PANELS.values()))
    figure = Figure(figsize=(4.2 * columns, 3.2 * len(PANELS)), layout="constrained")
    rows = figure.subplots(len(PANELS), columns, squeeze=False)
    for row, (section, panels) in zip(rows, PANELS.items(), strict=True):
        for axes, (title, series) in zip(row, panels.items(), strict=True):
            for number, (name, scalars) in enumerate(runs.items()):
                for style, column in zip(("-", "--"), series, strict=False):
                    if column in scalars:
                        values = scalars[column].dropna()
                        marker = "o" if len(values) < 15 else None
                        label = name if column == series[0] else None
                        axes.plot(
                            values.index, values, style, color=f"C{number}", marker=marker, ms=3, lw=1, label=label
                        )
            axes.set_title(title if len(series) == 1 else f"{title} (dashed: held out)", fontsize=10)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(section, fontsize=11, fontweight="bold")
    handles, labels = rows[0][2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=8)
    figure.savefig(path, dpi=110)


def report(runs: str | None, output: str) -> dict[str, Any]:
    """Draws the panels of all runs below a folder.

    Args:
        runs: a run's folder, or one that holds several, such as a multirun's.
        output: folder of `panels.png`.

    Raises:
        InputError: if there are no runs.
    """
    if runs is None:
        raise InputError("runs=null: expected runs=DIR, the folder of a run or of several.")
    folder = Path(runs)
    found = sorted({path.parents[2] for path in folder.rglob("metrics/version_*/metrics.csv")})
    if not found:
        raise InputError(f"runs={runs}: there is no run with metrics in it; expected one made with logger=csv.")
    names = {str(run.relative_to(folder)) if run != folder else run.name: run for run in found}
    path = Path(output) / "panels.png"
    plot_panels({name: read_scalars(run) for name, run in names.items()}, path)
    return {"runs": [str(run) for run in found], "panels": str(path)}
