"""Tells whether the scores of two groups of runs differ by more than their seeds explain."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from experiments.reporting.runs import SCORES
from experiments.reporting.study import Study

CONFIDENCE = 0.95


def welch_interval(scores: Sequence[float], baseline: Sequence[float]) -> tuple[float, float] | None:
    """Computes Welch's 95 % confidence interval of a difference of means: that of `scores` minus that of `baseline`.

    Variances need not be equal. NaNs are left out.

    Returns:
        The ends of the interval; None where there is none: with fewer than two values on a side, or where the values of
        neither side vary.
    """
    sides = [np.asarray(values, dtype=float) for values in (scores, baseline)]
    first, second = (values[~np.isnan(values)] for values in sides)
    if min(len(first), len(second)) < 2 or np.ptp(first) == np.ptp(second) == 0:
        return None
    with warnings.catch_warnings():  # SciPy warns where one side doesn't vary; its interval is right even so
        warnings.filterwarnings("ignore", message="Precision loss occurred", category=RuntimeWarning)
        interval = ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


def compare_groups(study: Study, score: str, baseline: int) -> pd.DataFrame:
    """Compares a score of every group with that of one group, over the jobs that ended well.

    Args:
        study: the groups.
        score: a column of the study.
        baseline: the number of the group that the others are compared with.

    Returns:
        By the number of the group, without the baseline's: `difference` of the means, `low` and `high` ends of its
        interval; NaN where there is none.
    """
    done = study.jobs[study.jobs["error"].isna()]
    values = {group: done.loc[done["group"] == group, score].to_numpy(dtype=float) for group in study.groups.index}
    means = study.groups[score]
    rows = {}
    for group in study.groups.index.drop(baseline):
        low, high = welch_interval(values[group], values[baseline]) or (np.nan, np.nan)
        rows[group] = {"difference": means[group] - means[baseline], "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["difference", "low", "high"])


def describe_difference(title: str, difference: float, low: float, high: float) -> str:
    """Writes a difference as a person would: "FID not told apart (difference -0.02, 95 % interval -0.11 to 0.07)"."""
    if np.isnan(difference):
        return f"{title} can't be compared (there is no score)"
    if np.isnan(low):
        return f"{title} differs by {difference:.3f} (no interval can be given)"
    verdict = "not told apart" if low <= 0 <= high else "told apart"
    return f"{title} {verdict} (difference {difference:.3f}, {100 * CONFIDENCE:g} % interval {low:.3f} to {high:.3f})"


def describe_differences(study: Study, baseline: int, differences: Mapping[str, pd.DataFrame]) -> list[str]:
    """Writes in paragraphs what tells each group from the baseline; the second is a list, with a line for each group.

    Args:
        study: the groups.
        baseline: the number of the group that the others are compared with.
        differences: by score, as `compare_groups` gives them.
    """
    if len(study.groups) < 2 or not differences:
        return []
    labels = study.groups["label"]
    row = f"row {baseline + 1} ({labels[baseline]})"
    if all(table["low"].isna().all() for table in differences.values()):
        return [
            f"No interval of the difference from {row} can be given: that takes two rows with at least two seeds each, "
            "and scores that differ by seed."
        ]
    lines = []
    for group in labels.index.drop(baseline):
        parts = [describe_difference(SCORES[score], *table.loc[group]) for score, table in differences.items()]
        lines.append(f"- {labels[group]}: {'; '.join(parts)}.")
    return [
        f"Compared with {row}, by Welch's {100 * CONFIDENCE:g} % interval over seeds:",
        "\n".join(lines),
        "The intervals are not corrected for the number of comparisons: of 20 between equals, one on average is told "
        "apart by chance.",
    ]
