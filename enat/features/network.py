"""What a feature network is: it gives views of images."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from torch import Tensor

IMAGES = "images"  # the view that needs no network: the images themselves, (B, channels, H, W) in [0, 1]
Views = Mapping[str, Tensor]  # of B images, by name


class FeatureNetwork(Protocol):
    """An `nn.Module` that gives views of images, such as pool features and logits, under one or several protocols.

    Attributes:
        protocols: names of the ways in which it looks at images; scores of different ones are not comparable.
        widths: by name, the number of features of each view.
        sha256: the hash of its weights.
    """

    protocols: Iterable[str]
    widths: Mapping[str, int]
    sha256: str

    def __call__(self, images: Tensor) -> Mapping[str, Views]:
        """Takes images (B, channels, H, W) in [0, 1]; returns views (B, width) by protocol and name."""
