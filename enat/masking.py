"""Which tokens are masked in training: random partitions.

Shapes: `B` batch, `L` tokens of an image, `V` visible and `M` masked tokens.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from enat.errors import InputError
from enat.net import ENAT


class Partition(NamedTuple):
    """Positions of an image's tokens, each (B, number); together they are all L positions of each row."""

    masked: Tensor  # to be predicted
    revealed: Tensor  # visible, to be encoded
    cached: Tensor | None  # visible, with features from an earlier state; None where nothing is reused

    @property
    def counts(self) -> tuple[int, int, int]:
        """Masked, new and reused tokens of each image."""
        return self.masked.shape[1], self.revealed.shape[1], 0 if self.cached is None else self.cached.shape[1]

    def encode_cached(self, net: ENAT, token_ids: Tensor, condition: Tensor) -> Tensor:
        """What a network knows of the cached tokens; `predict` may ask another one."""
        assert self.cached is not None
        return net.encode(token_ids, self.cached, condition)

    def predict(self, net: ENAT, token_ids: Tensor, condition: Tensor, cached: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the masked tokens (B, M, K), and the ids that they should predict (B, M)."""
        logits, _ = net(token_ids, self.revealed, self.masked, condition, cached)
        return logits, token_ids.gather(1, self.masked)


def num_masked(mask_ratio: float, num_tokens: int) -> int:
    """Masked tokens at a ratio: round(L p) in float32, half to even, clamped to [1, L-1] (SPEC 3)."""
    return int(np.clip(np.rint(np.float32(num_tokens) * np.float32(mask_ratio)), 1, num_tokens - 1))


class RandomMasking:
    """Draws the training masks (SPEC 3).

    All rows of a batch share the number of masked tokens, p ~ Beta(alpha, beta), so that visible and masked
    parts are rectangular. With probability `reuse_prob` a share u ~ U[0, 1) of the visible tokens counts as
    newly revealed, and the others as cached.

    Args:
        ratio_alpha, ratio_beta: parameters of the Beta distribution of the mask ratio.
        reuse_prob: probability of a training step with reuse.

    Raises:
        InputError: for parameters out of range.
    """

    def __init__(self, ratio_alpha: float = 12.0, ratio_beta: float = 3.0, reuse_prob: float = 0.5):
        if min(ratio_alpha, ratio_beta) <= 0:
            raise InputError(f"ratio_alpha={ratio_alpha}, ratio_beta={ratio_beta}: expected both above 0.")
        if not 0 <= reuse_prob <= 1:
            raise InputError(f"reuse_prob={reuse_prob}: expected a probability between 0 and 1.")
        self.ratio_alpha, self.ratio_beta, self.reuse_prob = ratio_alpha, ratio_beta, reuse_prob

    def __call__(
        self, rng: np.random.Generator, batch_size: int, num_tokens: int, device: torch.device | str = "cpu"
    ) -> Partition:
        """Draws a partition; sizes are drawn on the host, positions on the device, both from `rng`."""
        masked = num_masked(rng.beta(self.ratio_alpha, self.ratio_beta), num_tokens)
        visible = num_tokens - masked
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        order = torch.rand(batch_size, num_tokens, generator=generator, device=device).argsort(dim=1)
        if rng.random() >= self.reuse_prob:
            return Partition(order[:, :masked], order[:, masked:], None)
        hidden = round(visible * rng.random())  # half to even
        return Partition(*order.split([masked, hidden, visible - hidden], dim=1))
