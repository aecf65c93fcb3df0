"""task=report: what runs have logged, as the panels of a dashboard; what a study has found, as a table and plots."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.loggers import log_table
from enat.errors import InputError
from enat.files import write_atomically
from experiments.reporting.study import UNFINISHED, Study, markdown_table, natural, read_scalars, shown
from experiments.runtime.multirun import JOB

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


MOST = 10  # groups with a colour and a name in one picture
SCORES = {"fid": "FID", "inception_score": "Inception Score"}


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for a whole figure, below it, in as many columns as there is room for."""
    room = 0.6 + 0.062 * max(map(len, labels), default=0)  # inches
    columns = max(1, min(len(labels), int(figure.get_figwidth() / room)))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)


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
    _legend(figure, *rows[0][2].get_legend_handles_labels())
    figure.savefig(path, dpi=110)


def plot_over(x: str, study: Study, path: Path) -> None:
    """FID over operations or Inception Score, a point a group; of many, those have names that none beats in both."""
    groups = study.groups.dropna(subset=[x, "fid"])
    named = groups
    if len(groups) > MOST:
        from_best = groups.sort_values([x, "fid"], ascending=[x == "gflop_per_image", True])
        best = from_best["fid"].cummin()
        named = from_best[(best < best.shift()) | best.shift().isna()].nsmallest(MOST, "fid").sort_values(x)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    if len(named) < len(groups):
        rest = groups.drop(named.index)
        axes.plot(rest[x], rest["fid"], "o", color="0.75", ms=4, label="other settings")
        axes.plot(named[x], named["fid"], color="0.6", lw=1, zorder=1)
    for number, (_, group) in enumerate(named.iterrows()):
        place = group[x], group["fid"]
        axes.errorbar(*place, yerr=group["fid_std"], fmt="o", color=f"C{number}", capsize=3, label=group["label"])
    least, most = groups[x].min(), groups[x].max()
    axes.set(xlabel={"gflop_per_image": "GFLOP for an image"}.get(x, "Inception Score"), ylabel="FID")
    if x == "gflop_per_image" and most >= 16 * least > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    elif x == "gflop_per_image":
        axes.set_xlim(0, 1.08 * most)  # or small differences look large
    axes.grid(alpha=0.3)
    _legend(figure, *axes.get_legend_handles_labels())
    figure.savefig(path, dpi=150)


def _place_values(axes: Axes, name: str, values: Sequence[Any], numeric: bool) -> list[float]:
    """Makes the horizontal axis that of a setting, of numbers or of words; gives the places of the values on it."""
    axes.set_xlabel(name.replace("_", " "))
    values = values if numeric else [shown(value).replace("_", " ") for value in values]
    distinct = list(dict.fromkeys(values))
    if not numeric:
        axes.set_xticks(range(len(distinct)), [textwrap.fill(value, 16) for value in distinct])
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(x=0.15)
        return [distinct.index(value) for value in values]
    positive = [value for value in distinct if value > 0]
    if positive and max(positive) >= 8 * min(positive) and len(distinct) <= MOST:
        axes.set_xscale("symlog", base=2, linthresh=min(positive))  # 0 has a place too
    if len(distinct) <= MOST:
        axes.set_xticks(distinct, [f"{value:g}" for value in distinct])
        axes.minorticks_off()
    return [float(value) for value in values]


def plot_over_settings(study: Study, path: Path) -> None:
    """Scores over what varies: lines over numbers; a row for each group of words; of more settings, a panel each."""
    scores = {name: title for name, title in SCORES.items() if study.groups.notna().any().get(name, False)}
    groups, across = study.groups, study.axis_and_lines(MOST)
    if across is not None:
        name, other = across
        figure = Figure(figsize=(5 * len(scores), 4), layout="constrained")
        for axes, (score, title) in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores.items(), strict=True):
            axes.set_ylabel(title)
            _place_values(axes, name, sorted(groups[name]), numeric=True)
            for value, line in groups.groupby(groups[other].map(shown), sort=False) if other else [("", groups)]:
                line = line.sort_values(name)
                label = f"{other} {value}".replace("_", " ")
                axes.errorbar(
                    line[name].astype(float), line[score], yerr=line[f"{score}_std"], fmt="o-", capsize=3, label=label
                )
        if other:
            _legend(figure, *axes.get_legend_handles_labels())
    elif len(groups) <= 2 * MOST:
        labels = [label if len(label) <= 40 else label.replace(", ", ",\n") for label in groups["label"]]
        height = sum(0.25 + 0.17 * len(label.splitlines()) for label in labels)
        figure = Figure(figsize=(2.5 + 4 * len(scores), 1 + height), layout="constrained")
        rows = range(len(groups))
        all_axes = figure.subplots(1, len(scores), squeeze=False, sharey=True)[0]
        for axes, (score, title) in zip(all_axes, scores.items(), strict=True):
            axes.errorbar(groups[score], rows, xerr=groups[f"{score}_std"], fmt="o", capsize=3)
            axes.set(xlabel=title, ylim=(len(groups) - 0.5, -0.5))
            for row in (row for row in rows if pd.isna(groups[score].iloc[row])):
                axes.text(
                    0.02, row, "no result", transform=axes.get_yaxis_transform(), color="0.5", fontsize=8, va="center"
                )
        all_axes[0].set_yticks(rows, labels)
        all_axes[0].tick_params(axis="y", labelsize=9)
    else:
        figure = Figure(figsize=(3.6 * len(study.varied), 3.6), layout="constrained")
        all_axes = figure.subplots(1, len(study.varied), squeeze=False, sharey=True)[0]
        best = groups["fid"].argmin()
        for axes, name in zip(all_axes, study.varied, strict=True):
            places = _place_values(axes, name, list(groups[name]), study.is_numeric(name))
            axes.errorbar(places, groups["fid"], yerr=groups["fid_std"], fmt="o", ms=4, alpha=0.6, label="a setting")
            axes.plot(places[best], groups["fid"].iloc[best], "*", color="C1", ms=13, label="the lowest FID")
        all_axes[0].set_ylabel("FID")
        _legend(figure, *all_axes[0].get_legend_handles_labels())
    for axes in figure.axes:
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def plot_losses(study: Study, path: Path) -> bool:
    """Loss and FID over steps: the mean of a group's runs, and a band from the least to the most; whether there are."""
    panels = {
        "Training loss, running mean": "train/loss",
        "Loss on held-out images": "val/loss",
        "FID while training": "val/fid",
    }
    scalars = [
        (label, [read for job in jobs["job"] if len(read := read_scalars(study.folders[job]))])
        for label, jobs in study.members()
    ]
    if len(scalars) > MOST and "fid" in study.groups:
        scalars = [scalars[index] for index in sorted(study.groups["fid"].nsmallest(MOST).index)]
    scalars = [(label, runs) for label, runs in scalars if runs][:MOST]
    figure = Figure(figsize=(12, 4), layout="constrained")
    all_axes = figure.subplots(1, len(panels))
    for axes, (title, column) in zip(all_axes, panels.items(), strict=True):
        for number, (label, runs) in enumerate(scalars):
            curves = [run[column].dropna() for run in runs if column in run]
            table = pd.concat(curves, axis=1).sort_index() if curves else pd.DataFrame()
            if column == "train/loss":  # noisy: each step has masks of its own
                table = table.rolling(max(1, len(table) // 10), min_periods=1).mean()
            marker, color = "o" if len(table) < 15 else None, f"C{number}"
            axes.plot(table.index, table.mean(axis=1), color=color, marker=marker, ms=3, lw=1.2, label=label)
            axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.15, lw=0)
        if column == "val/fid" and axes.dataLim.ymin > 0 and axes.dataLim.ymax > 10 * axes.dataLim.ymin:
            axes.set_yscale("log")  # or the first score hides how the last ones differ
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    if scalars:
        if len(study.groups) > MOST:
            figure.suptitle(f"{len(scalars)} of {len(study.groups)} groups, those with the lowest FID", fontsize=10)
        _legend(figure, *all_axes[0].get_legend_handles_labels())
        figure.savefig(path, dpi=150)
    return bool(scalars)


def write_study(study: Study, title: str, folder: Path, logger: Mapping[str, Logger | None]) -> dict[str, Any]:
    """Writes table, CSV and pictures of a study; gives their paths, the groups, and the number of jobs that failed."""
    pictures = []
    known = study.groups.notna().any()
    if known.get("fid", False) and study.varied:
        settings = "_".join(study.varied) if len(study.varied) <= 2 else "settings"
        pictures.append(folder / f"fid_over_{settings}.png")
        plot_over_settings(study, pictures[-1])
    if known.get("fid", False) and study.groups.get("gflop_per_image", pd.Series(dtype=float)).nunique() > 1:
        pictures.append(folder / "fid_over_flops.png")
        plot_over("gflop_per_image", study, pictures[-1])
    if len(study.groups) > 2 * MOST and known.get("fid", False) and known.get("inception_score", False):
        pictures.append(folder / "fid_over_inception_score.png")  # for which the one over settings has no place
        plot_over("inception_score", study, pictures[-1])
    if plot_losses(study, folder / "losses.png"):
        pictures.append(folder / "losses.png")
    study.jobs.to_csv(folder / "report.csv", index=False)
    errors = study.jobs["error"].dropna()
    unfinished = int((errors == UNFINISHED).sum())
    count = f"{len(study.jobs)} jobs: {len(errors) - unfinished} failed, {unfinished} not finished."
    spread = "± is the sample standard deviation over seeds." if study.groups["seeds"].max() > 1 else ""
    text = [f"# {title}", count if len(errors) else "", markdown_table(study), spread]
    text += [f"![{picture.stem.replace('_', ' ')}]({picture.name})" for picture in pictures]
    write_atomically(folder / "report.md", "\n\n".join(part for part in text if part).encode() + b"\n")
    table = study.groups.drop(columns="label").astype(object)
    table = table.where(table.notna(), None)
    words = {name: table[name].map(shown) for name in study.varied if not study.is_numeric(name)}
    log_table(logger, title, table.assign(**words).to_dict("records"), pictures)  # W&B refuses columns of both
    return {
        "report": str(folder / "report.md"),
        "csv": str(folder / "report.csv"),
        "pictures": [str(picture) for picture in pictures],
        "groups": table.to_dict("records"),
        "failed": len(errors),
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
    found = sorted({path.parents[2] for path in folder.rglob("metrics/version_*/metrics.csv")}, key=natural)
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
