"""Schedules for sampling: functions of the progress in [0, 1]."""

import math


def cosine(progress: float) -> float:
    """From 1 down to 0 along a cosine (MaskGIT, arXiv 2202.04200); float64: see SPEC 5."""
    return math.cos(math.pi * progress / 2)


def falling(progress: float) -> float:
    """From 1 down to 0 in a straight line."""
    return 1 - progress


def square(progress: float) -> float:
    """From 1 down to 0, late: a concave curve, few tokens first."""
    return 1 - progress**2


def square_root(progress: float) -> float:
    """From 1 down to 0, early: a convex curve, many tokens first."""
    return 1 - math.sqrt(progress)


def rising(progress: float) -> float:
    """From 0 up to 1 in a straight line."""
    return progress


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0
