"""What tokens may be drawn, and what differs between the images of a batch.

Shapes: `B` batch, `M` masked tokens, `K` codebook size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

Value = float | Tensor  # a number for all images, or (B, 1), one for each


class ImageOptions(NamedTuple):
    """Holds options of each image of a batch; None where all images are alike.

    The factors multiply the values that the sampler gives to each step.
    """

    guidance_factors: Tensor | None = None  # (B,)
    sampling_factors: Tensor | None = None  # of the sampling temperature, (B,)
    gumbel_factors: Tensor | None = None  # of the Gumbel temperature, (B,)
    negative_class_ids: Tensor | None = None  # classes to guide away from, in place of the null class, (B,)

    def rows(self, rows: slice) -> "ImageOptions":
        """Returns the options of some of the images."""
        return ImageOptions(*(option if option is None else option[rows] for option in self))


def scaled(value: float, factors: Tensor | None) -> Value:
    """Multiplies a value by a factor for each image."""
    return value if factors is None else value * factors.unsqueeze(1)


def at_least(value: Value, least: float = 1e-3) -> Value:
    """Returns temperatures by which one can divide."""
    return value.clamp_min(least) if isinstance(value, Tensor) else max(value, least)


def over_codebook(value: Value) -> Value:
    """Gives values the shape (B, 1, 1), for logits (B, M, K)."""
    return value.unsqueeze(2) if isinstance(value, Tensor) else value


def likely(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Returns logits (B, M, K) that are -inf for tokens that may not be drawn.

    Args:
        logits: at the temperature of the draw.
        top_k: how many of the most likely tokens may be drawn; None for all.
        top_p: the most likely tokens may be drawn that together have at least this probability
            (arXiv 1904.09751); None for all. The most likely one may always be.
    """
    if top_k is not None and top_k < logits.shape[2]:
        least = logits.topk(top_k, dim=2).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=2, descending=True)
        probabilities = ordered.softmax(dim=2)
        before = probabilities.cumsum(dim=2) - probabilities
        is_left_out = torch.zeros_like(logits, dtype=torch.bool).scatter(2, order, before >= top_p)
        logits = logits.masked_fill(is_left_out, -torch.inf)
    return logits
