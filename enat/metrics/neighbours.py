"""Scores that compare features one by one: density and coverage, memorisation, and a linear probe of the classes.

Shapes: `n` generated and `N` real images, `D` features.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from enat.errors import InputError, counted
from enat.features.network import FeatureNetwork
from enat.images import Block, Images, blocks_of
from enat.metrics.accumulation import refuse_no_numbers
from enat.metrics.scores import KeptFeatures

BLOCK = 50  # images whose features are computed together, where it makes no difference
ROUNDING = 1e-4  # of the largest distance: features of copies, computed in other blocks, differ by less


def nearest(features: Tensor, others: Tensor, rank: int = 1, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """Finds, for each of `features` (n, D), its neighbour of a rank, 1 being the nearest, among `others` (N, D).

    Returns:
        The Euclidean distances (n,) and the places among `others` (n,).
    """
    found = []
    for part in features.split(rows):  # (n, N) distances at once could fill the memory
        distances = torch.cdist(part.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist")
        found.append(distances.kthvalue(rank, dim=1))
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


@torch.no_grad()
def read_features(
    images: Images,
    network: FeatureNetwork,
    device: torch.device,
    block_size: int = BLOCK,
    on_block: Callable[[Block], None] = lambda block: None,
) -> tuple[Tensor, Tensor]:
    """Reads images block by block and computes their pool features by a network's first protocol.

    Args:
        images: the set.
        network: makes the features, on `device`.
        block_size: images whose features are computed together; of generated images, those of a block of theirs.
        on_block: is called with each block.

    Returns:
        The numbers of the readable images (n,) and their features (n, D), on the CPU.

    Raises:
        InputError: if none of the images can be read, or one holds NaN.
    """
    net: Any = network
    net.to(device)
    protocol = next(iter(network.protocols))
    numbers: list[Tensor] = []
    features: list[Tensor] = []
    for block in images.read(blocks_of(images.num_images, block_size), device):
        on_block(block)
        if not len(block.images):  # none of them could be read
            continue
        refuse_no_numbers(block)
        numbers.append(block.numbers)
        features.append(network(block.images)[protocol]["pool"].float().cpu())
    if not features:
        raise InputError(f"images: none of {counted(images.num_images, 'image')} can be read.")
    return torch.cat(numbers), torch.cat(features)


def memorized_share(distances: Tensor, of_held_out: Tensor, share: float = 0.01) -> tuple[float, list[str]]:
    """Returns the share of images that are nearer to a training image than the nearest held-out images are.

    Held-out images that are copies of training images do not count: the threshold would be 0, and no image nearer.

    Args:
        distances: of generated images to their nearest training images (n,).
        of_held_out: the same of held-out images.
        share: of the held-out images that lie nearer than the threshold.

    Returns:
        The share, and notes that say how many held-out images are copies.
    """
    of_copies = ROUNDING * float(of_held_out.max())
    others = of_held_out[of_held_out > of_copies]
    threshold = float(others.quantile(share)) if len(others) else of_copies
    notes = []
    if count := len(of_held_out) - len(others):
        notes = [
            f"Held-out images that are copies of training images: {count} of {len(of_held_out)}; memorized compares "
            "with the others."
        ]
    return float(((distances < threshold) | (distances <= of_copies)).double().mean()), notes


class DensityCoverage(KeptFeatures):
    """Density and coverage (arXiv 2002.09797), which are robuster against outliers than precision and recall.

    A ball around each real image reaches to its neighbour of rank `neighbours` among the real ones. Density is the
    number of balls that a generated image lies in, on average, divided by `neighbours`; coverage is the share of balls
    with a generated image in them.

    Args:
        neighbours: see above.
        max_real: see `KeptFeatures`.
    """

    def __init__(self, neighbours: Annotated[int, Ge(1)] = 5, max_real: Annotated[int, Ge(2)] = 10_000):
        super().__init__(max_real)
        self.neighbours = neighbours

    def compute(self) -> dict[str, float]:
        """Returns density and coverage; nothing if there are no more real images than `neighbours`."""
        fake, real = super().compute()
        if len(real) <= self.neighbours:
            self.notes = [f"Without density and coverage, which need more than {self.neighbours} real images."]
            return {}
        radii, _ = nearest(real, real, self.neighbours + 1)  # rank 1 is the image itself
        counts = torch.zeros(len(fake), dtype=torch.float64)
        for part, radius in zip(real.split(1000), radii.split(1000), strict=True):
            distances = torch.cdist(fake.double(), part.double(), compute_mode="donot_use_mm_for_euclid_dist")
            counts += (distances < radius).double().sum(1)
        closest, _ = nearest(real, fake)
        return {
            "density": float(counts.mean() / self.neighbours),
            "coverage": float((closest < radii).double().mean()),
        }


class Memorization(KeptFeatures):
    """The share of generated images that lie nearer to a training image than nearly all held-out images do.

    The real images are those of training. For a network that has learnt nothing by heart, the share is about `share`.
    Copies of training images always count; held-out images that are copies are left out of the comparison.

    Args:
        held_out: real images that were not trained on.
        features: the network that makes the features; its first protocol counts.
        share: of the held-out images that lie nearer than the threshold.
        max_real: see `KeptFeatures`; too few would hide copies of the others.

    Raises:
        InputError: without held-out images.
    """

    def __init__(
        self,
        held_out: Images | None,
        features: FeatureNetwork,
        share: Annotated[float, Gt(0), Lt(1)] = 0.01,
        max_real: Annotated[int, Ge(2)] = 1_000_000,
    ):
        super().__init__(max_real)
        if held_out is None:
            raise InputError(
                "the score memorization needs held-out images; expected metrics=lite0 metrics.images=DIR "
                "metrics.held_out_share=SHARE, as the images were tokenised, or a choice of scores without it."
            )
        self.identity = {"held_out": dict(held_out.identity)}  # what the score depends on, beside its settings
        self.share = share
        self.held_out: Any = held_out
        self.features: Any = [features]  # in a list, past torchmetrics, which would copy and save the network

    def compute(self) -> dict[str, float]:
        """Returns `memorized`, in [0, 1]; nothing if no held-out image can be read."""
        fake, real = super().compute()
        try:
            _, held_out = read_features(self.held_out, self.features[0], torch.device("cpu"))
        except InputError as error:
            self.notes = [f"Without memorized, which needs held-out images; {error}"]
            return {}
        share, self.notes = memorized_share(nearest(fake, real)[0], nearest(held_out, real)[0], self.share)
        return {"memorized": share}


class LinearProbe(KeptFeatures):
    """The accuracy of a linear classifier, fitted to real images and their classes, on generated ones.

    It says whether images show the class that was asked for. The share for real images that were not trained on tells
    what can be reached.

    Args:
        regularization: the inverse strength `C` of scikit-learn's logistic regression on standardised features.
        max_real: see `KeptFeatures`.
    """

    def __init__(self, regularization: Annotated[float, Gt(0)] = 0.05, max_real: Annotated[int, Ge(2)] = 50_000):
        super().__init__(max_real)
        self.regularization = regularization
        self.add_state("real_classes", [])
        self.add_state("fake_classes", [])
        self.real_classes: list[Tensor]
        self.fake_classes: list[Tensor]

    def update(  # type: ignore[override]
        self, imgs: Tensor, real: bool, image_numbers: Tensor, num_images: int, class_ids: Tensor
    ) -> None:
        """Adds features (B, D) and classes (B,); see `KeptFeatures.update`."""
        super().update(imgs, real, image_numbers, num_images)
        if not real:
            self.fake_classes.append(class_ids.cpu())
            return
        self.real_classes.append(class_ids.cpu()[self.is_kept(image_numbers, num_images)])

    def compute(self) -> dict[str, float]:
        """Returns `probe_accuracy`, and `probe_balanced_accuracy`, in which each class has the same weight."""
        if not self.real_classes or len(torch.cat(self.real_classes).unique()) < 2:
            self.notes = [
                "Without a linear probe, which needs a reference of two classes at least, as metrics=lite0 has."
            ]
            return {}
        fake, real = super().compute()
        fake_classes = torch.cat(self.fake_classes).cpu().numpy()
        real_classes = torch.cat(self.real_classes).cpu().numpy()
        with threadpool_limits(1):  # the number of threads would change the weights
            scaler = StandardScaler().fit(real.double().numpy())
            probe = LogisticRegression(C=self.regularization, max_iter=2000)
            probe.fit(scaler.transform(real.double().numpy()), real_classes)
            predicted = probe.predict(scaler.transform(fake.double().numpy()))
        recalls = [(predicted[fake_classes == one] == one).mean() for one in np.unique(fake_classes)]
        return {
            "probe_accuracy": float((predicted == fake_classes).mean()),
            "probe_balanced_accuracy": float(np.mean(recalls)),
        }
