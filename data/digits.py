"""Real data without a download: scikit-learn's handwritten digits, 8x8 pixels of 17 grey levels.

Each pixel is a token, so that the tokenizer is exact. Shapes: `B` images, `L = 64` tokens.
"""

from functools import lru_cache

import lightning as L
import numpy as np
import torch
from einops import rearrange
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_convert

from data.stream import StreamPositions, TokenStream, per_device_batch
from enat.tokenizer import Tokenizer

NUM_CLASSES = 10
NUM_HELD_OUT = 500  # of 1,797 images


@lru_cache
def _splits() -> dict[str, tuple[Tensor, Tensor]]:
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    train, held_out = train_test_split(np.arange(len(labels)), test_size=NUM_HELD_OUT, stratify=labels, random_state=0)
    return {
        name: (images[rows], torch.from_numpy(labels[rows]))
        for name, rows in {"train": train, "held_out": held_out}.items()
    }


def digit_images(split: str) -> Tensor:
    """Images of the split `train` or `held_out`, (B, 1, 8, 8), float32 in [0, 1]."""
    return _splits()[split][0]


def digit_labels(split: str) -> Tensor:
    """The digits of the same images, (B,), int64."""
    return _splits()[split][1]


class PixelTokenizer(Tokenizer):
    """A tokenizer whose tokens are grey levels, one per pixel; exact for images of that many levels.

    Args:
        num_levels: grey levels, the size of the codebook.
        grid: height and width of the image, and so of the token grid.
    """

    def __init__(self, num_levels: int, grid: list[int]):
        super().__init__()
        self.codebook_size, self.grid = num_levels, (grid[0], grid[1])

    def encode(self, images: Tensor) -> Tensor:
        return rearrange((images * (self.codebook_size - 1)).round().long(), "b 1 h w -> b (h w)")

    def decode(self, token_ids: Tensor) -> Tensor:
        levels = token_ids.float() / (self.codebook_size - 1)
        return rearrange(levels, "b (h w) -> b 1 h w", h=self.grid[0])


class DigitFeatures(nn.Module):
    """The feature network for digits, in Inception's place: a perceptron fitted on the training split.

    Features are its 64 hidden units, logits its log-probabilities up to a constant.
    """

    num_features = 64
    name = "perceptron on digits"

    def __init__(self) -> None:
        super().__init__()
        fitted = _fit_perceptron()
        self.hidden, self.out = (nn.utils.skip_init(nn.Linear, *weight.shape) for weight in fitted.coefs_)
        for layer, weight, bias in zip((self.hidden, self.out), fitted.coefs_, fitted.intercepts_, strict=True):
            layer.weight.data, layer.bias.data = torch.from_numpy(weight.T.copy()), torch.from_numpy(bias)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, 8, 8) in [0, 1] -> features (B, 64) and logits (B, 10)."""
        features = self.hidden(images.flatten(1).to(self.hidden.weight.dtype)).relu()
        return features, self.out(features)


@lru_cache
def _fit_perceptron() -> MLPClassifier:
    images, labels = _splits()["train"]
    return MLPClassifier((DigitFeatures.num_features,), max_iter=1000, random_state=0).fit(
        images.flatten(1).numpy(), labels.numpy()
    )


@lru_cache
def _fit_support_vectors() -> SVC:
    images, labels = _splits()["train"]
    return SVC(gamma=0.25, C=10.0).fit(images.flatten(1).numpy(), labels.numpy())


def classify_digits(images: Tensor) -> Tensor:
    """Class ids (B,) of images (B, 1, 8, 8), by a support vector machine that shares nothing with `DigitFeatures`."""
    predicted = _fit_support_vectors().predict(images.flatten(1).cpu().numpy())
    return torch.from_numpy(predicted).to(images.device)


class DigitsDataModule(L.LightningDataModule):
    """Token ids and labels of the digits.

    Args:
        tokenizer: turns images into token ids.
        batch_size: the global batch, over all devices and accumulated batches.
        seed: of the order and the class dropout.
        class_dropout: share of classes replaced by the null class (SPEC 4).
    """

    def __init__(self, tokenizer: Tokenizer, batch_size: int, seed: int = 0, class_dropout: float = 0.15):
        super().__init__()
        self.tokenizer, self.batch_size, self.seed, self.class_dropout = tokenizer, batch_size, seed, class_dropout

    def _tokens(self, split: str) -> tuple[Tensor, Tensor]:
        return self.tokenizer.encode(digit_images(split)), digit_labels(split)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        accumulate = trainer.accumulate_grad_batches
        positions = StreamPositions(
            per_device_batch(self.batch_size, trainer.world_size, accumulate),
            trainer.global_rank,
            trainer.world_size,
            first_batch=trainer.global_step * accumulate,
        )
        stream = TokenStream(*self._tokens("train"), NUM_CLASSES, self.class_dropout, self.seed)
        return DataLoader(stream, batch_sampler=positions, collate_fn=default_convert)

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        token_ids, labels = (x[trainer.global_rank :: trainer.world_size] for x in self._tokens("held_out"))
        return DataLoader(TensorDataset(token_ids, labels), batch_size=128)
