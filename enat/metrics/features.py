"""What a feature network gives, and what else there is to know of it."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from torch import Tensor


class Features(NamedTuple):
    """Of B images under one protocol: pool features (B, D), logits (B, C), spatial features (B, D') if there are."""

    pool: Tensor
    logits: Tensor
    spatial: Tensor | None = None


class FeatureNetwork(Protocol):
    """An `nn.Module` that gives features by protocol.

    Attributes:
        protocols: names of the ways in which it looks at images; scores of different ones are not comparable.
        num_features, num_logits, num_spatial: `D`, `C`, and `D'`, which is 0 without spatial features.
        sha256: of its weights.
    """

    protocols: Iterable[str]
    num_features: int
    num_logits: int
    num_spatial: int
    sha256: str

    def __call__(self, images: Tensor) -> dict[str, Features]:
        """Images (B, channels, H, W) in [0, 1] -> features by protocol."""
