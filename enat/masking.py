"""Which tokens are masked in training: random partitions of an image's tokens (docs/method.md, Masking).

Shapes: `B` batch, `L` tokens of an image, `M` masked, `N` newly revealed and `P` cached tokens; `M + N + P = L`.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Gt, Interval
from torch import Tensor


class Partition(NamedTuple):
    """Holds the positions of the tokens of each image, in three parts."""

    masked: Tensor  # to be predicted, (B, M)
    new: Tensor  # visible, to be encoded, (B, N)
    cached: Tensor | None  # visible, with features to be reused, (B, P); None or P = 0 without reuse

    @property
    def counts(self) -> tuple[int, int, int]:
        """Numbers of masked, new and cached tokens of each image."""
        return self.masked.shape[1], self.new.shape[1], 0 if self.cached is None else self.cached.shape[1]


def num_masked(mask_ratio: float, num_tokens: int) -> int:
    """Returns round(L p) for a mask ratio p, in float32 and half to even, clamped to [1, L-1]."""
    return int(np.clip(np.rint(np.float32(num_tokens) * np.float32(mask_ratio)), 1, num_tokens - 1))


class RandomMasking:
    """Draws partitions as in the official recipe.

    Each call serves one group of images. All of them have the same number of masked tokens, which follows from
    p ~ Beta(alpha, beta). With probability `reuse_prob`, the group reuses features: a share q ~ U[0, 1) of the visible
    tokens counts as newly revealed, and the others as cached (docs/method.md, Reuse in training).

    Args:
        ratio_alpha, ratio_beta: parameters of the Beta distribution of the mask ratio.
        reuse_prob: probability that a group reuses features.
    """

    def __init__(
        self,
        ratio_alpha: Annotated[float, Gt(0)] = 12.0,
        ratio_beta: Annotated[float, Gt(0)] = 3.0,
        reuse_prob: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    ):
        self.ratio_alpha = ratio_alpha
        self.ratio_beta = ratio_beta
        self.reuse_prob = reuse_prob

    def __call__(
        self, rng: np.random.Generator, batch_size: int, num_tokens: int, device: torch.device | str = "cpu"
    ) -> Partition:
        """Draws a partition: `rng` draws the counts, and a generator on `device`, seeded by it, the positions."""
        masked_count = num_masked(rng.beta(self.ratio_alpha, self.ratio_beta), num_tokens)
        num_visible = num_tokens - masked_count
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        order = torch.rand(batch_size, num_tokens, generator=generator, device=device).argsort(dim=1)
        if rng.random() >= self.reuse_prob:
            return Partition(order[:, :masked_count], order[:, masked_count:], None)
        num_new = round(num_visible * rng.random())  # half to even
        return Partition(*order.split([masked_count, num_new, num_visible - num_new], dim=1))
