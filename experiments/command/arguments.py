"""Types of arguments that several commands have; a wrong one ends with the exit status 2."""

import argparse
from collections.abc import Sequence

import torch


def device(text: str) -> torch.device:
    """Reads the name of a device, such as `cpu`, `cuda` or `mps`, which has to be there.

    Raises:
        ArgumentTypeError: for a device that torch does not know or does not have here.
    """
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).partition(chr(10))[0]}") from error
    return torch.device(text)


def port(text: str) -> int:
    """Reads the port of a page, from 0, which stands for any that is free, to 65535.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer from 0 to 65535")
    return int(text)


def positive(text: str) -> int:
    """Reads an integer of at least 1.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least 1")
    return int(text)


def seed(text: str) -> int:
    """Reads a seed, from 0 to 2^32 - 1.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer from 0 to {2**32 - 1}")
    return int(text)


def border(text: str) -> int:
    """Reads the width of a border in pixels, from 0 to 1024.

    Raises:
        ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text}: expected an integer from 0 to 1024")
    return int(text)


def share(text: str) -> float:
    """Reads a number from 0 to 1.

    Raises:
        ArgumentTypeError: for anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 0 to 1")
    return value


def as_typed(classes: Sequence[str] | None, names: Sequence[str]) -> list[int | str] | None:
    """Returns classes that a user has typed, digits as ids unless a class has this name; None for None."""
    if classes is None:
        return None
    return [int(text) if text.isdecimal() and text not in names else text for text in classes]
