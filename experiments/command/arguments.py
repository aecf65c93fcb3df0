"""Types of arguments that several commands have; a wrong one ends with the exit status 2."""

import argparse

import torch


def device(text: str) -> torch.device:
    """Reads the name of a device, such as `cpu`, `cuda` or `mps`, which has to be there.

    Raises:
        ArgumentTypeError: for a device that torch does not know or does not have here.
    """
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {str(error).partition(chr(10))[0]}") from error
    return torch.device(text)


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
