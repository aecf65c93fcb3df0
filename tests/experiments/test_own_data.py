"""The feature network, statistics, and a folder of one's own from images to a score, with a random Inception."""

import numpy as np
import pytest
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from data.photos import cut_photos
from enat.errors import InputError
from enat.metrics.inception import InceptionFeatures
from enat.metrics.scores import FeatureFID
from enat.metrics.statistics import load_statistics


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    cut_photos(folder)
    return folder


def test_features_are_torch_fidelitys(inception):
    """At 299 pixels nothing is resized; u/256 makes both normalisations of a byte u the same."""
    byte = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = ["2048", "logits_unbiased"]
    theirs = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", names, feature_extractor_weights_path=inception
    )
    for ours, expected in zip(InceptionFeatures(str(inception))(byte.float() / 256), theirs(byte), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_inceptions(inception, tmp_path):
    with pytest.raises(InputError, match="fetch weights-inception-2015-12-05-6726825d"):
        InceptionFeatures(str(tmp_path / "none.pth"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the weights of the FID Inception"):
        InceptionFeatures(str(tmp_path / "other.pth"))


def test_statistics_stand_in_for_images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(50, 6, generator=generator).double(), torch.rand(40, 6, generator=generator).double() ** 2
    np.savez(tmp_path / "s.npz", mu=real.mean(0), sigma=np.cov(real.T))
    values = []
    for by_statistics in (False, True):
        fid = FeatureFID(6)
        if by_statistics:
            fid.set_reference(load_statistics(str(tmp_path / "s.npz")), rank=0)
        else:
            fid.update(real, real=True)
        fid.update(fake, real=False)
        values.append(float(fid.compute()))
    assert values[1] == pytest.approx(values[0], rel=1e-10)
    np.savez(tmp_path / "wrong.npz", mean=1)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("wrong.npz", "text.npz", "none.npz"):
        with pytest.raises(InputError, match=r"expected an \.npz file with mu and sigma"):
            load_statistics(str(tmp_path / name))


def test_a_folder_of_ones_own(command, inception, photos, tmp_path):
    """Tokenize, statistics, train, evaluate: what the README describes."""
    tiny = ["tokenizer=vqgan_tiny", "num_workers=0"]
    command("task=tokenize", *tiny, f"images={photos}", f"output={tmp_path}/shards", "held_out=0.1")
    few = tmp_path / "few"
    for path in sorted(photos.rglob("*.jpg"))[::20]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    weights = f"weights={inception}"
    options = ["task=statistics", f"images={few}", f"features.{weights}", "resolution=32", "num_workers=1"]
    (few / "broken.jpg").write_text("no picture")
    results = command(*options, f"output={tmp_path}/statistics").results
    assert results["num_images"] == 12
    assert len(results["skipped"]) == 1
    assert "broken.jpg: unreadable" in results["skipped"][0]
    reference = load_statistics(results["statistics"])
    assert reference.mu.shape == (2048,)
    experiment = [
        "experiment=photos",
        "data=shards",
        "data.batch_size=16",
        f"data.shards={tmp_path}/shards",
        "metrics=inception",
        f"metrics.evaluation.features.{weights}",
        f"metrics.evaluation.reference.path={results['statistics']}",
        "metrics.evaluation.num_images=10",
        "metrics.evaluation.block_size=10",
        "metrics.evaluation.splits=2",
    ]
    trained = command(
        *experiment, "trainer.max_steps=2", "trainer.val_check_interval=2", f"output={tmp_path}/run"
    ).results
    untrained = trained["yardsticks"]["untrained network"]
    assert trained["fid"] > 1e-3
    assert trained["fid"] != pytest.approx(untrained["fid"], rel=1e-3)
    checkpoint = trained["checkpoint"]
    scored = command(*experiment, "task=evaluate", f"weights={checkpoint}", f"output={tmp_path}/e").results
    assert scored["fid"] == pytest.approx(trained["fid"], rel=1e-6)
