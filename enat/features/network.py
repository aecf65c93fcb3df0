"""What a feature network is: it gives views of images."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from enat.errors import InputError

IMAGES = "images"  # the view that needs no network: the images themselves, (B, channels, H, W) in [0, 1]
Views = Mapping[str, Tensor]  # of B images, by name


@contextmanager
def full_precision(images: Tensor) -> Iterator[None]:
    """Computes what is within in float32 and the same each time, whatever precision training has.

    Raises:
        InputError: for images of another shape than (B, 3, H, W).
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images of shape {list(images.shape[1:])}: the feature network expects [3, height, width].")
    with (
        torch.autocast(images.device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        yield


def check_finite(net: nn.Module, weights: str) -> None:
    """Raises InputError if a feature network has weights that are no numbers, of the file `weights`."""
    if not all(tensor.isfinite().all() for tensor in net.state_dict().values()):
        raise InputError(f"features.weights={weights}: the weights hold NaN or infinite values.")


class FeatureNetwork(Protocol):
    """An `nn.Module` that gives views of images, such as pool features and logits, under one or several protocols.

    Attributes:
        protocols: names of the ways in which it looks at images; scores of different ones are not comparable.
        widths: by name, the number of features of each view.
        sha256: a hash of its weights and of the options that change the views, which tells them from others.
    """

    protocols: Iterable[str]
    widths: Mapping[str, int]
    sha256: str

    def __call__(self, images: Tensor) -> Mapping[str, Views]:
        """Takes images (B, channels, H, W) in [0, 1]; returns views (B, width) by protocol and name."""


def is_wide(view: str, network: FeatureNetwork) -> bool:
    """Says whether a view has more features than the pool, so that its covariance takes more memory than FID does."""
    return network.widths.get(view, 0) > network.widths["pool"]
