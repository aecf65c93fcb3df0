"""A user's own folder of images, from tokenising to a score, with an Inception network of random weights."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.types import RunMode
from omegaconf import open_dict
from PIL import Image
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from data.references import StatisticsFile
from enat.errors import InputError
from enat.features.inception import InceptionFeatures, adm
from enat.features.lite0 import Lite0Features
from experiments.runtime.places import refuse_output_among_images


def test_features_are_torch_fidelitys(inception):
    byte = torch.randint(0, 256, (2, 3, 50, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = ["2048", "logits_unbiased"]
    theirs = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", names, feature_extractor_weights_path=inception
    )(byte)
    with torch.no_grad():
        ours = InceptionFeatures(str(inception), {"adm": adm})(byte.float() / 255)["adm"]
    torch.testing.assert_close(ours["pool"], theirs[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours["logits"], theirs[1], rtol=1e-6, atol=1e-6)


def test_weights_that_are_not_inceptions(inception, tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        InceptionFeatures(str(tmp_path / "none.pth"), {"adm": adm})
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the weights of the FID Inception"):
        InceptionFeatures(str(tmp_path / "other.pth"), {"adm": adm})


def test_inception_weights_that_are_no_numbers(inception, tmp_path):
    state = torch.load(inception)
    name = next(iter(state))
    torch.save({**state, name: torch.full_like(state[name], torch.nan)}, tmp_path / "nan.pth")
    with pytest.raises(InputError, match="the weights hold NaN or infinite values"):
        InceptionFeatures(str(tmp_path / "nan.pth"), {"adm": adm})


@pytest.mark.slow
def test_a_reference_that_does_not_fit_is_refused_before_training(command, inception, photos, tmp_path):
    """Not at the first validation, when hours of work are done."""
    options = ["metrics=inception", f"metrics.evaluation.features.weights={inception}"]
    made = ["task=statistics", f"features.weights={inception}", f"scored.path={photos}", "scored.resolution=16"]
    assert "images of 16 x 16 pixels" in command(*made, "scored.num_workers=0", f"output={tmp_path}/st").out
    shards = ["task=tokenize", "tokenizer=vqgan_tiny", f"images={photos}", "num_workers=0", "held_out=0.1"]
    assert command(*shards, f"output={tmp_path}/shards").status == 0
    run = [f"data.shards={tmp_path}/shards", "module.net.width=32", "data.num_workers=0", *options]
    run += [f"reference.path={tmp_path}/st/statistics.npz", "trainer.max_steps=2", f"output={tmp_path}/run"]
    for change, sentence in {
        "protocol=[enat]": "the images are 32x32, those of the reference 16x16",
        "protocol=[clean]": "its statistics are of protocol enat, not clean",
    }.items():
        refused = command(*run, change)
        assert sentence in refused.err
        assert not (tmp_path / "run" / "metrics").exists()
    trained = command(*run[:3], "trainer.max_steps=1", "trainer.val_check_interval=1", f"output={tmp_path}/good")
    assert trained.status == 0, trained.err
    score = ["task=evaluate", f"weights={tmp_path}/good", *options, run[5]]
    refused = command(*score, "reference=statistics", f"output={tmp_path}/scores")
    assert "the images are 32x32, those of the reference 16x16" in refused.err
    assert not (tmp_path / "scores" / "unfinished").exists()


def test_files_that_hold_no_statistics(tmp_path):
    np.savez(tmp_path / "wrong.npz", mean=1)
    (tmp_path / "text.npz").write_text("no archive")
    for name, sentence in {
        "wrong": "expected mu and sigma in it, found mean",
        "text": r"expected an \.npz file with mu and sigma",
        "none": "there is no such file",
    }.items():
        with pytest.raises(InputError, match=sentence):
            StatisticsFile(str(tmp_path / f"{name}.npz"))


def test_a_folder_is_no_file_of_statistics(tmp_path):
    with pytest.raises(InputError, match="this is a folder; expected a file of statistics, or reference=images beside"):
        StatisticsFile(str(tmp_path))


@pytest.mark.parametrize(
    ("network", "protocol", "advice"),
    [
        (Lite0Features, "lite0", "task=statistics features=lite0."),
        (InceptionFeatures, "clean", "task=statistics protocol=clean."),
    ],
)
def test_statistics_of_another_protocol(tmp_path, inception, network, protocol, advice):
    """The sentence names options that there are: protocols are chosen for Inception alone."""
    made = network(str(inception), {"clean": adm}) if network is InceptionFeatures else network(None, 32)
    np.savez(tmp_path / "adm.npz", mu=np.zeros(4), sigma=np.eye(4), protocol="adm")
    sentence = f"its statistics are of protocol adm, not {protocol}; expected a file of {advice}"
    with pytest.raises(InputError, match=re.escape(sentence)):
        StatisticsFile(str(tmp_path / "adm.npz")).prefix(protocol, made)


@pytest.mark.slow
def test_a_folder_of_ones_own(command, inception, photos, tmp_path):
    """Tokenize, statistics, train, evaluate: what the README describes."""
    tiny = ["tokenizer=vqgan_tiny", "num_workers=0"]
    command("task=tokenize", *tiny, f"images={photos}", f"output={tmp_path}/shards", "held_out=0.1")
    few = tmp_path / "few"
    for path in sorted(photos.rglob("*.jpg"))[::5]:
        (few / path.parent.name).mkdir(parents=True, exist_ok=True)
        (few / path.parent.name / path.name).write_bytes(path.read_bytes())
    weights = f"weights={inception}"
    options = ["task=statistics", f"scored.path={few}", f"features.{weights}", "scored.resolution=32"]
    (few / "broken.jpg").write_text("no picture")
    results = command(*options, f"output={tmp_path}/statistics").results
    assert results["num_images"] == 12
    assert len(results["skipped"]) == 1
    assert "broken.jpg: unreadable" in results["skipped"][0]
    with np.load(results["statistics"]) as made:
        assert made["mu"].shape == (2048,)
        assert made["features"].shape == (12, 2048)
        np.testing.assert_allclose(made["mu"], made["features"].mean(0), rtol=1e-5)
        np.testing.assert_allclose(made["sigma"], np.cov(made["features"].T), rtol=1e-3, atol=1e-6)
    experiment = [
        "experiment=photos",
        "data=shards",
        "data.batch_size=16",
        f"data.shards={tmp_path}/shards",
        "metrics=inception",
        f"metrics.evaluation.features.{weights}",
        f"reference.path={results['statistics']}",
        "metrics.evaluation.num_images=10",
        "metrics.evaluation.block_size=10",
        "metrics.evaluation.batch_size=10",
        "score=[fid]",
        "callbacks.generation_metrics=null",
        "metrics.untrained=true",
    ]
    trained = command(
        *experiment, "trainer.max_steps=2", "trainer.val_check_interval=2", f"output={tmp_path}/run"
    ).results
    untrained = trained["compared_with"]["untrained network"]["enat"]
    assert trained["fid"] > 1e-3
    assert trained["fid"] != pytest.approx(untrained["fid"], rel=1e-3)
    checkpoint = trained["checkpoint"]
    scored = command(*experiment, "task=evaluate", f"weights={checkpoint}", f"output={tmp_path}/e").results
    assert scored["fid"] == trained["fid"]


def test_statistics_keep_two_features_or_none(command, inception, tmp_path):
    """One alone would be refused when scores are computed; the last image is one of the two, and can't be read."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    (images / "3.png").write_text("no picture")
    made = ["task=statistics", f"features.weights={inception}", f"scored.path={images}", "scored.num_workers=0"]
    made += ["scored.resolution=8", "protocol=[adm,clean]", f"output={tmp_path}/statistics"]
    refused = command(*made, "max_features=1")
    assert "max_features=1: expected 0 or a value greater than or equal to 2." in refused.err
    done = command(*made, "max_features=2")
    assert "max_features=2: fewer than two of these images can be read, so that the file has no features" in done.out
    with np.load(done.results["statistics"]) as content:
        assert not [name for name in content.files if name.endswith("features")]


def test_results_of_other_images_are_not_replaced(command, inception, photos, tmp_path):
    """The folder or the file has the same name; what it holds has not."""
    rng = np.random.default_rng(0)
    made = ["task=statistics", f"features.weights={inception}", "protocol=[adm]", "sfid=false"]
    options = [*made, "scored=npz", f"scored.path={tmp_path}/images.npz", f"output={tmp_path}/statistics"]
    np.savez(tmp_path / "images.npz", rng.integers(0, 256, (4, 8, 8, 3), np.uint8))
    statistics = command(*options).results["statistics"]
    before = Path(statistics).read_bytes()
    assert command(*options).status == 0  # the same images
    np.savez(tmp_path / "images.npz", rng.integers(0, 256, (4, 8, 8, 3), np.uint8))
    refused = command(*options)
    assert "the folder holds results of other images or files (images.sha256: " in refused.err
    assert Path(statistics).read_bytes() == before
    assert command(*options[:-1], f"output={tmp_path}/others").status == 0
    score = ["task=score", "metrics=inception", f"metrics.evaluation.features.weights={inception}", "score=[fid]"]
    score += ["protocol=[adm]", f"reference.path={statistics}", "scored=npz", f"output={tmp_path}/scores"]
    score.append(f"scored.path={tmp_path}/images.npz")
    assert command(*score).status == 0
    Path(statistics).write_bytes(Path(f"{tmp_path}/others/statistics.npz").read_bytes())
    refused = command(*score)
    assert "the folder holds results of other images or files (reference.sha256: " in refused.err


def test_sizes_are_compared_with_the_first_block(command, inception, photos, tmp_path, monkeypatch):
    """Not after all features have been computed."""
    features = f"metrics.evaluation.features.weights={inception}"
    made = ["task=statistics", f"features.weights={inception}", f"scored.path={photos}", "scored.resolution=16"]
    assert command(*made, "scored.num_workers=0", f"output={tmp_path}/st").status == 0
    seen = []
    forward = InceptionFeatures.forward
    monkeypatch.setattr(InceptionFeatures, "forward", lambda self, x: seen.append(len(x)) or forward(self, x))
    run = ["task=score", "metrics=inception", features, f"scored.path={photos}", "score=[fid]", "scored.num_workers=0"]
    sized = ["metrics.evaluation.block_size=10", "scored.resolution=32", f"output={tmp_path}/scores"]
    outcome = command(*run, f"reference.path={tmp_path}/st/statistics.npz", *sized)
    assert outcome.status == 1
    assert "the images are 32x32, those of the reference 16x16" in outcome.err
    assert "scored.resolution=N" in outcome.err
    assert seen == [10]  # of 60


AMONG_IMAGES = {
    "a tokenizer": (["experiment=tokenizer", "data.images={}"], "data.images", "output"),
    "stages": (["experiment=from_images", "images={}"], "images", "output"),
    "shards": (["task=tokenize", "tokenizer=vqgan_tiny", "images={}"], "images", "output"),
    "scores": (["task=score", "metrics=inception", "scored.path={}"], "scored.path", "output"),
    "a reference": (
        ["task=score", "metrics=inception", "reference=images", "scored.path=other", "reference.path={}"],
        "reference.path",
        "output",
    ),
    "statistics": (["task=statistics", "scored.path={}"], "scored.path", "output"),
    "edits": (["task=edit", "experiment=digits", "image=[other,{}]"], "image", "output"),
    "neighbours": (
        ["task=neighbours", "experiment=digits", "metrics=lite0", "metrics.images={}"],
        "metrics.images",
        "",
    ),
    "jobs": (["-m", "experiment=tokenizer", "data.images={}", "seed=1,2"], "data.images", "hydra.sweep.dir"),
}


@pytest.mark.parametrize("kind", AMONG_IMAGES)
def test_output_among_the_images_is_refused(command, photos, tmp_path, kind):
    """Its pictures would count as images when the same command goes on, and its folder as one of a class."""
    options, named, place = AMONG_IMAGES[kind]
    images = shutil.copytree(photos, tmp_path / "images")
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(images)
    refused = command(*(option.format(images) for option in options), f"output={tmp_path}/link/outputs/run")
    assert refused.status == 1
    assert f"{named}={images}: {place}" in refused.err
    assert "would lie inside this folder of images" in refused.err
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_images_that_a_task_does_not_read_may_hold_its_output(compose_config, tmp_path):
    """Nor does output beside the images, as of scores of the pictures of a run, or among shards, count as inside."""
    (tmp_path / "run/images").mkdir(parents=True)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/manifest.json").touch()
    for options in (
        ["task=sample", "metrics=lite0", f"metrics.images={tmp_path}", f"output={tmp_path}/outputs"],
        ["task=score", "metrics=inception", f"scored.path={tmp_path}/run/images", f"output={tmp_path}/run/score"],
        ["task=tokenize", f"images={tmp_path}/run/images", f"output={tmp_path}/run/images-shards"],
        ["task=score", "scored=shards", f"scored.path={tmp_path}/shards", f"output={tmp_path}/shards/score"],
    ):
        config = compose_config(*options)
        with open_dict(config):
            config.hydra = {"mode": RunMode.RUN}
        refuse_output_among_images(config)
