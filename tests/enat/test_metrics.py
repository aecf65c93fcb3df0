"""Scores against formulas written independently with numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import linalg

from enat.errors import InputError
from enat.metrics.evaluation import Evaluation
from enat.metrics.scores import ClassAccuracy, CopyShare, FeatureFID, LogitInceptionScore


class FirstPixels(torch.nn.Module):
    """A feature network that anyone can compute: the first pixels."""

    num_features = 4

    def forward(self, images):
        flat = images.flatten(1)
        return flat[:, :4], flat[:, :3] * 5


def frechet(real, fake):
    root = linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    distance = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    return distance + np.trace(np.cov(real.T) + np.cov(fake.T) - 2 * root)


def test_fid():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 8)), rng.normal(0.3, 1.4, size=(200, 8)) @ rng.normal(size=(8, 8))
    fid = FeatureFID(8)
    fid.update(torch.tensor(real), real=True)
    for _ in range(2):  # real features survive a reset, generated ones do not
        for part in torch.tensor(fake).split(64):
            fid.update(part, real=False)
        assert float(fid.compute()) == pytest.approx(frechet(real, fake), rel=1e-9)
        fid.reset()


def test_inception_score():
    logits = torch.randn(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    score = LogitInceptionScore(splits=1)
    for part in logits.split(123):
        score.update(part)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    expected = np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    state = torch.get_rng_state()
    assert float(score.compute()) == pytest.approx(expected, rel=1e-12)
    assert torch.equal(state, torch.get_rng_state())


def test_accuracy_and_copies():
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    accuracy = ClassAccuracy(lambda x: torch.tensor([0, 1, 2, 3, 4, 0]))
    accuracy.update(images, torch.arange(6))
    assert float(accuracy.compute()) == pytest.approx(5 / 6)
    copies = CopyShare(images[:4])
    copies.update(torch.cat([images[2:], images[:1] + 0.01]), torch.arange(5))
    assert float(copies.compute()) == pytest.approx(2 / 5)


def test_evaluation_of_images():
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(100, 1, 3, 3, generator=generator)
    fake = torch.rand(60, 1, 3, 3, generator=generator) ** 2
    evaluation = Evaluation(FirstPixels(), real, num_images=60, block_size=7, splits=2)
    batches = [(part, torch.zeros(len(part))) for part in fake.split(11)]
    for _ in range(2):  # a second pass starts afresh
        scores = evaluation.score_images(batches, torch.device("cpu"))
        expected = frechet(real.flatten(1)[:, :4].double().numpy(), fake.flatten(1)[:, :4].double().numpy())
        assert scores["fid"] == pytest.approx(expected, rel=1e-6)
    same = evaluation.score_images([(real, torch.zeros(100))], torch.device("cpu"))
    assert abs(same["fid"]) < 1e-9


def test_too_few_images():
    with pytest.raises(InputError, match="num_images=3"):
        Evaluation(FirstPixels(), torch.zeros(2, 1, 2, 2), num_images=3, block_size=1)
