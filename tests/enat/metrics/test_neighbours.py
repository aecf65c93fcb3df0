"""Density, coverage, memorisation and the linear probe, against the definitions written out as loops."""

import numpy as np
import pytest
import torch

from data.references import TensorImages
from enat.errors import InputError
from enat.metrics.neighbours import DensityCoverage, LinearProbe, Memorization, nearest, read_features


def both(metric, fake, real, **classes):
    for features, is_real in ((real, True), (fake, False)):
        more = {name: values[0 if is_real else 1] for name, values in classes.items()}
        metric.update(
            features, real=is_real, image_numbers=torch.arange(len(features)), num_images=len(features), **more
        )
    return metric.compute()


def test_density_and_coverage_are_their_definitions():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(30, 3)), rng.normal(0.5, 1, size=(20, 3))
    distances = np.linalg.norm(real[:, None] - real[None], axis=2)
    radii = [sorted(np.delete(row, number))[2 - 1] for number, row in enumerate(distances)]  # the second neighbour
    inside = [[np.linalg.norm(y - x) < radius for x, radius in zip(real, radii, strict=True)] for y in fake]
    scores = both(DensityCoverage(neighbours=2), torch.from_numpy(fake).float(), torch.from_numpy(real).float())
    assert scores["density"] == pytest.approx(np.mean(np.sum(inside, axis=1)) / 2)
    assert scores["coverage"] == pytest.approx(np.mean(np.any(inside, axis=0)))


def test_too_few_images_for_density():
    metric = DensityCoverage(neighbours=5)
    assert both(metric, torch.randn(3, 2), torch.randn(5, 2)) == {}
    assert "need more than 5 real images" in metric.notes[0]


@pytest.mark.parametrize("rank", [1, 3])
def test_nearest_by_rank(rank):
    torch.manual_seed(0)
    features, others = torch.randn(7, 4), torch.randn(9, 4)
    distances, places = nearest(features, others, rank, rows=2)
    expected = (features[:, None] - others[None]).double().norm(dim=2).sort(dim=1)
    torch.testing.assert_close(distances, expected.values[:, rank - 1])
    assert torch.equal(places, expected.indices[:, rank - 1])


class Means(torch.nn.Module):
    """Takes the mean of each channel as features."""

    protocols = ("toy",)

    def forward(self, images):
        return {"toy": {"pool": images.mean((2, 3))}}


def test_copies_count_as_memorized_and_held_out_images_do_not():
    torch.manual_seed(0)
    real, held_out = torch.rand(200, 3), torch.rand(100, 3)
    images = TensorImages(held_out[:, :, None, None].expand(-1, -1, 2, 2))
    fake = torch.cat([real[:30], torch.rand(70, 3) + 5])
    assert both(Memorization(images, Means(), share=0.05), fake, real) == {"memorized": 0.3}
    assert both(Memorization(images, Means(), share=0.05), held_out, real)["memorized"] == pytest.approx(0.05)


def test_held_out_copies_do_not_hide_those_of_the_samples():
    """A threshold of 0 would call no image memorised. Features of copies may differ by rounding."""
    torch.manual_seed(0)
    real, held_out = torch.rand(200, 3), torch.rand(100, 3)
    fake = torch.cat([real[:30], torch.rand(70, 3) + 5])
    held_out[:3] = real[:3] * (1 + 1e-6)
    metric = Memorization(TensorImages(held_out[:, :, None, None]), Means(), share=0.01)
    assert both(metric, fake, real) == {"memorized": 0.3}
    assert metric.notes == [
        "Held-out images that are copies of training images: 3 of 100; memorized compares with the others."
    ]
    only_copies = Memorization(TensorImages(real[:10, :, None, None]), Means())
    assert both(only_copies, fake, real) == {"memorized": 0.3}
    assert "copies of training images: 10 of 10;" in only_copies.notes[0]


def test_memorization_without_held_out_images():
    with pytest.raises(InputError, match=r"needs held-out images; expected metrics=lite0 metrics\.images=DIR"):
        Memorization(None, Means())


def test_held_out_images_that_can_not_be_read():
    class Unreadable(TensorImages):
        def read(self, places, device):
            return (block._replace(images=block.images[:0]) for block in super().read(places, device))

    images = Unreadable(torch.rand(4, 3, 2, 2))
    with pytest.raises(InputError, match="images: none of 4 images can be read"):
        read_features(images, Means(), torch.device("cpu"))
    metric = Memorization(images, Means())
    assert both(metric, torch.rand(9, 3), torch.rand(9, 3)) == {}  # and the other scores are kept
    assert metric.notes == ["Without memorized, which needs held-out images; images: none of 4 images can be read."]


def test_a_linear_probe_sees_the_class_that_was_asked_for():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [5, 0], [0, 5]])
    real_classes, fake_classes = np.repeat([0, 1, 2], 40), np.repeat([0, 1, 2], [10, 20, 30])
    real, fake = (centres[ids] + rng.normal(scale=0.3, size=(len(ids), 2)) for ids in (real_classes, fake_classes))
    asked = fake_classes.copy()
    asked[:10] = 1  # all of class 0 were to be of class 1
    scores = both(
        LinearProbe(),
        torch.from_numpy(fake).float(),
        torch.from_numpy(real).float(),
        class_ids=(torch.from_numpy(real_classes), torch.from_numpy(asked)),
    )
    assert scores["probe_accuracy"] == pytest.approx(50 / 60)
    assert scores["probe_balanced_accuracy"] == pytest.approx((20 / 30 + 1) / 2)


@pytest.mark.parametrize("reference", ["statistics", "images without classes"])
def test_a_linear_probe_of_a_reference_without_classes_is_left_out(reference):
    """Features that a file of statistics has kept do not say their classes."""
    probe = LinearProbe()
    if reference == "statistics":
        probe.real_features = [torch.rand(9, 3)]
    probe.update(torch.rand(5, 3), False, torch.arange(5), 5, torch.tensor([0, 1, 0, 1, 0]))
    assert probe.compute() == {}
    assert probe.notes == [
        "Without a linear probe, which needs a reference of two classes at least, as metrics=lite0 has."
    ]
