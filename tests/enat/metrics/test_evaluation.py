"""The evaluation: any metric by protocol, in one pass that goes on where it was stopped."""

import unicodedata

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics import MeanMetric
from torchmetrics.image import KernelInceptionDistance, TotalVariation
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore as StockInceptionScore

from data.references import StatisticsFile, TensorImages
from enat.errors import InputError
from enat.metrics.accumulation import STATE
from enat.metrics.evaluation import Evaluation
from enat.metrics.neighbours import LinearProbe, Memorization
from enat.metrics.scores import FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall
from enat.metrics.view import AsTheyAre, OnView
from enat.processes import Processes
from experiments.reporting.scores import notes_on

CPU = torch.device("cpu")


class FirstPixels(torch.nn.Module):
    """A feature network that anyone can compute: the first pixels, and some of their doubles as spatial features."""

    protocols, widths, sha256 = ("pixels", "squares"), {"pool": 4, "logits": 3, "spatial": 2}, "none"

    def forward(self, images):
        flat = images.flatten(1)
        return {
            name: {"pool": x[:, :4], "logits": x[:, :3] * 5, "spatial": x[:, :2] * 2}
            for name, x in zip(self.protocols, (flat, flat**2), strict=True)
        }


def frechet(real, fake):
    root = linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    distance = ((real.mean(0) - fake.mean(0)) ** 2).sum()
    return distance + np.trace(np.cov(real.T) + np.cov(fake.T) - 2 * root)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def evaluation(reference, more=None, **options):
    scores = {
        "fid": OnView("pool", FrechetDistance()),
        "sfid": OnView("spatial", FrechetDistance()),
        "inception_score": OnView("logits", InceptionScore(2)),
        "kid": OnView("pool", KernelDistance(subset_size=20)),
        "precision_recall": OnView("pool", PrecisionRecall()),
    }
    sizes = {"num_images": 60, "block_size": 7, "batch_size": 14}
    return Evaluation(FirstPixels(), reference, scores | (more or {}), **(sizes | options))


def test_evaluation_of_images():
    real, fake = TensorImages(noise(100, 1, 3, 3)), TensorImages(noise(60, 1, 3, 3, seed=1) ** 2)
    judge = evaluation(real)
    for _ in range(2):  # a second set of images is compared with the same reference
        scores = judge.score(fake, CPU, Processes()).scores
        for name, power in {"pixels": 1, "squares": 2}.items():
            a, b = (x.images.flatten(1).double().numpy() ** power for x in (real, fake))
            assert scores[name]["num_images"] == 60
            assert scores[name]["fid"] == pytest.approx(frechet(a[:, :4], b[:, :4]), rel=1e-6)
            assert scores[name]["sfid"] == pytest.approx(frechet(a[:, :2] * 2, b[:, :2] * 2), rel=1e-6)
            assert list(scores[name])[1:4] == ["fid", "sfid", "inception_score"]
            assert {"kid", "kid_std", "precision", "recall"} <= set(scores[name])
    quick = evaluation(real)
    quick.leave_out(["kid", "precision_recall", "not there"])
    row = quick.score(fake, CPU, Processes()).scores["pixels"]
    assert set(scores["pixels"]) - set(row) == {"kid", "kid_std", "precision", "recall"}
    assert row == {name: scores["pixels"][name] for name in row}
    assert abs(judge.score(real, CPU, Processes()).scores["pixels"]["fid"]) < 1e-9


class Brightness(MeanMetric):
    """A metric of generated images alone, whose update names neither real images nor numbers."""

    def update(self, imgs):
        super().update(imgs.mean((1, 2, 3)))


def test_stock_metrics_stand_beside_ours():
    """They give what they give alone, also for a second set of images."""
    real, fake = noise(100, 1, 3, 3), noise(60, 1, 3, 3, seed=1) ** 2
    stock = {
        "stock_fid": OnView("pool", FrechetInceptionDistance(feature=AsTheyAre(4))),
        "stock_kid": OnView("pool", KernelInceptionDistance(feature=AsTheyAre(4), subset_size=60, subsets=1)),
        "stock_is": OnView("logits", StockInceptionScore(feature=AsTheyAre(3), splits=1)),
        "variation": OnView("images", TotalVariation(reduction="mean")),
        "brightness": OnView("images", Brightness()),
    }
    judge = evaluation(TensorImages(real), stock)
    judge.score(TensorImages(noise(60, 1, 3, 3, seed=2)), CPU, Processes())
    row = judge.score(TensorImages(fake), CPU, Processes()).scores["pixels"]
    assert row["stock_fid"] == pytest.approx(row["fid"], rel=1e-4)
    assert row["brightness"] == pytest.approx(float(fake.mean()), rel=1e-6)
    variation = TotalVariation(reduction="mean")
    variation.update(fake)
    assert row["variation"] == pytest.approx(float(variation.compute()), rel=1e-6)
    whole = StockInceptionScore(feature=AsTheyAre(3), splits=1)
    whole.update(fake.flatten(1)[:, :3] * 5)
    assert row["stock_is"] == pytest.approx(float(whole.compute()[0]), rel=1e-6)
    assert {"stock_kid", "stock_kid_std", "stock_is_std"} <= set(row)


def test_a_metric_that_does_not_fit_is_named():
    real = TensorImages(noise(100, 1, 3, 3))
    wrong = {"kid_of_many": OnView("pool", KernelInceptionDistance(feature=AsTheyAre(), subset_size=1000))}
    with pytest.raises(InputError, match=r"scores\.kid_of_many: KernelInceptionDistance: Argument `subset_size`"):
        evaluation(real, wrong).score(real, CPU, Processes())
    with pytest.raises(InputError, match=r"TotalVariation on view=pool: Expected input `img` to be an 4D tensor"):
        evaluation(real, {"variation": OnView("pool", TotalVariation())}).score(real, CPU, Processes())
    with pytest.raises(InputError, match=r"scores\.x\.view=depth: expected one of pool, logits, spatial, images"):
        evaluation(real, {"x": OnView("depth", TotalVariation())})


@pytest.mark.parametrize("how", ["size", "arr_0"])
def test_statistics_of_images_of_another_size(tmp_path, how):
    """FID would be finite and mean nothing. Files of task=statistics say the size; in ADM's, the images do."""
    facts = {"size": [9, 9]} if how == "size" else {"arr_0": np.zeros((2, 9, 9, 3), np.uint8)}
    np.savez(tmp_path / "reference.npz", mu=np.zeros(4), sigma=np.eye(4), protocol="pixels", **facts)
    reference = StatisticsFile(str(tmp_path / "reference.npz"))
    scores = {"fid": OnView("pool", FrechetDistance())}

    class OneProtocol(FirstPixels):
        protocols = ("pixels",)

        def forward(self, images):
            return {"pixels": {"pool": images.flatten(1)[:, :4]}}

    judge = Evaluation(OneProtocol(), reference, scores, num_images=20, block_size=10, batch_size=10)
    assert judge.score(TensorImages(noise(20, 3, 9, 9)), CPU, Processes()).scores["pixels"]["fid"] > 0
    with pytest.raises(InputError, match="the images are 8x8, those of the reference 9x9; expected the same size"):
        judge.score(TensorImages(noise(20, 3, 8, 8)), CPU, Processes())


class ManySpatial(FirstPixels):
    """Has more spatial features than pool features, as EfficientNet-Lite0 has."""

    widths = {**FirstPixels.widths, "spatial": 5}  # noqa: RUF012


def test_a_large_covariance_is_computed_only_where_the_reference_has_one(tmp_path):
    """Of the 16,000 spatial features of EfficientNet-Lite0, it takes 2 GB and hours."""
    images = TensorImages(noise(60, 1, 3, 3))
    sizes = {"num_images": 60, "block_size": 7, "batch_size": 14}
    scores = {"fid": OnView("pool", FrechetDistance()), "sfid": OnView("spatial", FrechetDistance())}
    result = Evaluation(ManySpatial(), images, scores, **sizes).score(images, CPU, Processes())
    assert result.left_out == ["sfid"]
    assert "sfid" not in result.scores["pixels"]
    assert "sFID needs the statistics of spatial features, which task=statistics sfid=true writes." in notes_on(
        result, 4
    )
    with pytest.raises(InputError, match=r"score=\[sfid\]: the reference has no statistics for that; .* sfid=true"):
        Evaluation(ManySpatial(), images, {"sfid": scores["sfid"]}, **sizes).see_reference(CPU, Processes())


def test_few_images_are_remarked_on():
    judge = evaluation(TensorImages(noise(100, 1, 3, 3)))
    few = judge.score(TensorImages(noise(4, 1, 3, 3)), CPU, Processes())
    assert "FID of 4 images with 4 features: the covariance is singular" in notes_on(few, 4)[0]
    kid = "KID of subsets of {} images instead of 20, for there are no more: compare it with KIDs of as many only."
    assert notes_on(few, 4)[1] == kid.format(4)
    assert notes_on(judge.score(TensorImages(noise(5, 1, 3, 3)), CPU, Processes()), 4) == [kid.format(5)]
    assert notes_on(judge.score(TensorImages(noise(20, 1, 3, 3)), CPU, Processes()), 4) == []
    few_real = evaluation(TensorImages(noise(3, 1, 3, 3))).score(TensorImages(noise(60, 1, 3, 3)), CPU, Processes())
    assert notes_on(few_real, 4) == [
        "The reference has 3 images, no more than 4 features.",
        kid.format(3),
        "Without precision and recall, which need more than 3 images of each kind.",
    ]
    assert "precision" not in few_real.scores["pixels"]
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


def test_a_state_of_other_scores_is_not_taken(tmp_path):
    """What would fill one metric with another's sums is an error."""
    images, real = noise(60, 1, 3, 3, seed=1), TensorImages(noise(100, 1, 3, 3))
    with pytest.raises(KeyboardInterrupt):
        evaluation(real).score(Interrupting(images, 5), CPU, Processes(), folder=tmp_path)
    assert (tmp_path / "images" / STATE).exists()
    other = evaluation(real, {"fid": OnView("pool", KernelDistance())})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.score(TensorImages(images), CPU, Processes(), folder=tmp_path)


def test_what_scores_depend_on_is_in_the_identity():
    """Or else unfinished work would go on with other images."""
    one, other = (TensorImages(noise(9, 1, 3, 3, seed=seed)) for seed in (0, 1))
    labelled = TensorImages(one.images, torch.arange(9))
    assert len({judge.reference.identity["sha256"] for judge in map(evaluation, (one, other, labelled))}) == 3
    memorization = [
        evaluation(one, {"memorization": OnView("pool", Memorization(held_out, FirstPixels()))}).identity()
        for held_out in (one, other, other)
    ]
    assert memorization[0] != memorization[1] == memorization[2]


def test_nan_and_too_few_images():
    real = TensorImages(noise(100, 1, 3, 3))
    broken = noise(60, 1, 3, 3)
    broken[33] = float("nan")
    with pytest.raises(InputError, match="1 of 7 hold NaN or infinite values, the first of them image 33"):
        evaluation(real).score(TensorImages(broken), CPU, Processes())
    with pytest.raises(InputError, match="1 image: expected at least two"):
        evaluation(real).score(TensorImages(broken[:1]), CPU, Processes())
    with pytest.raises(InputError, match="3 images: expected at least two, and one for each of 10 splits"):
        evaluation(real, {"inception_score": OnView("logits", InceptionScore(10))}, num_images=3)
    with pytest.raises(InputError, match="batch_size=10: expected a multiple of block_size=7"):
        evaluation(real, batch_size=10)


def test_two_scores_of_one_class_keep_their_values():
    """The second would replace the first, whose names it has; it is named by its key in the YAML."""
    real, fake = TensorImages(noise(100, 1, 3, 3)), TensorImages(noise(60, 1, 3, 3, seed=1))
    small = {"kid_of_five": OnView("pool", KernelDistance(subset_size=5))}
    scores = evaluation(real, small).score(fake, CPU, Processes()).scores["pixels"]
    alone = evaluation(real).score(fake, CPU, Processes()).scores["pixels"]
    assert {name: value for name, value in scores.items() if not name.startswith("kid_of_five")} == alone
    assert scores.keys() - alone.keys() == {"kid_of_five_kid", "kid_of_five_kid_std"}
    assert scores["kid_of_five_kid"] != scores["kid"]


def test_a_reference_without_classes_leaves_out_the_probe():
    real = TensorImages(noise(100, 1, 3, 3))
    fake = TensorImages(noise(60, 1, 3, 3, seed=1), torch.arange(60) % 3)
    probed = evaluation(real, {"linear_probe": OnView("pool", LinearProbe())})
    result = probed.score(fake, CPU, Processes())
    assert result.left_out == ["linear_probe"]
    assert result.scores == evaluation(real).score(fake, CPU, Processes()).scores
    note = "Without linear_probe: the reference has no images, classes, single features or statistics for that."
    assert note in notes_on(result, 4)
    with_classes = TensorImages(real.images, torch.arange(100) % 3)
    probed = evaluation(with_classes, {"linear_probe": OnView("pool", LinearProbe())})
    assert "probe_accuracy" in probed.score(fake, CPU, Processes()).scores["pixels"]


def test_images_without_classes_leave_out_the_probe_and_say_so():
    real = TensorImages(noise(40, 1, 3, 3), torch.arange(40) % 2)
    probe = {"linear_probe": OnView("pool", LinearProbe())}
    result = evaluation(real, probe).score(TensorImages(noise(20, 1, 3, 3)), CPU, Processes())
    assert "probe_accuracy" not in result.scores["pixels"]
    assert "Without linear_probe: these images have no classes." in notes_on(result, 4)


def test_classes_as_often_as_in_the_reference():
    """Another mixture is another work, so that an evaluation does not go on with it."""
    real = TensorImages(noise(100, 1, 3, 3))
    with pytest.raises(
        InputError, match=r"the reference has no classes; expected metrics\.evaluation\.class_shares=equal"
    ):
        evaluation(real, class_shares="reference")
    real.class_counts = [70, 30]
    judge = evaluation(real, class_shares="reference")
    assert judge.identity() != evaluation(real).identity()
    judge.check_classes(2)
    judge.check_classes(0)  # a network without classes draws none
    with pytest.raises(InputError, match="the reference has 2 classes, and the network 3; expected its images in as"):
        judge.check_classes(3)
    real.class_names = ["cat", "dog"]
    judge.check_classes(2, ["cat", "dog"])
    real.class_names = [unicodedata.normalize("NFD", "Käse"), "dog"]
    judge.check_classes(2, [unicodedata.normalize("NFC", "Käse"), "dog"])  # which look the same
    real.class_names = ["cat", "dog"]
    with pytest.raises(
        InputError, match="their classes are cat, dog, those of the network dog, cat; expected the same"
    ):
        judge.check_classes(2, ["dog", "cat"])
    evaluation(real).check_classes(2, ["dog", "cat"])  # no score asks for classes


def test_images_whose_classes_have_another_order_are_refused():
    """The linear probe compares class ids."""
    real, images = (TensorImages(noise(60, 1, 3, 3, seed=seed), torch.arange(60) % 2) for seed in range(2))
    real.class_names, images.class_names = ["cat", "dog"], ["dog", "cat"]
    judge = evaluation(real, {"linear_probe": OnView("pool", LinearProbe())})
    with pytest.raises(InputError, match="their classes are cat, dog, those of the images dog, cat; expected the same"):
        judge.score(images, CPU, Processes())
    assert evaluation(real).score(images, CPU, Processes()).scores["pixels"]["num_images"] == 60
    images.class_names = ["cat", "dog"]
    assert "probe_accuracy" in judge.score(images, CPU, Processes()).scores["pixels"]
