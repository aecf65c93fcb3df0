"""The plots of a study: FID over what varies, over operations and over Inception Score; losses over steps.

Points are means over seeds, and bars are standard deviations over seeds, as in the table.
"""

import textwrap
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.figures import STYLE, save
from experiments.reporting.published import OTHERS
from experiments.reporting.runs import read_scalars
from experiments.reporting.study import MOST_NAMES, Study, format_value

LOSSES = {
    "train/loss": "Training loss (running mean)",
    "val/loss": "Loss on held-out images",
    "val/fid": "FID while training",
}
PUBLISHED_FID = "FID in the paper (ImageNet)"
MOST_POINTS = 200  # along a curve of losses; more can't be seen


@mpl.rc_context(STYLE)
def plot_study(study: Study, folder: Path) -> list[Path]:
    """Draws every plot that the results of a study allow, and returns their files."""
    figures: dict[str, Figure | None] = {}
    axis = main_axis(study)
    if study.has("fid") and study.varied:
        settings = "_".join(study.varied) if len(study.varied) <= 2 else "settings"
        figures[f"fid_over_{settings}"] = plot_over_options(study)
        if study.groups["published_gop_per_image"].nunique() > 1 and study.has("paper_gop_per_image"):
            figures["fid_over_operations"] = plot_beside_paper(study)
        elif study.has("gflop_per_image") and study.groups["gflop_per_image"].nunique() > 1:
            figures["fid_over_flops"] = plot_fid_over(study, "gflop_per_image", axis)
        if study.has("inception_score") and study.groups["inception_score"].nunique() > 1:
            figures["fid_over_inception_score"] = plot_fid_over(study, "inception_score", axis)
    figures["losses"] = plot_losses(study)
    drawn = {folder / f"{name}.png": figure for name, figure in figures.items() if figure}
    for path, figure in drawn.items():
        save(figure, path)
    return list(drawn)


def main_axis(study: Study) -> str | None:
    """Chooses the numeric option with the most values; None where lines over it would say little."""
    axis = max(study.numeric_options(), key=lambda name: study.groups[name].nunique(), default=None)
    return axis if axis and study.lines_over(axis) is not None else None


def plot_over_options(study: Study) -> Figure:
    """Draws scores over what varies: lines over numbers; a row for each of a few groups, or of names such as those of
    runs; a panel for each option.
    """
    if axis := main_axis(study):
        return _plot_lines(study, axis)
    has_rows = len(study.groups) <= 2 * MOST_NAMES or not study.numeric_options()
    return _plot_rows(study) if has_rows else _plot_option_panels(study)


def _scale(axes: Axes, name: str, values: pd.Series) -> None:
    """Makes an axis of numbers, with a tick at each of a few, by powers of two where they span a wide range."""
    distinct = sorted(values.unique())
    axes.set_xlabel(name.replace("_", " "))
    if len(distinct) > MOST_NAMES:
        return
    positive = [value for value in distinct if value > 0]
    if positive and max(positive) >= 8 * min(positive):
        axes.set_xscale("symlog", base=2, linthresh=min(positive))  # 0 has a place too
        axes.autoscale(axis="x")
    axes.set_xticks(distinct, [f"{value:g}" for value in distinct])
    axes.minorticks_off()


def _look(number: int) -> tuple[str, str]:
    """Gives the colour and the marker of a line: ten colours, which begin again with another marker."""
    return f"C{number % 10}", "os"[number // 10]


def _plot_lines(study: Study, axis: str) -> Figure:
    titles = study.score_titles()
    lines = study.jobs["group"].map(study.lines_over(axis))
    looks = {label: _look(number) for number, label in enumerate(lines.unique())}
    by_line = {
        "hue": lines,
        "palette": {label: color for label, (color, _) in looks.items()},
        "style": lines,
        "markers": {label: marker for label, (_, marker) in looks.items()},
        "dashes": False,
    }
    figure = Figure(figsize=(5 * len(titles), 3.8), layout="constrained")
    for axes, (score, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        sns.lineplot(
            study.jobs, x=axis, y=score, **by_line, errorbar="sd", err_style="bars", err_kws={"capsize": 3}, ax=axes
        )
        axes.set_ylabel(title)
        _scale(axes, axis, study.groups[axis])
    return figure


def _plot_rows(study: Study) -> Figure:
    """Draws a row for each group, with a small point for each seed."""
    titles = study.score_titles()
    labels = [textwrap.fill(label, 40) for label in study.groups["label"]]
    height = 0.8 + sum(0.4 + 0.2 * label.count("\n") for label in labels)
    columns = len(titles) + study.has("published_fid")
    figure = Figure(figsize=(2.5 + 4 * columns, height), layout="constrained")
    all_axes = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes, (score, title) in zip(all_axes, titles.items(), strict=False):
        rows = {"data": study.jobs, "x": score, "y": "group", "order": study.groups.index, "orient": "h", "ax": axes}
        sns.stripplot(**rows, jitter=False, color="0.7", size=4, label="one seed")
        sns.pointplot(
            **rows, errorbar="sd", linestyle="none", capsize=0.2, markersize=5, err_kws={"linewidth": 1.2},
            color="C0", label="mean and standard deviation",
        )  # fmt: skip
        axes.set(xlabel=title, ylabel="")
        axes.set_yticks(range(len(labels)), labels)
        for row in np.flatnonzero(study.groups[score].isna()):
            axes.text(0.02, row, "no result", transform=axes.get_yaxis_transform(), color="0.5", va="center")
    if study.has("published_fid"):
        published = study.groups["published_fid"]
        axes = all_axes[-1]
        axes.plot(published, range(len(labels)), "C1D", label="in the paper")
        axes.set(xlabel=PUBLISHED_FID)
        if published.max() > 10 * published.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
    return figure


def _plot_option_panels(study: Study) -> Figure:
    """Draws FID over each option, whatever the others are, and marks the lowest."""
    groups = study.groups
    best = groups["fid"].idxmin()
    figure = Figure(figsize=(3.2 * len(study.varied), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(study.varied), squeeze=False, sharey=True)[0]
    for axes, name in zip(all_axes, study.varied, strict=True):
        numeric = name in study.numeric_options()
        places = groups[name] if numeric else groups[name].map(format_value).str.replace("_", " ")
        axes.plot(places, groups["fid"], "o", alpha=0.6, label="a setting")
        axes.plot(places[best], groups["fid"][best], "*", ms=13, label="the lowest FID")
        axes.set(xlabel=name.replace("_", " "), ylabel=study.score_titles()["fid"])
        if numeric:
            _scale(axes, name, places)
        else:
            axes.tick_params(axis="x", labelrotation=90)  # long names would cover each other
    return figure


def plot_fid_over(study: Study, x: str, axis: str | None) -> Figure:
    """Draws FID over operations (fewer are better) or over Inception Score (more is better).

    Args:
        study: the jobs.
        x: `gflop_per_image` or `inception_score`.
        axis: the option that varies along lines; None for a point for each group.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    groups = study.groups.dropna(subset=[x, "fid"])
    if axis:
        _plot_along_lines(axes, groups.assign(line=study.lines_over(axis)), x, axis)
    else:
        _plot_best(axes, groups, x)
    titles = {"gflop_per_image": "GFLOP per image", **study.score_titles()}
    axes.set(xlabel=titles[x], ylabel=titles["fid"])
    if groups["fid"].max() > 2.5 * groups["fid"].min() > 0:
        axes.set_yscale("log")  # or the highest values hide how the lowest ones differ
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    if x == "gflop_per_image":
        axes.set_xlim(0)  # shows what is saved
    return figure


def _plot_along_lines(axes: Axes, groups: pd.DataFrame, x: str, axis: str) -> None:
    """Draws lines along which one option varies; of a few lines, its value is written at each point."""
    lines = list(groups.sort_values(axis, kind="stable").groupby("line", sort=False))
    for number, (label, line) in enumerate(lines):
        color, marker = _look(number)
        places = line[[x, "fid"]].to_numpy()
        bars = {"xerr": line[f"{x}_std"], "yerr": line["fid_std"], "elinewidth": 0.7}
        axes.errorbar(places[:, 0], places[:, 1], **bars, fmt=f"{marker}-", color=color, label=label)
        for place, value in zip(places, line[axis].map(format_value), strict=True):
            if len(lines) <= MOST_NAMES // 2:
                axes.annotate(value, place, xytext=(5, -4), textcoords="offset points", color=color, va="top")
    values = ", ".join(map(format_value, sorted(groups[axis].unique())))
    axes.set_title(f"Along each line: {axis.replace('_', ' ')} {values}")
    axes.margins(0.08)  # room for the values


def _plot_best(axes: Axes, groups: pd.DataFrame, x: str) -> None:
    """Draws a point for each group; of many groups, those have colours and names that no other beats in both."""
    named = groups
    if len(groups) > MOST_NAMES:
        best_first = groups.sort_values([x, "fid"], ascending=[x == "gflop_per_image", True])
        lowest_before = best_first["fid"].cummin().shift(fill_value=np.inf)
        named = best_first[best_first["fid"] < lowest_before].nsmallest(MOST_NAMES, "fid").sort_values(x)
        rest = groups.drop(named.index)
        axes.plot(rest[x], rest["fid"], "o", color="0.75", ms=4, label="other settings")
        axes.plot(named[x], named["fid"], color="0.6", lw=1, zorder=1)
    for number, (_, group) in enumerate(named.iterrows()):
        axes.errorbar(group[x], group["fid"], group["fid_std"], fmt=f"C{number}o", label=group["label"], capsize=3)


def plot_beside_paper(study: Study) -> Figure:
    """Draws FID over operations, both counted as the paper does: our own results, and beside them the paper's.

    Beside whole systems, as in its Table 3, stand those that the paper compares itself with.
    """
    groups = study.groups
    figure = Figure(figsize=(11, 4), layout="constrained")
    ours, papers = figure.subplots(1, 2)
    for number, (_, group) in enumerate(groups.iterrows()):
        point = {"fmt": f"C{number}o", "label": group["label"], "capsize": 3}
        ours.errorbar(group["paper_gop_per_image"], group["fid"], group["fid_std"], **point)
        papers.errorbar(group["published_gop_per_image"], group["published_fid"], **point)
    if study.other_settings is None:
        for title, steps, row in OTHERS:
            papers.plot(row.gop_per_image, row.fid, "o", color="0.6", markersize=4)
            place = (row.gop_per_image, row.fid)
            papers.annotate(f"{title}, {steps}", place, xytext=(4, 3), textcoords="offset points", color="0.4", size=8)
    with_decoder = ", with the VQGAN's decoder" if study.other_settings is None else ""
    ours.set(xlabel="G operations per image, as the paper counts", ylabel=study.score_titles()["fid"])
    papers.set(xlabel=f"G operations per image in the paper{with_decoder}", ylabel=PUBLISHED_FID)
    for axes in (ours, papers):
        axes.set_xlim(0, 1.12 * axes.get_xlim()[1])
    return figure


def read_losses(study: Study) -> dict[str, pd.DataFrame]:
    """Reads the curves of a study's jobs: by the names in `LOSSES`, tables with columns `line`, `step` and `value`.

    Of many groups only those with the lowest FID are read. The training loss is a running mean over a tenth of the
    steps: each step has masks of its own, so single values scatter.
    """
    groups = study.groups
    if len(groups) > MOST_NAMES:
        groups = groups.nsmallest(MOST_NAMES, "fid") if study.has("fid") else groups[:MOST_NAMES]
    curves: dict[str, list[pd.DataFrame]] = {name: [] for name in LOSSES}
    for _, job in study.jobs[study.jobs["group"].isin(groups.index)].iterrows():
        scalars = read_scalars(study.folder / job["job"])
        for name in curves.keys() & scalars.columns:
            values = scalars[name].dropna()
            if name == "train/loss":
                values = values.rolling(max(1, len(values) // 10), min_periods=1).mean()
            points = values[:: 1 + len(values) // MOST_POINTS].rename("value").reset_index()
            curves[name].append(points.assign(line=groups["label"][job["group"]]))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in curves.items() if parts}


def plot_losses(study: Study) -> Figure | None:
    """Draws losses and FID over steps: the mean of a group's jobs, and a band from their least to their greatest value.

    Returns:
        None if no job has logged any of them.
    """
    curves = read_losses(study)
    if not curves:
        return None
    labels = list(pd.concat(curves)["line"].unique())
    figure = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        marker = "o" if points["step"].nunique() < 15 else None
        sns.lineplot(
            points,
            x="step",
            y="value",
            hue="line",
            hue_order=labels,
            errorbar=("pi", 100),
            marker=marker,
            ax=axes,
            err_kws={"alpha": 0.12},
        )
        axes.set(title=LOSSES[name], xlabel="optimiser step", ylabel="")
        if name == "val/fid" and points["value"].max() > 10 * points["value"].min() > 0:
            axes.set_yscale("log")  # or the first score hides how the last ones differ
            axes.yaxis.set_major_formatter("{x:g}")
    if len(study.groups) > MOST_NAMES and study.has("fid"):  # others may have no curves
        figure.suptitle(f"the {MOST_NAMES} groups of {len(study.groups)} with the lowest FID")
    return figure
