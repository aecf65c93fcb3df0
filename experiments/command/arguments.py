"""Types of arguments that several commands have; a wrong one ends with the exit status 2."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from enat.errors import InputError
from enat.files import expand_home
from enat.pipeline import check_device

OF_WEIGHTS = {"tokenizer.weights": "--tokenizer", "tokenizer.folder": "--tokenizer", "tokenizer": "--tokenizer"}


def device(text: str) -> torch.device:
    """Reads the name of a device, such as `cpu`, `cuda` or `mps`, which has to be there.

    Raises:
        ArgumentTypeError: for a device that torch does not know or does not have here.
    """
    try:
        check_device(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device=")) from error
    return torch.device(text)


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Returns a function that reads an integer from `least` to `most`; None is no upper limit.

    The function raises ArgumentTypeError for anything else.
    """
    expected = f"an integer of at least {least}" if most is None else f"an integer from {least} to {most}"

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return int(text)

    return read


positive = whole(1)
seed = whole(0, 2**32 - 1)
border = whole(0, 1024)  # the width of a border in pixels
port = whole(0, 65535)  # 0 is any that is free


def path(text: str) -> str:
    """Reads a path, in which `~` stands for the home folder; a shell leaves it as it is in `--output=~/x`."""
    return str(expand_home(Path(text))) if text.startswith("~") else text


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
