"""Scores that torchmetrics lacks or computes inexactly, each a `torchmetrics.Metric`.

Their signatures are those of `torchmetrics.image`: `update(imgs, real)`, `compute()`. `imgs` are views of the images
(`enat.metrics.view`), so that any metric of torchmetrics can stand beside these.

Shapes: `B` images, `D` features, `C` classes.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from scipy.linalg import lapack
from torch import Tensor
from torch.nn.functional import one_hot
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric
from torchmetrics import MeanMetric, Metric

from enat.errors import InputError

RNG_SEED = 2020  # of splits and subsets in torch-fidelity: with the same seed, scores are the same


def frechet_distance(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor) -> float:
    """Computes `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2)` of means (D,) and covariances (D, D), in float64.

    The trace of the root is the sum of the singular values of `R1^T R2`, where `S = R R^T`. The eigenvalues of `S1 S2`
    give the same sum, but lose half of the digits where a covariance is singular, as it is with fewer images than
    features: their error was 2e-5 there, and the error of this way 3e-12.
    """
    mu_1, sigma_1, mu_2, sigma_2 = (tensor.double().cpu() for tensor in (mu_1, sigma_1, mu_2, sigma_2))
    trace_of_root = torch.linalg.svdvals(_root(sigma_1).T @ _root(sigma_2)).sum()
    return float(((mu_1 - mu_2) ** 2).sum() + sigma_1.trace() + sigma_2.trace() - 2 * trace_of_root)


def _root(sigma: Tensor) -> Tensor:
    """Returns a matrix R (D, rank) with `R R^T = sigma`, by LAPACK's Cholesky decomposition with pivoting.

    It stops where nothing but rounding is left, so that it takes less time for few images than for many.
    """
    tolerance = len(sigma) * torch.finfo(sigma.dtype).eps * float(sigma.diagonal().max())
    factor, pivots, rank, _ = lapack.dpstrf(sigma.numpy(), tol=tolerance, lower=1)  # pivots count from 1
    root = np.empty((len(sigma), rank))
    root[pivots - 1] = np.tril(factor)[:, :rank]
    return torch.from_numpy(root)


class FrechetDistance(Metric):
    """The Frechet distance of two sets of features: FID on pool features, sFID on spatial ones.

    It sums in float64, 16 D^2 bytes whatever the number of images.
    """

    full_state_update = False
    real_count: Tensor
    real_sum: Tensor
    real_products: Tensor

    def __init__(self) -> None:
        super().__init__()
        for side in ("real", "fake"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64))
            self.add_state(f"{side}_sum", torch.zeros(0, dtype=torch.float64))  # D is known from the first features
            self.add_state(f"{side}_products", torch.zeros(0, 0, dtype=torch.float64))

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds features (B, D)."""
        side, features = "real" if real else "fake", imgs.double()
        if not getattr(self, f"{side}_count"):
            setattr(self, f"{side}_sum", features.new_zeros(features.shape[1]))
            setattr(self, f"{side}_products", features.new_zeros(features.shape[1], features.shape[1]))
        getattr(self, f"{side}_count").add_(len(features))
        getattr(self, f"{side}_sum").add_(features.sum(0))
        getattr(self, f"{side}_products").add_(features.T @ features)

    def set_real_statistics(self, mu: Tensor, sigma: Tensor) -> None:
        """Takes a mean (D,) and a covariance (D, D), float64, for real images; the distance needs no count of them."""
        self.real_count = torch.tensor(2)
        self.real_sum = 2 * mu
        self.real_products = sigma + 2 * torch.outer(mu, mu)

    def statistics(self, real: bool) -> tuple[Tensor, Tensor]:
        """Returns the mean (D,) and the covariance (D, D) over n - 1 of one side, in float64 on the CPU."""
        side = "real" if real else "fake"
        count, total, products = (getattr(self, f"{side}_{name}").cpu() for name in ("count", "sum", "products"))
        mu = total / count
        return mu, (products - count * torch.outer(mu, mu)) / (count - 1)

    def compute(self) -> Tensor:
        """Returns the distance, a float64 scalar."""
        return torch.tensor(frechet_distance(*self.statistics(True), *self.statistics(False)), dtype=torch.float64)


@lru_cache(maxsize=4)
def _split_ids(num_images: int, splits: int) -> Tensor:
    """Returns the split (num_images,) of each image, in the random order of torch-fidelity."""
    order = np.random.RandomState(RNG_SEED).permutation(num_images)
    ends = [(split + 1) * num_images // splits for split in range(splits)]
    split_ids = np.empty(num_images, dtype=np.int64)
    split_ids[order] = np.searchsorted(ends, np.arange(num_images), side="right")
    return torch.from_numpy(split_ids)


class InceptionScore(Metric):
    """The Inception Score, its mean and deviation over seeded splits (torchmetrics' keeps all logits, and no seed).

    Args:
        splits: how many parts the images fall into.
    """

    full_state_update = False
    probabilities: Tensor
    negative_entropy: Tensor
    counts: Tensor

    def __init__(self, splits: Annotated[int, Ge(1)] = 10):
        super().__init__()
        self.splits = splits
        self.add_state("probabilities", torch.zeros(splits, 0, dtype=torch.float64))
        self.add_state("negative_entropy", torch.zeros(splits, dtype=torch.float64))
        self.add_state("counts", torch.zeros(splits, dtype=torch.float64))

    def update(self, imgs: Tensor, image_numbers: Tensor, num_images: int) -> None:
        """Adds the logits (B, C) of the images with these numbers (B,) among `num_images` images."""
        log_p = imgs.double().log_softmax(1)
        # A matrix product sums in a fixed order on any device; `index_add_` does not.
        is_in_split = one_hot(_split_ids(num_images, self.splits)[image_numbers], self.splits).to(log_p).T
        if not self.probabilities.shape[1]:
            self.probabilities = log_p.new_zeros(self.splits, log_p.shape[1])
        self.probabilities += is_in_split @ log_p.exp()
        self.negative_entropy += is_in_split @ (log_p.exp() * log_p).sum(1)
        self.counts += is_in_split.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Returns the mean and the standard deviation over the splits.

        Raises:
            InputError: if a split has no image, since too few of them could be read.
        """
        if not self.counts.all():
            raise InputError(f"splits={self.splits}: too many for {int(self.counts.sum())} readable images.")
        p = self.probabilities / self.counts.unsqueeze(1)
        scores = (self.negative_entropy / self.counts - torch.special.xlogy(p, p).sum(1)).exp()
        return {"inception_score": scores.mean(), "inception_score_std": scores.std(correction=0)}


class KeptFeatures(Metric):
    """The features of both sides in main memory, 4 D bytes an image, for scores that need them one by one.

    Args:
        max_real: features of so many real images, spread evenly, are kept (10,000 in ADM's suite).
    """

    full_state_update = False
    real_features: list[Tensor]
    fake_features: list[Tensor]

    def __init__(self, max_real: Annotated[int, Ge(2)] = 10_000):
        super().__init__()
        self.max_real = max_real
        self.notes: list[str] = []  # what a reader of the scores has to be told
        self.add_state("real_features", [])
        self.add_state("fake_features", [])

    def update(self, imgs: Tensor, real: bool, image_numbers: Tensor, num_images: int) -> None:
        """Adds the features (B, D) of the images with these numbers (B,) among `num_images` images."""
        features = imgs.float().cpu()
        if not real:
            self.fake_features.append(features)
            return
        self.real_features.append(features[self.is_kept(image_numbers, num_images)])

    def is_kept(self, image_numbers: Tensor, num_images: int) -> Tensor:
        """Says which of the real images with these numbers (B,), among `num_images`, are kept, (B,)."""
        kept = np.linspace(0, num_images - 1, min(num_images, self.max_real)).round()
        return torch.from_numpy(np.isin(image_numbers.numpy(), kept))

    def set_real_features(self, features: Tensor) -> None:
        """Takes features (n, D) for real images, as many of them as are kept."""
        numbers = torch.arange(len(features))
        self.real_features = [features[self.is_kept(numbers, len(features))]]

    def compute(self) -> Any:
        """Returns the features (n, D) of generated and of real images."""
        return tuple(torch.cat([part.cpu() for part in side]) for side in (self.fake_features, self.real_features))


class KernelDistance(KeptFeatures):
    """KID by torch-fidelity, its mean and deviation over random subsets with a fixed seed, in float64.

    Args:
        subsets: how many there are.
        subset_size: images of a subset; all images if there are fewer.
        max_real: see `KeptFeatures`.
    """

    def __init__(
        self,
        subsets: Annotated[int, Ge(1)] = 100,
        subset_size: Annotated[int, Ge(2)] = 1000,
        max_real: Annotated[int, Ge(2)] = 10_000,
    ):
        super().__init__(max_real)
        self.subsets = subsets
        self.subset_size = subset_size

    def compute(self) -> dict[str, float]:
        """Returns the mean and the standard deviation; nothing if a side has fewer than two images."""
        fake, real = super().compute()
        size = min(self.subset_size, len(fake), len(real))
        if size < self.subset_size:
            self.notes = [
                f"KID of subsets of {size} images instead of {self.subset_size}, for there are no more: compare it "
                "with KIDs of as many only."
            ]
        if size < 2:
            return {}
        options = {"kid_subsets": self.subsets, "kid_subset_size": size, "rng_seed": RNG_SEED, "verbose": False}
        scores = kid_features_to_metric(fake.double(), real.double(), **options)
        return {"kid": scores[KEY_METRIC_KID_MEAN], "kid_std": scores[KEY_METRIC_KID_STD]}


class PrecisionRecall(KeptFeatures):
    """Improved precision and recall (arXiv 1904.06991) by torch-fidelity; the rules are those of ADM's suite.

    Args:
        neighbours: the radius of a ball is the distance to the neighbour of this rank.
        max_real: see `KeptFeatures`.
    """

    def __init__(self, neighbours: Annotated[int, Ge(1)] = 3, max_real: Annotated[int, Ge(2)] = 10_000):
        super().__init__(max_real)
        self.neighbours = neighbours

    def compute(self) -> dict[str, float]:
        """Returns precision and recall; nothing if a side has no more images than `neighbours`."""
        fake, real = super().compute()
        if min(len(fake), len(real)) <= self.neighbours:
            self.notes = [f"Without precision and recall, which need more than {self.neighbours} images of each kind."]
            return {}
        options = {"prc_neighborhood": self.neighbours, "prc_batch_size": 2000, "save_cpu_ram": True, "verbose": False}
        scores = prc_features_to_metric(fake, real, **options)
        return {"precision": scores[KEY_METRIC_PRECISION], "recall": scores[KEY_METRIC_RECALL]}


class ClassAccuracy(MeanMetric):
    """The share of images to which a classifier gives the class that was asked for.

    Args:
        classify: takes images (B, channels, H, W) in [0, 1] and returns class ids (B,).
    """

    def __init__(self, classify: Callable[[Tensor], Tensor]):
        super().__init__()
        self.set_dtype(torch.float64)
        self.classify = classify

    def update(self, imgs: Tensor, class_ids: Tensor) -> None:  # type: ignore[override]
        """Adds images (B, channels, H, W) in [0, 1] and the classes (B,) that were asked for."""
        super().update((self.classify(imgs) == class_ids).double())


class Copies(MeanMetric):
    """The share of images that are equal, at 8 bits, to one of a set of images.

    Args:
        originals: the set, (n, channels, H, W) in [0, 1].
    """

    def __init__(self, originals: Tensor):
        super().__init__()
        self.set_dtype(torch.float64)
        self.originals = set(self._keys(originals))

    @staticmethod
    def _keys(images: Tensor) -> list[bytes]:
        return [image.tobytes() for image in (images * 255).round().byte().cpu().numpy()]

    def update(self, imgs: Tensor) -> None:  # type: ignore[override]
        """Adds images (B, channels, H, W) in [0, 1]."""
        super().update(imgs.new_tensor([key in self.originals for key in self._keys(imgs)], dtype=torch.float64))
