"""Scores that torchmetrics lacks, or needs care with. Shapes: `B` images, `D` features, `C` classes."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from enat.metrics.statistics import Statistics


class FeatureFID(FrechetInceptionDistance):
    """torchmetrics' Frechet distance on features (B, D) computed elsewhere, in float64.

    Real features are kept through `reset`. Under DDP each rank must see some of both kinds.
    """

    def __init__(self, num_features: int):
        identity = nn.Identity()
        identity.num_features = num_features  # type: ignore[assignment]
        super().__init__(feature=identity, reset_real_features=False)
        self.set_dtype(torch.float64)

    def update(self, features: Tensor, real: bool) -> None:
        super().update(features.double(), real)

    def set_reference(self, reference: Statistics, rank: int) -> None:
        """Takes statistics in place of real features; under DDP only rank 0 counts them, and the sum is exact."""
        count = 10_000 if rank == 0 else 0  # any number gives the same mean and covariance
        mu, sigma = (tensor.to(self.device) for tensor in reference)
        self.orig_dtype = torch.float64
        self.real_features_num_samples.fill_(count)
        self.real_features_sum.copy_(count * mu)
        self.real_features_cov_sum.copy_(max(count - 1, 0) * sigma + count * torch.outer(mu, mu))


class LogitInceptionScore(InceptionScore):
    """torchmetrics' Inception Score on logits (B, C) computed elsewhere, with a seeded shuffle.

    Args:
        splits: the score is the mean over so many parts.
        seed: of the shuffle; torch's own random numbers stay untouched.
    """

    def __init__(self, splits: int = 10, seed: int = 0):
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # on the memory that the logits take
            super().__init__(feature=nn.Identity(), splits=splits)
        self.seed = seed

    def update(self, logits: Tensor) -> None:
        super().update(logits.double())

    def compute(self) -> Tensor:  # type: ignore[override]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return super().compute()[0]


class ClassAccuracy(Metric):
    """Share of images that a classifier gives the class that was asked for.

    Args:
        classify: images (B, channels, h, w) in [0, 1] -> class ids (B,).
    """

    correct: Tensor
    total: Tensor

    def __init__(self, classify: Callable[[Tensor], Tensor]):
        super().__init__()
        self.classify = classify
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor, class_ids: Tensor) -> None:
        self.correct += (self.classify(images) == class_ids).sum()
        self.total += len(images)

    def compute(self) -> Tensor:
        return self.correct / self.total


class CopyShare(Metric):
    """Share of images that equal, at 8 bits, one of a set of images.

    Args:
        originals: (n, channels, h, w) in [0, 1].
    """

    copies: Tensor
    total: Tensor

    def __init__(self, originals: Tensor):
        super().__init__()
        self.originals = set(self._keys(originals))
        self.add_state("copies", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    @staticmethod
    def _keys(images: Tensor) -> list[bytes]:
        return [image.tobytes() for image in (images * 255).round().byte().cpu().numpy()]

    def update(self, images: Tensor, class_ids: Tensor) -> None:
        self.copies += sum(key in self.originals for key in self._keys(images))
        self.total += len(images)

    def compute(self) -> Tensor:
        return self.copies / self.total
