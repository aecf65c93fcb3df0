"""Intervals are Welch's, and there is none where nothing can be said."""

import math

import pytest
from scipy.special import betaincinv

from experiments.reporting.study import read_study
from experiments.reporting.tables import compare_groups, describe_difference, describe_differences, welch_interval


def test_against_a_hand_computed_interval():
    """Of 1, 2, 3 and 4, 8.

    Means 2 and 6, variances 1 and 8, squared errors 1/3 and 4: the error of the difference is sqrt(13/3). By Welch and
    Satterthwaite, (13/3)^2 / ((1/3)^2 / 2 + 4^2 / 1) = 1.16955 degrees of freedom, for which 97.5 % of Student's t are
    below 9.0796 (root of SciPy's regularized incomplete beta function: I(nu / (nu + t^2), nu / 2, 1 / 2) = 0.05).
    """
    nu = (13 / 3) ** 2 / ((1 / 3) ** 2 / 2 + 16)
    assert nu == pytest.approx(1.16955, rel=1e-5)
    t = math.sqrt(nu / betaincinv(nu / 2, 1 / 2, 0.05) - nu)
    half = t * math.sqrt(13 / 3)
    assert welch_interval([1, 2, 3], [4, 8]) == pytest.approx((-4 - half, -4 + half))


def test_against_a_textbook_value():
    """With equal sizes and variances it is Student's: 2.7764 is 97.5 % of t with 4 degrees of freedom."""
    half = 2.7764451 * math.sqrt(2 / 3)
    assert welch_interval([1, 2, 3], [2, 3, 4]) == pytest.approx((-1 - half, -1 + half))


@pytest.mark.filterwarnings("error")
def test_edge_cases():
    nan = math.nan
    for scores, baseline in [
        ([1.0], [2.0, 3.0]),  # one seed
        ([1.0, 2.0], [2.0]),
        ([], [2.0, 3.0]),
        ([1.0, nan], [2.0, 3.0]),  # one that is a number
        ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2]),  # no variance at all: not infinitely sure
    ]:
        assert all(map(math.isnan, welch_interval(scores, baseline)))
    assert welch_interval([1.0, nan, 2.0], [2.0, 3.0]) == welch_interval([1.0, 2.0], [2.0, 3.0])
    low, high = welch_interval([0.1, 0.1, 0.1], [2.0, 3.0])  # as much as the side that varies says
    assert (low, high) == pytest.approx((-2.4 - 12.7062 * 0.5, -2.4 + 12.7062 * 0.5), rel=1e-5)


def test_sentences():
    assert describe_difference("FID", -0.02, -0.11, 0.07) == (
        "FID not told apart (difference -0.020, 95 % interval -0.110 to 0.070)"
    )
    assert describe_difference("FID", -0.2, -0.3, -0.1).startswith("FID differs (difference -0.200")
    assert describe_difference("FID", -0.2, math.nan, math.nan) == "FID: difference -0.200, no interval can be given"
    assert describe_difference("FID", *[math.nan] * 3) == "FID can't be compared (there is no score)"


def test_groups_are_compared_over_jobs_that_ended_well(tmp_path, make_job):
    fids = {"nat": [1.0, 2.0, 3.0], "enat": [4.0, 8.0], "lonely": [5.0], "broken": []}
    number = 2
    for variant, scores in fids.items():
        for seed in range(3):
            done = seed < len(scores)
            overrides = [f"seed={seed}", f"variant={variant}"]
            make_job(tmp_path, number, overrides, scores[seed] if done else None, None if done else "it broke")
            number += 1
    study = read_study(tmp_path)
    table = compare_groups(study, "fid", baseline=1)
    assert list(table.index) == [0, 2, 3]
    assert tuple(table.loc[0]) == (-4.0, *welch_interval([1, 2, 3], [4, 8]))
    assert table.loc[2, "difference"] == -1.0
    assert table.loc[[2, 3], ["low", "high"]].isna().all(axis=None)
    intro, rows, caveat = describe_differences(study, 1, {"fid": table})
    assert intro == "Compared with row 2 (enat), by Welch's 95 % interval over seeds:"
    assert rows.splitlines()[1:] == [
        "- lonely: FID: difference -1.000, no interval can be given.",
        "- broken: FID can't be compared (there is no score).",
    ]
    assert "not corrected" in caveat
    (nothing,) = describe_differences(study, 2, {"fid": compare_groups(study, "fid", baseline=2)})
    assert nothing.startswith("No interval of the difference from row 3 (lonely) can be given")
