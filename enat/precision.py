"""Refuses what a network or a tokenizer computes if it is NaN or infinite, and says what helps."""

import torch
from torch import Tensor

from enat.errors import InputError

LARGER_RANGE = (
    "fabric.precision=32-true or bf16-true (in training, trainer.precision=32-true or bf16-mixed; in Python, the dtype "
    "torch.bfloat16), whose range is larger than that of float16"
)


class NotFiniteError(InputError):
    """The error for NaN and infinite values."""


def not_finite(who: str, weight: Tensor, otherwise: str) -> NotFiniteError:
    """Returns the error for NaN and infinite values.

    Args:
        who: computes them.
        weight: one of its weights, or another tensor of its type and on its device.
        otherwise: what helps unless they come from float16.
    """
    device = weight.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    expected = LARGER_RANGE if torch.float16 in (weight.dtype, autocast) else otherwise
    return NotFiniteError(f"{who} computes NaN or infinite values; expected {expected}.")


def finite(values: Tensor) -> Tensor:
    """Returns what a tokenizer computes as it is: latents, of which NaN would be token 0, or pixels.

    Raises:
        NotFiniteError: for NaN and infinite values.
    """
    if not values.isfinite().all():
        raise not_finite("the tokenizer", values, "other weights of the tokenizer, such as of an earlier checkpoint")
    return values
