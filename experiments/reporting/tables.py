"""What a study says in words and numbers: a table with a row for each group, and sentences that compare the groups."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from experiments.reporting.runs import SCORES
from experiments.reporting.study import Study, format_value

TITLES = {
    **SCORES,
    "class_accuracy": "class accuracy",
    "gflop_per_image": "GFLOP/image",
    "paper_gop_per_image": "G operations/image (paper's count)",
    "images_per_second": "images/s",
    "parameters": "parameters",
    "published_fid": "FID in the paper",
    "published_inception_score": "Inception Score in the paper",
    "published_gop_per_image": "G operations/image in the paper",
}


def table_of(study: Study, differences: pd.DataFrame | None = None) -> pd.DataFrame:
    """Writes the groups as texts: mean ± standard deviation over seeds for scores, means for costs, FID differences."""
    groups = study.groups
    table = pd.DataFrame({name.replace("_", " "): groups[name].map(format_value) for name in [*study.varied, "seeds"]})
    others = {name: name.replace("fid", "FID") for name in groups if name.startswith("fid (")}  # by further protocols
    for name, title in {"fid": "FID", **others, **TITLES}.items():
        if study.has(name) and name not in study.varied:
            deviations = groups[f"{name}_std"] if f"{name}_std" in groups else [np.nan] * len(groups)
            table[title] = [_cell(name, *values) for values in zip(groups[name], deviations, strict=True)]
    if differences is not None and differences["low"].notna().any():
        cells = {row: f"{d:+.3f} ({low:.3f} to {high:.3f})" for row, d, low, high in differences.dropna().itertuples()}
        table["FID difference (95 % interval)"] = [cells.get(row, "") for row in table.index]
    if groups["errors"].any():
        table["errors"] = groups["errors"]
    return table


def _cell(name: str, mean: float, deviation: float) -> str:
    """Writes one number of a group; nothing where there is none."""
    if pd.isna(mean):
        return ""
    if name == "parameters":
        return f"{mean / 1e6:,.2f} M"
    if name.startswith("published_"):
        return f"{mean:,.1f}" if name == "published_gop_per_image" else f"{mean:.2f}"
    if name in ("gflop_per_image", "paper_gop_per_image", "images_per_second"):
        return f"{mean:,.0f}" if mean >= 1000 else f"{mean:.3g}"
    return f"{mean:.3f}" + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")


def markdown_table(table: pd.DataFrame, bold: int | None = None) -> str:
    """Writes a table of texts as Markdown, with the FID of one row in bold."""
    table = table.copy()
    if bold is not None:
        table.loc[bold, "FID"] = f"**{table.loc[bold, 'FID']}**"
    lines = [table.columns, ["---"] * len(table.columns), *table.to_numpy()]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def welch_interval(scores: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Computes Welch's 95 % confidence interval of the mean of `scores` minus the mean of `baseline`, without NaNs.

    Returns:
        The ends of the interval; NaNs with fewer than two values on a side, or where the values of neither side vary.
    """
    first, second = (np.asarray(side, dtype=float)[~np.isnan(side)] for side in (scores, baseline))
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return np.nan, np.nan
    with warnings.catch_warnings():  # SciPy warns where one side doesn't vary; its interval is right even so
        warnings.filterwarnings("ignore", message="Precision loss occurred", category=RuntimeWarning)
        interval = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def compare_groups(study: Study, score: str, baseline: int) -> pd.DataFrame:
    """Gives the `difference` of each other group's mean from the baseline's, and its interval's `low` and `high`."""
    done = study.jobs[study.jobs["error"].isna()]
    scores = [done.loc[done["group"] == group, score].to_numpy() for group in study.groups.index]
    intervals = [welch_interval(values, scores[baseline]) for values in scores]
    table = pd.DataFrame(intervals, study.groups.index, columns=["low", "high"])
    table.insert(0, "difference", study.groups[score] - study.groups[score][baseline])
    return table.drop(baseline)


def describe_difference(title: str, difference: float, low: float, high: float) -> str:
    """Writes a difference as a person would: "FID not told apart (difference -0.02, 95 % interval -0.11 to 0.07)"."""
    if np.isnan(difference):
        return f"{title} can't be compared (there is no score)"
    if np.isnan(low):
        return f"{title}: difference {difference:.3f}, no interval can be given"
    verdict = "not told apart" if low <= 0 <= high else "differs"
    return f"{title} {verdict} (difference {difference:.3f}, 95 % interval {low:.3f} to {high:.3f})"


def describe_differences(study: Study, baseline: int, differences: Mapping[str, pd.DataFrame]) -> list[str]:
    """Writes paragraphs that say which groups differ from the baseline, by `compare_groups` of each score."""
    labels = study.groups["label"]
    row = f"row {baseline + 1} ({labels[baseline]})"
    if len(labels) < 2 or not differences:
        return []
    if all(table["low"].isna().all() for table in differences.values()):
        return [f"No interval of the difference from {row} can be given: it needs two seeds in both rows, or more."]
    lines = []
    for group in labels.index.drop(baseline):
        parts = [describe_difference(SCORES[score], *table.loc[group]) for score, table in differences.items()]
        published = study.groups["published_fid"][group] - study.groups["published_fid"][baseline]
        if not np.isnan(published):
            parts.append(f"in the paper, the difference of FID is {published:+.2f}")
        lines.append(f"- {labels[group]}: {'; '.join(parts)}.")
    return [
        f"Compared with {row}, by Welch's 95 % interval over seeds:",
        "\n".join(lines),
        "The intervals are not corrected for the number of comparisons: of 20 between equals, one on average "
        "differs by chance.",
    ]
