"""Scores against other libraries, and against formulas written independently with numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from enat.errors import InputError
from enat.metrics.scores import (
    ClassAccuracy,
    Copies,
    FrechetDistance,
    InceptionScore,
    KeptFeatures,
    KernelDistance,
    PrecisionRecall,
    frechet_distance,
)
from enat.metrics.view import AsTheyAre


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def filled(metric, fake, real, size=64):
    """The metric after both sides, in parts."""
    for features, is_real in ((real, True), (fake, False)):
        for numbers in torch.arange(len(features)).split(size):
            extra = {"image_numbers": numbers, "num_images": len(features)} if isinstance(metric, KeptFeatures) else {}
            metric.update(features[numbers], real=is_real, **extra)
    return metric


def test_frechet_distance_is_that_of_others():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 8)), rng.normal(0.3, 1.4, size=(200, 8)) @ rng.normal(size=(8, 8))
    root = linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    expected = ((real.mean(0) - fake.mean(0)) ** 2).sum() + np.trace(np.cov(real.T) + np.cov(fake.T) - 2 * root)
    real, fake = torch.tensor(real), torch.tensor(fake)
    ours = float(filled(FrechetDistance(), fake, real).compute())
    assert ours == pytest.approx(expected, rel=1e-9)
    theirs = FrechetInceptionDistance(feature=AsTheyAre(8))
    theirs.set_dtype(torch.float64)
    assert ours == pytest.approx(float(filled(theirs, fake, real).compute()), rel=1e-9)
    by_statistics = FrechetDistance()
    by_statistics.set_real_statistics(real.mean(0), torch.cov(real.T))
    by_statistics.update(fake, real=False)
    assert float(by_statistics.compute()) == pytest.approx(ours, rel=1e-12)


def test_frechet_distance_of_known_gaussians():
    """With commuting covariances it is |m1-m2|^2 + sum (s1-s2)^2 over the standard deviations."""
    s1, s2 = (torch.linspace(low, 3, 40, dtype=torch.float64) for low in (0.0, 0.5))
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    means = (torch.full((40,), mean, dtype=torch.float64) for mean in (0.0, 0.5))
    sigmas = (rotation @ torch.diag(s**2) @ rotation.T for s in (s1, s2))
    (mu_1, mu_2), (sigma_1, sigma_2) = means, sigmas
    expected = 40 * 0.25 + float(((s1 - s2) ** 2).sum())
    assert frechet_distance(mu_1, sigma_1, mu_2, sigma_2) == pytest.approx(expected, rel=1e-12)


def test_equal_images_have_no_distance_even_with_a_singular_covariance():
    features = noise(50, 300).double() * 10
    assert abs(float(filled(FrechetDistance(), features.flip(0), features).compute())) < 1e-9


@pytest.mark.parametrize(("count", "splits"), [(500, 1), (503, 10)])
def test_inception_score_is_torch_fidelitys(count, splits):
    logits = torch.randn(count, 7, generator=torch.Generator().manual_seed(0)) * 3
    score = InceptionScore(splits)
    for numbers in torch.arange(count).split(123):
        score.update(logits[numbers], numbers, count)
    ours, theirs = score.compute(), isc_features_to_metric(logits, splits)
    assert float(ours["inception_score"]) == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert float(ours["inception_score_std"]) == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_inception_score_by_its_formula():
    logits = torch.randn(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    score = InceptionScore(1)
    score.update(logits, torch.arange(500), 500)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert float(score.compute()["inception_score"]) == pytest.approx(expected, rel=1e-12)


def test_a_split_without_images_is_an_error():
    score = InceptionScore(4)
    score.update(noise(2, 3), torch.arange(2), 8)
    with pytest.raises(InputError, match="splits=4: too many for 2 readable images"):
        score.compute()


def test_kernel_distance_by_its_formula():
    """The unbiased estimate over all images, when the subsets hold all."""
    fake, real = noise(30, 5), noise(30, 5, seed=1) + 0.2

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    a, b = fake.double().numpy(), real.double().numpy()
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (30 * 29) for x in (a, b))
    scores = filled(KernelDistance(subsets=3), fake, real).compute()
    assert scores["kid"] == pytest.approx(within - 2 * kernel(a, b).mean(), rel=1e-9)
    assert scores["kid_std"] == pytest.approx(0, abs=1e-12)
    theirs = kid_features_to_metric(fake.double(), real.double(), kid_subsets=3, kid_subset_size=20, verbose=False)
    ours = filled(KernelDistance(subsets=3, subset_size=20), fake, real).compute()
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-12)
    assert filled(KernelDistance(), fake[:1], real).compute() == {}


def test_precision_and_recall_by_their_definition():
    fake, real = noise(40, 2) * 0.6, noise(50, 2, seed=1)

    def covered(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=2) <= radii).any(1).mean()

    scores = filled(PrecisionRecall(neighbours=3), fake, real).compute()
    a, b = fake.numpy(), real.numpy()
    assert (scores["precision"], scores["recall"]) == pytest.approx((covered(a, b), covered(b, a)))
    assert 0 < scores["recall"] < scores["precision"]
    assert filled(PrecisionRecall(neighbours=40), fake, real).compute() == {}


def test_real_features_are_kept_of_images_spread_evenly():
    metric = filled(KeptFeatures(max_real=5), noise(3, 2), torch.arange(100.0).view(100, 1).expand(-1, 2), size=7)
    fake, real = metric.compute()
    assert real[:, 0].tolist() == [0, 25, 50, 74, 99]
    assert torch.equal(fake, noise(3, 2))


def test_accuracy_and_copies():
    images = noise(6, 1, 2, 2)
    accuracy = ClassAccuracy(lambda x: torch.tensor([0, 1, 2, 3, 4, 0]))
    accuracy.update(images, torch.arange(6))
    assert float(accuracy.compute()) == 5 / 6
    copies = Copies(images[:4])
    copies.update(images[2:])
    copies.update(images[:1] + 0.01)
    assert float(copies.compute()) == 2 / 5


def test_sums_take_the_same_memory_whatever_the_number_of_images():
    frechet, inception = FrechetDistance(), InceptionScore(10)
    for metric in (frechet, inception):
        metric.persistent(True)
    features, sizes = noise(10, 4), []
    for number in range(200):
        frechet.update(features, real=number % 2 == 0)
        inception.update(features, torch.arange(10 * number, 10 * number + 10), 2000)
        sizes.append(sum(x.nbytes for metric in (frechet, inception) for x in metric.state_dict().values()))
    assert sizes[1] == sizes[-1] < 1000
