"""Schedules for sampling: functions of the progress through the steps, in [0, 1], or lists of a value for each step."""

import math
from collections.abc import Callable, Sequence

from enat.errors import InputError

Schedule = Callable[[float], float] | Sequence[float]


def values(name: str, schedule: Schedule, points: Sequence[float]) -> list[float]:
    """Returns the value of a schedule at each step.

    Args:
        name: of the option, for the sentence of an error.
        schedule: a function of the progress, or a list of values.
        points: the progress at each step.

    Raises:
        InputError: for a list of another length, or values that are no finite numbers.
    """
    if callable(schedule):
        return [schedule(point) for point in points]
    listed = [float(value) for value in schedule]
    if len(listed) != len(points) or not all(map(math.isfinite, listed)):
        raise InputError(f"{name}={listed}: expected a list of num_steps={len(points)} finite numbers.")
    return listed


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


def arccos(progress: float) -> float:
    """Falls from 1 to 0 along an arc cosine, fast at both ends (MaskGIT, arXiv 2202.04200)."""
    return math.acos(progress) / (math.pi / 2)


def exponential(progress: float) -> float:
    """Falls as 1 - exp(-5 (1 - r)), slowly at first, from 0.993 to 0 (eMIGM, arXiv 2503.07197)."""
    return 1 - math.exp(-5 * (1 - progress))


def power_cosine(progress: float, power: float) -> float:
    """Rises from 0 to 1 as (1 - cos(pi r^power)) / 2 (MDT, arXiv 2303.14389); a large power rises late."""
    return (1 - math.cos(math.pi * progress**power)) / 2


def interval(progress: float, start: float, end: float) -> float:
    """Is 1 from `start` to `end`, both included, and 0 elsewhere (arXiv 2404.07724)."""
    return 1.0 if start <= progress <= end else 0.0


def plateau(progress: float, schedule: Callable[[float], float], start: float, end: float) -> float:
    """Follows `schedule` to `start`, stays there until `end`, and follows the rest of it then.

    As a mask schedule, with `enat.corrections.Remasking` between `start` and `end`, it is the loop of ReMDM
    (arXiv 2503.00307): the tokens that are visible stay as many, and are drawn again and again.
    """
    if progress <= start:
        return schedule(progress)
    if progress <= end:
        return schedule(start)
    return schedule(start + (progress - end) / (1 - end) * (1 - start))


class PerStep(list[float]):
    """Holds a value for each step.

    Args:
        values: as many as there are steps.
    """

    def __init__(self, values: Sequence[float]):
        super().__init__(values)
