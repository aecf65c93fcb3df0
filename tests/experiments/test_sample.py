"""task=sample: each image by itself, in bounded memory, resumable, and never mixed with others in its folder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import experiments.sample as task
from callbacks.sample_grid import save_grid
from data.toy.digits import DigitFeatures, classify_digits
from enat.checkpoints.weights import read_file
from enat.images import file_name
from enat.tokenizers.pixels import PixelTokenizer


@pytest.fixture(scope="module")
def weights(separate_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert separate_command("experiment=debug", "metrics=none", f"output={folder}").status == 0
    return f"weights={folder}/checkpoints/last.ckpt"


def contents(folder: Path) -> dict[str, bytes]:
    """Whole images by name; a process that was killed while it wrote one may leave a part besides."""
    return {path.name: np.asarray(Image.open(path)).tobytes() for path in (folder / "images").glob("*.png")}


def test_an_image_depends_on_seed_class_and_number_alone(command, weights, tmp_path):
    draw = ["task=sample", weights]
    command(*draw, "classes=[3,7]", "images_per_class=3", "batch_size=4", f"output={tmp_path}/a")
    command(*draw, "classes=[7]", "images_per_class=5", "batch_size=1", f"output={tmp_path}/b")
    several, alone = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert (len(several), len(alone)) == (6, 5)
    common = several.keys() & alone.keys()
    assert len(common) == 3
    assert all(several[name] == alone[name] for name in common)
    assert len(set(several.values()) | set(alone.values())) == 8
    command(*draw, "classes=[7]", "images_per_class=1", "seed=1", f"output={tmp_path}/c")
    assert not set(contents(tmp_path / "c").values()) & set(alone.values())


def test_no_more_than_a_batch_is_in_memory(command, weights, tmp_path, monkeypatch):
    drawn = []

    def counted(net, sampler, tokenizer, wanted, *rest):
        drawn.append(len(wanted))
        return original(net, sampler, tokenizer, wanted, *rest)

    original = task.sample_images
    monkeypatch.setattr(task, "sample_images", counted)
    results = command("task=sample", weights, "batch_size=7", f"output={tmp_path}/a").results
    assert results["num_images"] == 80
    assert drawn == [7] * 11 + [3] + [7, 3]  # the last are drawn again for the steps in which they appear


@pytest.mark.parametrize("ranks", [1, 2])
def test_stopped_and_started_again(command, killed, separate_command, weights, tmp_path, ranks):
    options = ["task=sample", weights, "images_per_class=2", "batch_size=3"]
    killed(*options, f"output={tmp_path}/a", at="experiments.sample:write_atomically", number=5, ranks=ranks)
    first = contents(tmp_path / "a")
    assert 4 <= len(first) < 20
    again = separate_command(*options, f"output={tmp_path}/a", ranks=ranks)
    assert f"{len(first)} of 20 images are there already" in again.err
    command(*options, f"output={tmp_path}/b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for picture in ("grid.png", "reveal.png"):
        assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()


def test_images_are_never_mixed_with_others(command, killed, weights, tmp_path):
    options = ["task=sample", weights, "classes=[1,2]", "images_per_class=2"]
    killed(*options, f"output={tmp_path}/a", at="experiments.sample:write_atomically", number=3)
    before = contents(tmp_path / "a")
    content = read_file(weights.removeprefix("weights="))
    content["callbacks"]["EMA"]["net"]["head_bias"] += 1
    torch.save(content, tmp_path / "other.ckpt")
    for other, sentence in {
        "sampler.num_steps=7": "sampler.num_steps: 3 before, 7 now",
        f"weights={tmp_path}/other.ckpt": "weights_sha256: ",
    }.items():
        arguments = [*options, other] if "weights" not in other else ["task=sample", other, *options[2:]]
        refused = command(*arguments, f"output={tmp_path}/a")
        assert (refused.status, sentence in refused.err) == (1, True), refused.err
    (tmp_path / "a" / "images" / "holiday.png").write_text("a user's file")
    refused = command(*options, f"output={tmp_path}/a")
    assert "holiday.png: the folder holds other files; expected another output=DIR." in refused.err
    (tmp_path / "a" / "images" / "holiday.png").unlink()
    assert contents(tmp_path / "a") == before
    (tmp_path / "a" / "images" / ".DS_Store").write_text("of macOS, once a user has looked at the folder")
    (tmp_path / "a" / "images" / "class_0001_seed_0_0000.png.7.partial").write_text("left by a killed process")
    done = command(*options, f"output={tmp_path}/a").results
    assert len(contents(tmp_path / "a")) == 4
    assert done["sampler"]["num_steps"] == 3
    (tmp_path / "a" / "results.json").unlink()
    refused = command(*options, f"output={tmp_path}/a")
    assert "holds images of unknown settings; expected another output=DIR." in refused.err


def test_pictures_of_another_tokenizer_are_not_kept(command, weights, tmp_path, monkeypatch):
    options = ["task=sample", weights, "classes=[1]", f"output={tmp_path}"]
    assert command(*options).status == 0
    assert command(*options).status == 0
    monkeypatch.setattr(PixelTokenizer, "fingerprint", lambda *_: "another")
    refused = command(*options)
    assert refused.status == 1
    assert "the folder holds images of another tokenizer (tokenizer_sha256: " in refused.err


def test_exported_weights_are_still_an_average(command, weights, tmp_path):
    assert command("task=export", weights, f"output={tmp_path}/export").status == 0
    exported = f"weights={tmp_path}/export"
    drawn = command("task=sample", exported, "classes=[1]", f"output={tmp_path}/samples")
    assert drawn.results["kind"] == "EMA"
    command("task=export", weights, "sampler.num_steps=2", f"output={tmp_path}/other")  # a sampler found later
    drawn = command("task=sample", f"weights={tmp_path}/other/model.safetensors", f"output={tmp_path}/others")
    assert drawn.results["sampler"]["num_steps"] == 2


def test_classes_that_are_named_twice(command, weights, tmp_path):
    refused = command("task=sample", weights, "classes=[3,3]", f"output={tmp_path}/a")
    assert "classes=[3, 3]: a class is named twice; images_per_class=N draws more" in refused.err


def test_a_class_that_is_named_null(capsys):
    """`null` is all classes, and that is said where it could be meant as a name."""
    assert task.choose_classes(None, ["cat", "dog"]) == [0, 1]
    assert task.choose_classes(["null"], ["cat", "null"]) == [1]
    assert capsys.readouterr().out == ""
    assert task.choose_classes(None, ["cat", "null"]) == [0, 1]
    assert (
        "classes=null stands for all classes; 'classes=[\"null\"]' is the one of this name." in capsys.readouterr().out
    )


def test_images_of_no_class(command, weights, tmp_path):
    results = command("task=sample", weights, "classes=unconditional", "images_per_class=2", f"output={tmp_path}/a")
    assert results.results["classes"] == ["unconditional"]
    assert {path.name for path in (tmp_path / "a" / "images").iterdir()} == {
        f"class_0010_unconditional_seed_0_000{number}.png" for number in (0, 1)
    }


def test_any_name_can_be_drawn(tmp_path):
    """Names with a dollar sign are no formulas, and the bytes of another encoding no text."""
    names = ["cash_$1_$", "x$^$", b"caf\xe9".decode("utf-8", "surrogateescape"), "plain"]
    picture = save_grid(torch.zeros(8, 1, 8, 8), names, tmp_path / "grid.png")
    assert np.asarray(Image.open(picture)).std() > 10


@pytest.mark.parametrize("name", ["x" * 250, "長" * 80])
def test_a_long_class_name_fits_a_file_name(name):
    file = file_name((1, 7), ["a", name], 3)
    assert file.startswith(f"class_0001_{name[0] * 33}")
    assert file.endswith("_seed_3_0007.png")
    assert len(file.encode()) < 200


def test_images_of_another_run_among_those_that_are_there(command, weights, tmp_path):
    draw = ["task=sample", weights, "classes=[3]", "images_per_class=2", f"output={tmp_path}/a"]
    command(*draw)
    first, second = sorted((tmp_path / "a" / "images").iterdir())
    first.unlink()
    Image.new("RGB", (9, 9)).save(second)
    refused = command(*draw)
    assert "its images have several sizes, so that some are of another run." in refused.err


def test_drawn_digits_are_scored_as_files(command, weights, photos, tmp_path):
    """Grey pictures, which are read as RGB, have the features of the pictures themselves."""
    command("task=sample", weights, "images_per_class=2", f"output={tmp_path}/s")
    score = ["task=score", "metrics=digits", f"output={tmp_path}/score"]
    scored = command(*score, f"scored.path={tmp_path}/s/images")
    assert (scored.status, scored.results["num_images"]) == (0, 20)
    assert scored.results["fid"] > 1
    grey = torch.rand(3, 1, 8, 8)
    features = DigitFeatures()
    as_rgb = features(grey.expand(-1, 3, -1, -1))["digits"]["pool"]
    torch.testing.assert_close(as_rgb, features(grey)["digits"]["pool"], rtol=0, atol=1e-12)
    assert torch.equal(classify_digits(grey.expand(-1, 3, -1, -1)), classify_digits(grey))
    refused = command(*score, f"scored.path={photos}", "scored.resolution=9", f"output={tmp_path}/other")
    assert "metrics=digits: expected images of 8 x 8 pixels, these have 9 x 9" in refused.err
