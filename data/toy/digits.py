"""Provides scikit-learn's handwritten digits, 8x8 pixels of 17 grey levels, as real data that need no download.

Each pixel is a token, so that the tokenizer loses nothing. Shapes: `B` images.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from data.module import TokenDataModule
from data.stream import OnePack
from enat.errors import InputError
from enat.features.network import Views

NUM_HELD_OUT = 500  # of 1,797 images


@lru_cache
def _splits() -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=NUM_HELD_OUT, stratify=labels, random_state=0)
    return {
        "train": (images[train], torch.from_numpy(labels[train])),
        "held_out": (images[held_out], torch.from_numpy(labels[held_out])),
    }


def digit_images(split: str) -> Tensor:
    """Returns the images of the split `train` or `held_out`: (B, 1, 8, 8), float32 in [0, 1]."""
    return _splits()[split][0]


def digit_labels(split: str) -> Tensor:
    """Returns the digits that the images of a split show: (B,), int64."""
    return _splits()[split][1]


class DigitFeatures(nn.Module):
    """Extracts features for the scores of digits, in place of Inception: a perceptron fitted on the training split.

    The features are its 64 hidden units. The logits are its log-probabilities up to a constant.
    """

    widths: Mapping[str, int] = {"pool": 64, "logits": 10}
    protocols = ("digits",)

    def __init__(self) -> None:
        super().__init__()
        fitted = _fit_perceptron()
        self.hidden, self.out = (nn.utils.skip_init(nn.Linear, *weight.shape) for weight in fitted.coefs_)
        for layer, weight, bias in zip((self.hidden, self.out), fitted.coefs_, fitted.intercepts_, strict=True):
            layer.weight.data = torch.from_numpy(weight.T.copy())
            layer.bias.data = torch.from_numpy(bias)
        self.double()  # in float32, the number of threads would change the ninth digit of a score
        self.requires_grad_(False)
        weights = b"".join(tensor.numpy().tobytes() for tensor in self.state_dict().values())
        self.sha256 = hashlib.sha256(weights).hexdigest()

    def forward(self, images: Tensor) -> dict[str, Views]:
        """Turns images (B, 1, 8, 8) in [0, 1] into features (B, 64) and logits (B, 10) of the protocol `digits`."""
        pool = self.hidden(_pixels(images)).relu()
        return {"digits": {"pool": pool, "logits": self.out(pool)}}


def _pixels(images: Tensor) -> Tensor:
    """Turns images (B, 1, 8, 8), or grey ones (B, 3, 8, 8) as read from a file, into float64 pixels (B, 64).

    Raises:
        InputError: for images of another size.
    """
    if images.shape[1] not in (1, 3) or images.shape[2:] != (8, 8):
        size = " x ".join(map(str, images.shape[2:]))
        raise InputError(f"metrics=digits: expected images of 8 x 8 pixels, these have {size}; or metrics=inception.")
    return images.double().mean(dim=1).flatten(1)


@lru_cache
def _fit_perceptron() -> MLPClassifier:
    images, labels = _splits()["train"]
    perceptron = MLPClassifier((DigitFeatures.widths["pool"],), max_iter=1000, random_state=0)
    with threadpool_limits(1):  # the number of threads would change the weights
        return perceptron.fit(images.flatten(1).numpy(), labels.numpy())


@lru_cache
def _fit_support_vectors() -> SVC:
    images, labels = _splits()["train"]
    return SVC(gamma=0.25, C=10.0).fit(images.flatten(1).numpy(), labels.numpy())


def classify_digits(images: Tensor) -> Tensor:
    """Classifies images (B, 1, 8, 8) to class ids (B,), without the errors of `DigitFeatures`: by support vectors."""
    predicted = _fit_support_vectors().predict(_pixels(images).cpu().numpy())
    return torch.from_numpy(predicted).to(images.device)


class DigitsDataModule(TokenDataModule):
    """Feeds training with the digits; for its arguments, see `data.module.TokenDataModule`."""

    num_classes = 10
    class_names = tuple("0123456789")

    def packs(self, split: str) -> OnePack:
        token_ids = self.tokenizer.encode(digit_images(split))
        return OnePack(token_ids.unsqueeze(1).numpy().astype(np.uint8), digit_labels(split).numpy())
