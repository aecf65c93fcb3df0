"""Schedules for sampling: functions of the progress through the steps, in [0, 1]."""

import math


def cosine(progress: float) -> float:
    """Falls from 1 to 0 along a cosine (MaskGIT, arXiv 2202.04200), in float64.

    In float32, a step could mask one token less: see docs/method.md, Sampling.
    """
    return math.cos(math.pi * progress / 2)


def falling(progress: float) -> float:
    """Falls from 1 to 0 in a straight line."""
    return 1 - progress


def square(progress: float) -> float:
    """Falls from 1 to 0, slowly at first: as a mask schedule, it reveals few tokens in the first steps."""
    return 1 - progress**2


def square_root(progress: float) -> float:
    """Falls from 1 to 0, fast at first: as a mask schedule, it reveals many tokens in the first steps."""
    return 1 - math.sqrt(progress)


def rising(progress: float) -> float:
    """Rises from 0 to 1 in a straight line."""
    return progress


def constant(progress: float) -> float:
    """Is 1 at every step."""
    return 1.0
