"""The Inception network of the FID under several protocols, which differ in rounding and resizing of the images.

Shapes: `B` images.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.features.network import Views, check_finite, full_precision
from enat.files import sha256_of
from enat.images import to_bytes

SIDE = 299
_BEFORE_SPATIAL = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"),
)
_FROM_SPATIAL = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool")
_SPATIAL_CHANNELS = 7


def enat(images: Tensor) -> Tensor:
    """Prepares images as the official evaluation of ENAT: no rounding, torch's bilinear resize.

    Images (B, 3, H, W) in [0, 1] become (B, 3, 299, 299), as for `adm` and `clean`.
    """
    return 2 * F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def adm(images: Tensor) -> Tensor:
    """Prepares images as ADM's suite and torch-fidelity: 8 bits, TensorFlow 1's bilinear resize."""
    rounded = to_bytes(images).float()
    resized = interpolate_bilinear_2d_like_tensorflow1x(rounded, size=(SIDE, SIDE), align_corners=False)
    return (resized - 128) / 128


def clean(images: Tensor) -> Tensor:
    """Prepares images as clean-fid: 8 bits, Pillow's bicubic resize with antialiasing."""
    rounded = to_bytes(images).float()
    resized = F.interpolate(rounded, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return (resized.clamp(0, 255) - 128) / 128


@lru_cache(maxsize=1)
def _load(weights: str, sha256: str) -> FeatureExtractorInceptionV3:
    """Loads the network once for all that use the file; torch-fidelity puts it in evaluation mode."""
    read_file(weights)  # runs no code; torch-fidelity's own reader would
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    except RuntimeError as error:
        raise InputError(f"features.weights={weights}: these are not the weights of the FID Inception.") from error
    check_finite(net, weights)
    return net


class InceptionFeatures(nn.Module):
    """torch-fidelity's port of the FID Inception, one network for all protocols, always in full precision.

    Args:
        weights: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or torch-fidelity's
            `weights-inception-2015-12-05-6726825d.pth`.
        protocols: by name, functions that turn images (B, 3, H, W) in [0, 1] into the network's input.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    widths: Mapping[str, int] = {"pool": 2048, "spatial": 17 * 17 * _SPATIAL_CHANNELS, "logits": 1008}

    def __init__(self, weights: str, protocols: Mapping[str, Callable[[Tensor], Tensor]]):
        super().__init__()
        if not Path(weights).is_file():
            raise InputError(f"features.weights={weights}: there is no such file.")
        if not protocols:
            raise InputError("protocol=[]: expected at least one, such as protocol=[enat,adm,clean].")
        self.sha256 = sha256_of(weights)
        self.net = _load(weights, self.sha256)
        self.protocols = dict(protocols)

    def forward(self, images: Tensor) -> dict[str, Views]:
        """Returns pool and spatial features, and logits without bias, of images (B, 3, H, W) in [0, 1], by protocol."""
        with full_precision(images):
            return {name: self._extract(prepare(images)) for name, prepare in self.protocols.items()}

    def _extract(self, x: Tensor) -> Views:
        for name in _BEFORE_SPATIAL:
            x = getattr(self.net, name)(x)
        # ADM's sFID: the first channels of TensorFlow's "mixed_6/conv", positions first.
        spatial = self.net.Mixed_6d.branch1x1(x)[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        for name in _FROM_SPATIAL:
            x = getattr(self.net, name)(x)
        pool = x.flatten(1)
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.net.fc.weight.T}
