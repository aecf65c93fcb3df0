"""Limits of the weights in a file, whoever wrote it; they are checked before anything else is done with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enat.errors import InputError

MAX_REPEATS = 8  # of each byte of a file in its weights; some may be tied
SMALL = 2**26  # bytes of weights that a file of any size may have


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
