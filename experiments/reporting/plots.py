"""The plots of a study: FID over what varies, over operations and over Inception Score; losses over steps.

Points are means over seeds, and bars are standard deviations over seeds, as in the table.
"""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.figures import MOST_NAMES, STYLE, colours, save, save_with_labels_of
from experiments.reporting.runs import read_scalars
from experiments.reporting.study import Study, format_value

LOSSES = {
    "train/loss": "training loss (running mean)",
    "val/loss": "loss on held-out images",
    "val/fid": "FID while training",
}
MOST_POINTS = 200  # along a curve of losses; more can't be seen


def plot_study(study: Study, folder: Path) -> list[Path]:
    """Draws every plot that the results of a study allow, and returns their files."""
    drawn: list[Path] = []
    if study.has("fid") and study.varied:
        options = "_".join(study.varied) if len(study.varied) <= 2 else "options"
        drawn.append(folder / f"fid_over_{options}.png")
        plot_over_options(study, drawn[-1])
    if study.has("fid") and study.has("gflop_per_image") and study.groups["gflop_per_image"].nunique() > 1:
        drawn.append(folder / "fid_over_flops.png")
        plot_best(study, "gflop_per_image", drawn[-1])
    if study.has("fid") and study.has("inception_score"):
        path = folder / "fid_over_inception_score.png"
        axis = sampler_axis(study)
        if axis is not None:
            drawn.append(path)
            plot_sampler_options(study, axis, path)
        elif len(study.groups) > 2 * MOST_NAMES:
            drawn.append(path)
            plot_best(study, "inception_score", path)
    if plot_losses(study, folder / "losses.png"):
        drawn.append(folder / "losses.png")
    return drawn


def plot_over_options(study: Study, path: Path) -> None:
    """Draws scores over what varies: lines over numbers; a row for each of a few groups; a panel for each option."""
    axis = main_axis(study)
    if axis is not None:
        _plot_lines(study, axis, path)
    elif len(study.groups) <= 2 * MOST_NAMES:
        _plot_rows(study, path)
    else:
        _plot_option_panels(study, path)


def main_axis(study: Study) -> str | None:
    """Chooses the numeric option with the most values, of one or two; None where lines over it would say little."""
    numeric = [name for name in study.varied if study.is_numeric(name)]
    if not numeric or len(study.varied) > 2:
        return None
    axis = max(numeric, key=lambda name: int(study.groups[name].nunique()))
    lines = study.lines_over(axis)
    return None if lines is None or lines.nunique() > MOST_NAMES else axis


def sampler_axis(study: Study) -> str | None:
    """Chooses the first numeric option, if all are the sampler's and lines over it say something; otherwise None."""
    numeric = [name for name in study.varied if study.is_numeric(name)]
    if not numeric or not all(full_name.startswith("sampler.") for full_name in study.options.values()):
        return None
    lines = study.lines_over(numeric[0])
    return None if lines is None or lines.nunique() > MOST_NAMES else numeric[0]


def _scale(axes: Axes, name: str, values: pd.Series) -> None:
    """Makes an axis of numbers, with a tick at each of a few, by powers of two where they span a wide range."""
    distinct = sorted(values.unique())
    positive = [value for value in distinct if value > 0]
    if positive and max(positive) >= 8 * min(positive) and len(distinct) <= MOST_NAMES:
        axes.set_xscale("symlog", base=2, linthresh=min(positive))  # 0 has a place too
    if len(distinct) <= MOST_NAMES:
        axes.set_xticks(distinct, [f"{value:g}" for value in distinct])
        axes.minorticks_off()
    axes.set_xlabel(name.replace("_", " "))


@mpl.rc_context(STYLE)
def _plot_lines(study: Study, axis: str, path: Path) -> None:
    titles, lines = study.score_titles(), study.lines_over(axis)
    assert lines is not None
    jobs = study.jobs.assign(line=study.jobs["group"].map(lines))
    figure = Figure(figsize=(5 * len(titles), 3.8), layout="constrained")
    for axes, (score, title) in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True):
        sns.lineplot(
            jobs, x=axis, y=score, hue="line", palette=colours(lines.nunique()), errorbar="sd", err_style="bars",
            err_kws={"capsize": 3}, marker="o", ax=axes,
        )  # fmt: skip
        axes.set_ylabel(title)
        _scale(axes, axis, study.groups[axis])
    if lines.nunique() > 1:
        save_with_labels_of(axes, path)
    else:
        save(figure, path)


@mpl.rc_context(STYLE)
def _plot_rows(study: Study, path: Path) -> None:
    """Draws a row for each group, with a small point for each seed."""
    titles = study.score_titles()
    labels = [textwrap.fill(label, 40) for label in study.groups["label"]]
    height = sum(0.2 + 0.2 * len(label.splitlines()) for label in labels)
    figure = Figure(figsize=(2.5 + 4 * len(titles), 0.8 + height), layout="constrained")
    rows = study.jobs["group"].astype(str)
    order = list(study.groups.index.astype(str))
    all_axes = figure.subplots(1, len(titles), squeeze=False, sharey=True)[0]
    for axes, (score, title) in zip(all_axes, titles.items(), strict=True):
        values = study.jobs[score]
        sns.stripplot(x=values, y=rows, order=order, jitter=False, color="0.7", size=4, ax=axes)
        sns.pointplot(
            x=values, y=rows, order=order, errorbar="sd", linestyle="none", capsize=0.2, markersize=5,
            err_kws={"linewidth": 1.2}, color=colours(1)[0], ax=axes,
        )  # fmt: skip
        axes.set(xlabel=title, ylabel="")
        axes.set_yticks(range(len(order)), labels)
        for row in np.flatnonzero(study.groups[score].isna()):
            axes.text(0.02, row, "no result", transform=axes.get_yaxis_transform(), color="0.5", va="center")
    save(figure, path)


@mpl.rc_context(STYLE)
def _plot_option_panels(study: Study, path: Path) -> None:
    """Draws FID over each option, whatever the others are, and marks the lowest."""
    groups, best = study.groups, study.groups["fid"].idxmin()
    figure = Figure(figsize=(3.2 * len(study.varied), 3.4), layout="constrained")
    all_axes = figure.subplots(1, len(study.varied), squeeze=False, sharey=True)[0]
    for axes, name in zip(all_axes, study.varied, strict=True):
        numeric = study.is_numeric(name)
        places = groups[name] if numeric else groups[name].map(format_value).str.replace("_", " ")
        sns.scatterplot(x=places, y=groups["fid"], color=colours(1)[0], alpha=0.6, label="a setting", ax=axes)
        axes.plot(places[best], groups["fid"][best], "*", color="C1", ms=13, label="the lowest FID")
        axes.set(xlabel=name.replace("_", " "), ylabel=study.score_titles()["fid"])
        if numeric:
            _scale(axes, name, places)
    save_with_labels_of(all_axes[0], path)


@mpl.rc_context(STYLE)
def plot_sampler_options(study: Study, axis: str, path: Path) -> None:
    """Draws FID over Inception Score of a sampler: one option varies along a line and is written at its points."""
    lines = study.lines_over(axis)
    assert lines is not None
    groups = study.groups.assign(line=lines).dropna(subset=["fid", "inception_score"]).sort_values(axis)
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for color, (label, line) in zip(colours(lines.nunique()), groups.groupby("line", sort=False), strict=False):
        x, y = line["inception_score"], line["fid"]
        axes.plot(x, y, "o-", color=color, label=label)
        axes.errorbar(
            x, y, line["fid_std"], line["inception_score_std"], fmt="none", ecolor=color, alpha=0.5, elinewidth=1
        )
        for place, value in zip(zip(x, y, strict=True), line[axis], strict=True):
            axes.annotate(format_value(value), place, xytext=(5, 5), textcoords="offset points", color=color)
    titles = study.score_titles()
    axes.set(xlabel=titles["inception_score"], ylabel=titles["fid"])
    axes.set_title(f"At each point: {axis.replace('_', ' ')}")
    if lines.nunique() > 1:
        save_with_labels_of(axes, path)
    else:
        save(figure, path)


@mpl.rc_context(STYLE)
def plot_best(study: Study, x: str, path: Path) -> None:
    """Draws FID over operations (fewer are better) or over Inception Score (more is better), a point for each group.

    Of many groups, those have colours and names that no other beats in both.
    """
    groups = study.groups.dropna(subset=[x, "fid"])
    named = groups
    if len(groups) > MOST_NAMES:
        best_first = groups.sort_values([x, "fid"], ascending=[x == "gflop_per_image", True])
        lowest_before = best_first["fid"].cummin().shift(fill_value=np.inf)
        named = best_first[best_first["fid"] < lowest_before].nsmallest(MOST_NAMES, "fid").sort_values(x)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if len(named) < len(groups):
        rest = groups.drop(named.index)
        axes.plot(rest[x], rest["fid"], "o", color="0.75", ms=4, label="other settings")
        axes.plot(named[x], named["fid"], color="0.6", lw=1, zorder=1)
    for color, (_, group) in zip(colours(len(named)), named.iterrows(), strict=True):
        axes.errorbar(group[x], group["fid"], group["fid_std"], fmt="o", color=color, label=group["label"], capsize=3)
    titles: dict[str, Any] = {"gflop_per_image": "GFLOP per image", **study.score_titles()}
    axes.set(xlabel=titles[x], ylabel=titles["fid"])
    if x == "gflop_per_image":
        _scale_operations(axes, groups[x].min(), groups[x].max())
    save_with_labels_of(axes, path)


def _scale_operations(axes: Axes, least: float, most: float) -> None:
    """Makes the axis of operations logarithmic over a wide range; otherwise it starts at 0, to show what is saved."""
    if most >= 16 * least > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    else:
        axes.set_xlim(0, 1.08 * most)


def read_losses(study: Study) -> pd.DataFrame:
    """Reads the curves of a study's jobs: columns `group`, `step`, and of the names in `LOSSES` those that there are.

    Of many groups only those with the lowest FID are read. The training loss is a running mean over a tenth of the
    steps: each step has masks of its own, so single values scatter.
    """
    groups = study.groups
    if len(groups) > MOST_NAMES and study.has("fid"):
        groups = groups.nsmallest(MOST_NAMES, "fid").sort_index()
    curves = [pd.DataFrame({"group": [], "step": []})]
    for _, job in study.jobs[study.jobs["group"].isin(groups.index[:MOST_NAMES])].iterrows():
        scalars = read_scalars(study.folder / job["job"])
        scalars = scalars[[name for name in LOSSES if name in scalars]].copy()
        for name in scalars:
            values = scalars[name].dropna()
            if name == "train/loss":
                values = values.rolling(max(1, len(values) // 10), min_periods=1).mean()
            scalars[name] = values[:: 1 + len(values) // MOST_POINTS]
        curves.append(scalars.rename_axis("step").reset_index().assign(group=job["group"]))
    return pd.concat(curves, ignore_index=True)


@mpl.rc_context(STYLE)
def plot_losses(study: Study, path: Path) -> bool:
    """Draws losses and FID over steps: the mean of a group's jobs, and a band from their least to their greatest value.

    Returns:
        False, with no picture, if no job has logged any of them.
    """
    curves = read_losses(study)
    names = [name for name in LOSSES if name in curves]
    if not names:
        return False
    labels = study.groups["label"][sorted(curves["group"].unique())]
    curves["line"] = curves["group"].map(labels)
    figure = Figure(figsize=(4 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        points = curves.dropna(subset=name)
        sns.lineplot(
            points, x="step", y=name, hue="line", hue_order=list(labels), palette=colours(len(labels)),
            errorbar=("pi", 100), marker="o" if points["step"].nunique() < 15 else None, ax=axes,
        )  # fmt: skip
        axes.set(title=LOSSES[name], xlabel="optimizer step", ylabel="")
        if name == "val/fid" and points[name].max() > 10 * points[name].min() > 0:
            axes.set_yscale("log")  # or the first score hides how the last ones differ
            axes.yaxis.set_major_formatter("{x:g}")
    if len(study.groups) > len(labels):
        figure.suptitle(f"the {len(labels)} groups of {len(study.groups)} with the lowest FID")
    save_with_labels_of(axes, path)
    return True
