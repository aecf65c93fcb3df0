"""Scores of images but for the Frechet distance. Shapes: `B` images, `D` features, `C` classes."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from enat.errors import InputError

RNG_SEED = 2020  # torch-fidelity's, of the Inception Score's splits and KID's subsets: with it, scores are the same


class InceptionScore(nn.Module):
    """The Inception Score, added up class by class for each of its splits, in float64.

    Args:
        num_images: of all images; an image's split follows from its number among them, as in torch-fidelity.
        num_classes: `C`.
        splits: the score is the mean over so many parts.
    """

    probabilities: Tensor
    negative_entropy: Tensor
    counts: Tensor

    def __init__(self, num_images: int, num_classes: int, splits: int):
        super().__init__()
        order = np.random.RandomState(RNG_SEED).permutation(num_images)
        ends = [(split + 1) * num_images // splits for split in range(splits)]
        split_of = np.empty(num_images, dtype=np.int64)
        split_of[order] = np.searchsorted(ends, np.arange(num_images), side="right")
        self.split_of = torch.from_numpy(split_of)
        self.register_buffer("probabilities", torch.zeros(splits, num_classes, dtype=torch.float64))
        self.register_buffer("negative_entropy", torch.zeros(splits, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(splits, dtype=torch.float64))

    def update(self, numbers: Tensor, logits: Tensor) -> None:
        """Takes the numbers of images (B,), on the CPU, and their logits (B, C)."""
        log_p = logits.double().log_softmax(1)
        # A product sums in a fixed order on any device; `index_add_` does not.
        chosen = nn.functional.one_hot(self.split_of[numbers], len(self.counts)).to(log_p).T  # (splits, B)
        self.probabilities += chosen @ log_p.exp()
        self.negative_entropy += chosen @ (log_p.exp() * log_p).sum(1)
        self.counts += chosen.sum(1)

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits.

        Raises:
            InputError: if a split has no image, since too few could be read.
        """
        if not self.counts.all():
            raise InputError(f"splits={len(self.counts)}: too many for {int(self.counts.sum())} readable images.")
        p = self.probabilities / self.counts.unsqueeze(1)
        scores = (self.negative_entropy / self.counts - torch.special.xlogy(p, p).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))


def kernel_distance(generated: Tensor, real: Tensor, subsets: int, subset_size: int) -> tuple[float, float]:
    """KID: torch-fidelity's, over random subsets with a fixed seed, here in float64.

    Args:
        generated, real: features (n, D).
        subsets, subset_size: of each; there can't be more in one than images.

    Returns:
        Mean and standard deviation over the subsets.
    """
    size = min(subset_size, len(generated), len(real))
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": RNG_SEED, "verbose": False}
    scores = kid_features_to_metric(generated.double(), real.double(), **options)
    return scores[KEY_METRIC_KID_MEAN], scores[KEY_METRIC_KID_STD]


def precision_recall(generated: Tensor, real: Tensor, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991) by torch-fidelity; the rules are those of the ADM suite.

    Args:
        generated, real: features (n, D).
        neighbours: a ball's radius is the distance to so many-th a neighbour.
    """
    if min(len(generated), len(real)) <= neighbours:
        raise InputError(
            f"metrics.evaluation.neighbours={neighbours}: expected fewer than the images, which are "
            f"{len(generated)} and {len(real)}."
        )
    options = {"prc_neighborhood": neighbours, "prc_batch_size": 2000, "save_cpu_ram": True, "verbose": False}
    scores = prc_features_to_metric(generated, real, **options)
    return scores[KEY_METRIC_PRECISION], scores[KEY_METRIC_RECALL]


class ClassAccuracy:
    """Whether a classifier gives an image the class that was asked for.

    Args:
        classify: images (B, channels, h, w) in [0, 1] -> class ids (B,).
    """

    def __init__(self, classify: Callable[[Tensor], Tensor]):
        self.classify = classify

    def __call__(self, images: Tensor, class_ids: Tensor) -> Tensor:
        """Images (B, channels, h, w) and class ids (B,) -> 1 or 0, (B,)."""
        return self.classify(images) == class_ids


class CopyShare:
    """Whether an image equals, at 8 bits, one of a set of images.

    Args:
        originals: (n, channels, h, w) in [0, 1].
    """

    def __init__(self, originals: Tensor):
        self.originals = set(self._keys(originals))

    @staticmethod
    def _keys(images: Tensor) -> list[bytes]:
        return [image.tobytes() for image in (images * 255).round().byte().cpu().numpy()]

    def __call__(self, images: Tensor, class_ids: Tensor) -> Tensor:
        """Images (B, channels, h, w), whatever their classes -> 1 or 0, (B,)."""
        return torch.tensor([key in self.originals for key in self._keys(images)])
