"""Corrections: after a step, some of the tokens that were visible before it are masked again, and drawn anew later.

A token that is masked again loses its cached features. The features of tokens that were encoded while it was visible
depend on it and are stale. The exact way encodes all visible tokens again in the next step (`recompute=True`); the
cheap way goes on with the stale features.

Shapes: `B` batch, `V` visible tokens.
"""

from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

Share = Annotated[float, Interval(ge=0, le=1)]


class Remasking:
    """Masks tokens again in the numbers of ReMDM (arXiv 2503.00307), any visible token as likely as any other.

    Of v visible tokens, with m masked ones left by the mask schedule, a step masks round(q v) again, where
    q = min(cap, rescale * min(1, m / v)). The paper draws for each token whether it is masked again, with probability
    q. Here the number is the nearest to the expected one, since each image of a batch needs the same.

    Args:
        cap, rescale: bounds of the share q; both are 1 in the strategy "max" of the paper.
        start, end: progress, from 0 to 1, of the first and the last step that masks tokens again; step s = 0..T-1 has
            the progress (s + 1) / T.
        recompute: whether the next step encodes all visible tokens again, as in the head of this file.
    """

    def __init__(
        self, cap: Share = 1.0, rescale: Share = 1.0, start: Share = 0.0, end: Share = 1.0, recompute: bool = True
    ):
        self.cap = cap
        self.rescale = rescale
        self.start = start
        self.end = end
        self.recompute = recompute

    def count(self, progress: float, num_visible: int, num_left: int) -> int:
        """Returns how many tokens to mask again, of those that may be, after a step that leaves `num_left` masked."""
        if not num_visible or not self.start <= progress <= self.end:
            return 0
        share = min(self.cap, self.rescale * min(1.0, num_left / num_visible))
        return min(round(share * num_visible), num_left)

    def scores(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        """Scores visible tokens (B, V); the highest are masked again.

        Args:
            probabilities: what the network gave to each token when it was drawn, (B, V).
            noise: standard Gumbel noise, (B, V).
        """
        return noise


class ConfidenceRemasking(Remasking):
    """Masks tokens again in the same numbers, token i with a weight of exp(-p_i) (ReMDM-conf).

    p_i is the probability of the token when it was drawn.
    """

    def scores(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        return noise - probabilities


class LeastConfident(Remasking):
    """Masks those tokens again of which the network was least sure when they were drawn."""

    def scores(self, probabilities: Tensor, noise: Tensor) -> Tensor:
        return -probabilities


def no_correction() -> None:
    """Returns None, for `correction=none`."""


def choose(scores: Tensor, may_change: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the indices (B, count) of the highest scores among tokens that may change, and those of all others."""
    order = scores.masked_fill(~may_change, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen, others = order.split([count, order.shape[1] - count], dim=1)
    return chosen, others.sort(dim=1).values  # in the order of the features
