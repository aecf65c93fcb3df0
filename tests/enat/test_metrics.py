"""Scores against other libraries, and against formulas written independently with numpy and scipy."""

import tracemalloc

import numpy as np
import pytest
import torch
from enat.metrics.statistics import Moments, Statistics, frechet_distance
from enat.metrics.summary import summarize
from enat.metrics.tally import Plan, Tally, measure
from scipy import linalg
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from data.references import TensorImages
from enat.errors import InputError
from enat.features.network import Features
from enat.generation import GeneratedImages
from enat.metrics.evaluation import Evaluation
from enat.metrics.scores import ClassAccuracy, CopyShare, InceptionScore, kernel_distance, precision_recall
from enat.processes import Processes
from enat.sampler import Sampler
from enat.schedules import constant, cosine, rising

CPU = torch.device("cpu")


class FirstPixels(torch.nn.Module):
    """A feature network that anyone can compute: the first pixels, and some of their doubles as spatial features."""

    protocols, num_features, num_logits, num_spatial, sha256 = ("pixels", "squares"), 4, 3, 2, "none"

    def forward(self, images):
        flat = images.flatten(1)
        return {
            name: Features(x[:, :4], x[:, :3] * 5, x[:, :2] * 2)
            for name, x in zip(self.protocols, (flat, flat**2), strict=True)
        }


def moments(features):
    found = Moments(features.shape[1])
    for part in features.split(64):
        found.update(part)
    return found.compute()


def frechet(real, fake):
    root = linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    distance = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    return distance + np.trace(np.cov(real.T) + np.cov(fake.T) - 2 * root)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def evaluation(reference, **options):
    defaults = {"num_images": 60, "block_size": 7, "batch_size": 14, "splits": 2, "kid_subset_size": 20}
    return Evaluation(FirstPixels(), reference, **(defaults | options))


def test_frechet_distance_is_that_of_others():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 8)), rng.normal(0.3, 1.4, size=(200, 8)) @ rng.normal(size=(8, 8))
    ours = frechet_distance(moments(torch.tensor(real)), moments(torch.tensor(fake)))
    assert ours == pytest.approx(frechet(real, fake), rel=1e-9)
    identity = torch.nn.Identity()
    identity.num_features = 8
    theirs = FrechetInceptionDistance(feature=identity)
    theirs.set_dtype(torch.float64)
    theirs.update(torch.tensor(real), real=True)
    theirs.update(torch.tensor(fake), real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_frechet_distance_of_known_gaussians():
    """With commuting covariances it is |m1-m2|^2 + sum (s1-s2)^2 over the standard deviations."""
    s1, s2 = (torch.linspace(low, 3, 40, dtype=torch.float64) for low in (0.0, 0.5))
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    first, second = (
        Statistics(torch.full((40,), mean, dtype=torch.float64), rotation @ torch.diag(s**2) @ rotation.T)
        for mean, s in ((0.0, s1), (0.5, s2))
    )
    assert frechet_distance(first, second) == pytest.approx(40 * 0.25 + float(((s1 - s2) ** 2).sum()), rel=1e-12)


def test_equal_images_have_no_distance_even_with_a_singular_covariance():
    features = noise(50, 300).double() * 10
    assert abs(frechet_distance(moments(features), moments(features.flip(0)))) < 1e-9


@pytest.mark.parametrize(("count", "splits"), [(500, 1), (503, 10)])
def test_inception_score_is_torch_fidelitys(count, splits):
    logits = torch.randn(count, 7, generator=torch.Generator().manual_seed(0)) * 3
    score = InceptionScore(count, 7, splits)
    for numbers in torch.arange(count).split(123):
        score.update(numbers, logits[numbers])
    theirs = isc_features_to_metric(logits, splits)
    ours = score.compute()
    assert ours[0] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert ours[1] == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_inception_score_by_its_formula():
    logits = torch.randn(500, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    score = InceptionScore(500, 7, 1)
    score.update(torch.arange(500), logits)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    assert score.compute()[0] == pytest.approx(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()), rel=1e-12)


def test_kernel_distance_by_its_formula():
    """The unbiased estimate over all images, when the subsets hold all."""
    fake, real = noise(30, 5).double().numpy(), noise(30, 5, seed=1).double().numpy() + 0.2

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (30 * 29) for x in (fake, real))
    mean, deviation = kernel_distance(torch.tensor(fake), torch.tensor(real), subsets=3, subset_size=1000)
    assert mean == pytest.approx(within - 2 * kernel(fake, real).mean(), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)
    other = kid_features_to_metric(
        torch.tensor(fake), torch.tensor(real), kid_subsets=3, kid_subset_size=20, verbose=False
    )
    assert kernel_distance(torch.tensor(fake), torch.tensor(real), 3, 20)[0] == pytest.approx(
        other["kernel_inception_distance_mean"], rel=1e-12
    )


def test_precision_and_recall_by_their_definition():
    fake, real = noise(40, 2).numpy() * 0.6, noise(50, 2, seed=1).numpy()

    def covered(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=2), axis=1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=2) <= radii).any(1).mean()

    found = precision_recall(torch.tensor(fake), torch.tensor(real), neighbours=3)
    assert found == pytest.approx((covered(fake, real), covered(real, fake)))
    assert 0 < found[1] < found[0]
    with pytest.raises(InputError, match=r"neighbours=40: expected fewer than the images, which are 40 and 50"):
        precision_recall(torch.tensor(fake), torch.tensor(real), neighbours=40)


def test_accuracy_and_copies():
    images = noise(6, 1, 2, 2)
    accuracy = ClassAccuracy(lambda x: torch.tensor([0, 1, 2, 3, 4, 0]))
    assert accuracy(images, torch.arange(6)).tolist() == [1, 1, 1, 1, 1, 0]
    copies = CopyShare(images[:4])
    assert copies(torch.cat([images[2:], images[:1] + 0.01]), torch.arange(5)).tolist() == [1, 1, 0, 0, 0]


def test_evaluation_of_images():
    real, fake = TensorImages(noise(100, 1, 3, 3)), TensorImages(noise(60, 1, 3, 3, seed=1) ** 2)
    judge = evaluation(real)
    for _ in range(2):  # a second pass starts afresh
        scores = judge.score(fake, CPU, Processes())
        for name, power in {"pixels": 1, "squares": 2}.items():
            a, b = (x.images.flatten(1).double().numpy() ** power for x in (real, fake))
            assert scores[name]["num_images"] == 60
            assert scores[name]["fid"] == pytest.approx(frechet(a[:, :4], b[:, :4]), rel=1e-6)
            assert scores[name]["sfid"] == pytest.approx(frechet(a[:, :2] * 2, b[:, :2] * 2), rel=1e-6)
            assert {"inception_score", "kid", "precision", "recall"} <= set(scores[name])
    quick = judge.score(fake, CPU, Processes(), full=False)
    assert quick["pixels"] == {
        name: scores["pixels"][name] for name in quick["pixels"] if name not in ("kid", "precision")
    }
    assert "kid" not in quick["pixels"]
    assert abs(judge.score(real, CPU, Processes())["pixels"]["fid"]) < 1e-9


def test_few_images_are_remarked_on():
    judge = evaluation(TensorImages(noise(100, 1, 3, 3)))
    few = judge.score(TensorImages(noise(4, 1, 3, 3)), CPU, Processes())
    assert "FID of 4 images with 4 features: the covariance is singular" in judge.notes(few)[0]
    assert judge.notes({"pixels": {"num_images": 5}}) == []
    few_real = evaluation(TensorImages(noise(3, 1, 3, 3)))
    scores = few_real.score(TensorImages(noise(60, 1, 3, 3)), CPU, Processes())
    assert few_real.notes(scores) == [
        "The reference has 3 images, no more than 4 features.",
        "The reference has 3 features, too few for KID and recall.",
    ]
    assert "kid" not in scores["pixels"]
    with pytest.raises(InputError, match="the images are 3x2, those of the reference 3x3; expected the same size"):
        judge.score(TensorImages(noise(60, 1, 2, 3)), CPU, Processes())


class Interrupting(TensorImages):
    """Images that end with an error at some block, or count how many are read."""

    def __init__(self, images, stop):
        super().__init__(images)
        self.stop, self.count = stop, 0

    def read(self, places, device):
        for block in super().read(places, device):
            if self.count == self.stop:
                raise KeyboardInterrupt
            self.count += 1
            yield block


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_interrupted_work_goes_on(tmp_path, stop):
    images, real = noise(60, 1, 3, 3, seed=1) ** 2, TensorImages(noise(100, 1, 3, 3))
    expected = evaluation(real).score(TensorImages(images), CPU, Processes())
    with pytest.raises(KeyboardInterrupt):
        evaluation(real).score(Interrupting(images, stop), CPU, Processes(), folder=tmp_path)
    rest = Interrupting(images, None)
    assert evaluation(real).score(rest, CPU, Processes(), folder=tmp_path) == expected
    assert rest.count < 9 if stop else rest.count == 9


def test_memory_is_bounded():
    """Without single features, nothing that is added makes the sums take more memory."""
    tally = Tally(FirstPixels(), {}, 20_000, Plan(10, 10), None)
    block = next(TensorImages(noise(10, 1, 3, 3)).read([range(10)], CPU))
    measured = measure(block, FirstPixels(), {})
    tracemalloc.start()
    for number in range(2000):
        tally.add({**measured, "numbers": torch.arange(10 * number, 10 * number + 10)}, [])
        if number == 200:
            before = tracemalloc.get_traced_memory()[0]
    assert tracemalloc.get_traced_memory()[0] - before < 10_000
    tracemalloc.stop()
    assert sum(tensor.nbytes for tensor in tally.state_dict().values()) < 3000
    assert tally.summaries()["pixels"].pool.num_images == 20_000


def test_features_are_kept_of_images_spread_evenly():
    images = TensorImages(torch.arange(100.0).view(100, 1, 1, 1).expand(-1, 1, 3, 3))
    kept = summarize(images, FirstPixels(), Plan(7, max_features=5), Processes(), CPU)["pixels"].features
    assert kept[:, 0].tolist() == [0, 25, 50, 74, 99]


def test_nan_and_too_few_images():
    real = TensorImages(noise(100, 1, 3, 3))
    broken = noise(60, 1, 3, 3)
    broken[33] = float("nan")
    with pytest.raises(InputError, match="1 of 7 hold NaN or infinite values, the first of them image 33"):
        evaluation(real).score(TensorImages(broken), CPU, Processes())
    with pytest.raises(InputError, match="1 images: expected at least two"):
        evaluation(real).score(TensorImages(broken[:1]), CPU, Processes())
    with pytest.raises(InputError, match="num_images=3"):
        evaluation(real, num_images=3, splits=10)
    with pytest.raises(InputError, match="batch_size=10, block_size=7: expected"):
        evaluation(real, batch_size=10)


def test_generated_images_do_not_depend_on_batches(small_net):
    """But for ties that rounding decides: their share of tokens is printed, and under 0.1 %."""
    sampler = Sampler(4, 2.0, 30.0, 5.0, cosine, rising, constant, constant)  # hot, or all images were one
    places = [range(first, min(first + 10, 195)) for first in range(0, 195, 10)]

    def token_ids(batch_size, seed=3):
        images = GeneratedImages(small_net, sampler, None, 195, seed, 10, batch_size)
        together = images.read_together
        with torch.no_grad():
            parts = [images.token_ids(places[i : i + together]) for i in range(0, len(places), together)]
        return torch.cat([part for some in parts for part in some])

    alone = token_ids(10)
    assert alone.shape == (195, 16)
    for batch_size in (20, 50, 200):
        share = float((token_ids(batch_size) != alone).float().mean())
        print(f"batch {batch_size}: {share:.2%} of the tokens differ")
        assert share < 0.001
    assert (token_ids(10, seed=4) != alone).float().mean() > 0.2
    assert len({tuple(ids.tolist()) for ids in alone}) > 190  # each block has noise of its own
