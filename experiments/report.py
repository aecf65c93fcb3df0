"""task=report: what runs have logged, as the panels of a dashboard; what a study has found, as a table and plots."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from callbacks.loggers import log_table
from enat.errors import InputError
from enat.files import write_atomically
from experiments.multirun import JOB
from experiments.study import Study, markdown_table

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
        except pd.errors.EmptyDataError:  # stopped before its first scalar
            continue
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            raise InputError(f"{path}: expected scalars with a column step: {error}") from error
        parts = [part[part.index < rows.index.min()] for part in parts] + [rows]
    return pd.concat(parts).sort_index() if parts else pd.DataFrame()


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


def plot_over_cost(study: Study, path: Path) -> None:
    """FID over operations, a point for each group with its deviation over seeds."""
    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (_, group) in enumerate(study.groups.iterrows()):
        place = group["gflop_per_image"], group["fid"]
        axes.errorbar(*place, yerr=group["fid_std"], fmt="o", color=f"C{number}", capsize=3, label=group["label"])
    axes.set(xlabel="GFLOP for an image", ylabel="FID")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_over_setting(study: Study, path: Path) -> None:
    """FID and Inception Score over what varies: a line over numbers, points over words."""
    scores = [name for name in ("fid", "inception_score") if name in study.groups and study.groups[name].notna().any()]
    figure = Figure(figsize=(5.5 * len(scores), 4.2), layout="constrained")
    groups = study.groups
    values = groups[study.varied[0]] if len(study.varied) == 1 else groups["label"]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = list(values) if numeric else list(range(len(groups)))
    order = sorted(range(len(groups)), key=lambda index: places[index])
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        chosen = groups.iloc[order]
        axes.errorbar(
            [places[index] for index in order], chosen[score], yerr=chosen[f"{score}_std"], capsize=3,
            fmt="o-" if numeric else "o",
        )  # fmt: skip
        if numeric:
            positive = [place for place in places if place > 0]
            if positive and max(positive) / min(positive) >= 16:
                axes.set_xscale("symlog", base=2, linthresh=min(positive))
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
            axes.set_xlabel(study.varied[0].replace("_", " "))
        else:
            axes.set_xticks(places, [textwrap.fill(label, 16) for label in groups["label"]], rotation=30, ha="right")
            axes.margins(x=0.15)
        axes.set_ylabel({"fid": "FID", "inception_score": "Inception Score"}[score])
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_losses(study: Study, path: Path) -> bool:
    """Loss and FID over steps: the mean of a group's runs, and a band from the least to the most; whether there are."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = {"Training loss": "train/loss", "Loss on held-out images": "val/loss", "FID while training": "val/fid"}
    drawn = False
    all_axes = figure.subplots(1, len(panels))
    for axes, (title, column) in zip(all_axes, panels.items(), strict=True):
        for number, (label, jobs) in enumerate(study.members().items()):
            runs = [read_scalars(study.folders[job]) for job in jobs["job"]]
            curves = [run[column].dropna() for run in runs if column in run]
            if not curves:
                continue
            drawn, table = True, pd.concat(curves, axis=1)
            if column == "train/loss":  # noisy: each step has masks of its own
                table = table.rolling(max(1, len(table) // 10), min_periods=1).mean()
            marker = "o" if len(table) < 15 else None
            axes.plot(table.index, table.mean(axis=1), color=f"C{number}", marker=marker, ms=3, lw=1.2, label=label)
            axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=f"C{number}", alpha=0.15, lw=0)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    if drawn:
        handles, labels = max((axes.get_legend_handles_labels() for axes in all_axes), key=lambda pair: len(pair[1]))
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), fontsize=8)
        figure.savefig(path, dpi=120)
    return drawn


def write_study(study: Study, title: str, folder: Path, logger: Mapping[str, Logger | None]) -> dict[str, Any]:
    """Writes table, CSV and pictures of a study; gives their paths, the groups, and the number of jobs that failed."""
    pictures = []
    scored = "fid" in study.groups and study.groups["fid"].notna().any()
    if scored and study.varied:
        plot_over_setting(study, folder / f"fid_over_{'_'.join(study.varied)}.png")
        pictures.append(folder / f"fid_over_{'_'.join(study.varied)}.png")
    if scored and "gflop_per_image" in study.groups:
        plot_over_cost(study, folder / "fid_over_flops.png")
        pictures.append(folder / "fid_over_flops.png")
    if plot_losses(study, folder / "losses.png"):
        pictures.append(folder / "losses.png")
    study.jobs.to_csv(folder / "report.csv", index=False)
    failed = int(study.jobs["error"].notna().sum())
    text = [f"# {title}", f"{len(study.jobs)} jobs, {failed} of them without results." if failed else ""]
    text += [
        markdown_table(study),
        "± is the standard deviation over seeds." if study.groups["seeds"].max() > 1 else "",
    ]
    text += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    write_atomically(folder / "report.md", "\n\n".join(part for part in text if part).encode() + b"\n")
    table = study.groups.drop(columns="label").astype(object)
    log_table(logger, title, table.where(table.notna(), None).to_dict("records"), pictures)
    return {
        "report": str(folder / "report.md"),
        "csv": str(folder / "report.csv"),
        "pictures": [str(picture) for picture in pictures],
        "groups": table.where(table.notna(), None).to_dict("records"),
        "failed": failed,
    }


def report(runs: str | None, logger: Mapping[str, Logger | None], output: str) -> dict[str, Any]:
    """Draws the panels of all runs below a folder; of a multirun's folder, also a table and plots of what varies.

    Args:
        runs: a run's folder, or one that holds several, such as a multirun's.
        logger: by name; Weights & Biases gets the table and the plots of a multirun.
        output: folder of `panels.png`; and of `report.md`, `report.csv` and pictures.

    Raises:
        InputError: if there are no runs.
    """
    if runs is None:
        raise InputError("runs=null: expected runs=DIR, the folder of a run or of several.")
    folder = Path(runs)
    found = sorted({path.parents[2] for path in folder.rglob("metrics/version_*/metrics.csv")})
    jobs = any(folder.rglob(JOB))
    if not found and not jobs:
        raise InputError(f"runs={runs}: there is no run with metrics in it; expected one made with logger=csv.")
    results: dict[str, Any] = {"runs": [str(run) for run in found]}
    names = {str(run.relative_to(folder)) if run != folder else run.name: run for run in found}
    scalars = {name: read for name, run in names.items() if len(read := read_scalars(run))}
    if scalars:
        results["panels"] = str(Path(output) / "panels.png")
        plot_panels(scalars, Path(output) / "panels.png")
    return results | (write_study(Study(folder), folder.name, Path(output), logger) if jobs else {})
