"""The Inception network of the FID, by the protocol of the official evaluation (SPEC 8)."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from enat.errors import InputError
from enat.weights import read_file

_TRUNK = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)


class InceptionFeatures(nn.Module):
    """torch-fidelity's port of the FID Inception, on float images resized by torch without rounding.

    Args:
        weights: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid, or torch-fidelity's
            `weights-inception-2015-12-05-6726825d.pth`.

    Raises:
        InputError: if the file is missing or holds something else.
    """

    num_features = 2048
    protocol = "enat"

    def __init__(self, weights: str):
        super().__init__()
        if not Path(weights).is_file():
            raise InputError(
                f"features.weights={weights}: there is no such file; fetch weights-inception-2015-12-05-6726825d.pth "
                "from the releases of torch-fidelity (toshas/torch-fidelity) into assets/."
            )
        read_file(weights)  # runs no code; torch-fidelity's own reader would
        try:
            self.net = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights
            )
        except RuntimeError as error:
            raise InputError(f"features.weights={weights}: these are not the weights of the FID Inception.") from error
        self.sha256 = hashlib.sha256(Path(weights).read_bytes()).hexdigest()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> pool features (B, 2048) and logits without their bias (B, 1008)."""
        with torch.autocast(images.device.type, enabled=False):
            x = F.interpolate(images.float(), size=(299, 299), mode="bilinear", align_corners=False)
            x = 2 * x - 1
            for name in _TRUNK:
                x = getattr(self.net, name)(x)
            features = x.flatten(1)
            return features, features @ self.net.fc.weight.T
