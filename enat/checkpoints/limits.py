"""Limits of what a file may hold, whoever wrote it; they are checked before anything else is done with its content."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enat.errors import InputError

MAX_DEPTH = 50  # of nested settings; those of this project have about ten
MAX_SETTINGS = 100_000  # values; those of this project have some hundred
MAX_VALUES = 10_000_000  # in a whole file
MAX_REPEATS = 8  # of each byte of a file in its weights; some may be tied
SMALL = 2**26  # bytes of weights that a file of any size may have


def values_of(content: Any, what: Any, at_most: int = MAX_VALUES) -> list[Any]:
    """Returns all values in nested content, whether they hold others or not.

    A pickle may hold a dictionary that is in itself, or lists that each hold another one twice, so that to walk through
    all of it takes forever.

    Args:
        content: dictionaries, lists, tuples and sets of anything.
        what: begins the sentence about what is wrong.
        at_most: so many values.

    Raises:
        InputError: if there are more values, or if they nest more than `MAX_DEPTH` levels deep.
    """
    values: list[Any] = []
    level = [content]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for node in level:
            if not isinstance(node, dict | list | tuple | set | frozenset):
                continue
            if len(values) + len(inner) + len(node) > at_most:
                raise InputError(f"{what}: what it says of itself has more than {at_most:,} values.")
            inner += node.values() if isinstance(node, dict) else node
        values += inner
        level = inner
    if level:
        raise InputError(f"{what}: what it says of itself nests more than {MAX_DEPTH} levels deep.")
    return values


def refuse_claims(values: Sequence[Any], path: Path) -> None:
    """Refuses weights that are much larger than their file, since they repeat a few numbers or share them.

    Raises:
        InputError: naming the file.
    """
    claimed = sum(value.nbytes for value in values if isinstance(value, Tensor) and has_numbers(value))
    size = path.stat().st_size
    if claimed > MAX_REPEATS * size + SMALL:
        raise InputError(
            f"weights={path}: its weights would take {claimed:,} bytes, and the file has {size:,}; expected a file "
            "that holds each number of them."
        )


def has_numbers(tensor: Tensor) -> bool:
    """Says whether a tensor is of plain numbers, each of which is in memory or in a file."""
    is_special = tensor.is_quantized or tensor.is_meta or tensor.is_nested
    return tensor.layout == torch.strided and not is_special
