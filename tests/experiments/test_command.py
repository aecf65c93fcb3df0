"""The command `enat`: what it draws and scores is what the library and the tasks do, and bad input is one sentence."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import enat
from enat.errors import InputError
from enat.images import read_facts
from experiments.command import page, sample
from experiments.command.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
START = "import sys; from experiments.command.main import main; sys.exit(main())"


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save(tmp_path / "folder")
    return tmp_path / "folder"


@pytest.mark.parametrize(
    ("images", "reference", "sentence"),
    [
        ("small", "large", "the images are 8x8, those of the reference 9x9; expected the same size. --resolution SIDE"),
        (
            "both",
            "large",
            "both/9.png: of another size (8x8 and 9x9); expected images of one size, or --resolution SIDE",
        ),
        ("none", "large", "none: there is no such folder; expected one of images, or an .npz file of them."),
        ("one", "large", "one: found 1 image; expected at least 2."),
        ("small", "one", "--reference one: found 1 image; expected at least 2."),
    ],
)
def test_scores_refuse_in_the_words_of_the_command(capsys, monkeypatch, tmp_path, images, reference, sentence):
    monkeypatch.chdir(tmp_path)
    for folder, sides in {"small": [8, 8], "large": [9, 9], "both": [8, 9], "one": [9]}.items():
        Path(folder).mkdir()
        for number, side in enumerate(sides):
            Image.new("RGB", (side, side)).save(f"{folder}/{side if folder == 'both' else number}.png")
    assert main(["score", images, "--reference", reference, "--features", "lite0"]) == 2
    err = capsys.readouterr().err
    assert f"enat: error: {sentence}" in err
    assert not re.search(r"\w=", err)


def test_images_are_those_of_the_library_with_their_settings_inside(folder, tmp_path, capsys):
    given = ["--classes", "bee", "4", "unconditional", "--images-per-class", "2", "--seed", "7"]
    assert main(["sample", str(folder), *given, "--output", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out == f"6 images in {tmp_path / 'x'}\n"
    model = enat.load(folder)
    expected = model.generate(["bee", "emu", "unconditional"], images_per_class=2, seed=7)
    names = [f"class_{label}_seed_7_000{number}.png" for label in ("0001_bee", "0004_emu", "0005_unconditional")
             for number in (0, 1)]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == names
    for name, image in zip(names, expected, strict=True):
        assert Image.open(tmp_path / "x" / name).tobytes() == image.tobytes()
    facts = read_facts(tmp_path / "x" / names[3])
    assert (facts["class"], facts["number"], facts["seed"]) == ("emu", 1, 7)
    assert facts["model_sha256"] == json.loads((folder / "config.json").read_text())["files"]["model.safetensors"]
    # What stands in an image is all that it takes to draw it again.
    sampler = {name: facts["sampler"][name] for name in ("num_steps", "guidance_scale")}
    again = enat.load(folder).with_sampler(**sampler).generate(facts["class"], facts["number"] + 1, facts["seed"])
    assert again[-1].tobytes() == expected[3].tobytes()


def test_the_sampler_of_the_command_line(folder, tmp_path):
    more = ["--steps", "5", "--guidance", "0.5", "--classes", "ant"]
    assert main(["sample", str(folder), *more, "--output", str(tmp_path / "x")]) == 0
    (path,) = (tmp_path / "x").iterdir()
    expected = enat.load(folder).with_sampler(num_steps=5, guidance_scale=0.5).generate("ant")
    assert Image.open(path).tobytes() == expected[0].tobytes()
    assert (read_facts(path)["sampler"]["num_steps"], read_facts(path)["sampler"]["guidance_scale"]) == (5, 0.5)


def test_a_page_takes_a_tokenizer(folder, tmp_path, monkeypatch):
    """The command that the page shows has it, too; without it, the page can't be opened."""
    expected = enat.load(folder).generate("ant")[0].tobytes()
    served = []
    monkeypatch.setattr(page, "serve", lambda model, *arguments: served.append((model, arguments)))
    tokenizer = tmp_path / "a tokenizer.safetensors"
    shutil.move(folder / "tokenizer.safetensors", tokenizer)
    assert main(["page", str(folder)]) == 2
    assert main(["page", str(folder), "--tokenizer", str(tokenizer), "--port", "0"]) == 0
    ((model, arguments),) = served
    assert arguments == (f"weights={folder} 'tokenizer.weights={tokenizer}'", "127.0.0.1", 0)
    assert model.generate("ant")[0].tobytes() == expected


def test_a_stopped_command_goes_on(folder, tmp_path, monkeypatch, capsys):
    """Images are written as they are drawn; those that are there are not drawn again."""
    given = ["sample", str(folder), "--classes", "bee", "--images-per-class", "20", "--steps", "2", "--output"]
    assert main([*given, str(tmp_path / "at_once")]) == 0
    calls = []

    def stop(done, total):
        calls.append((done, total))
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sample, "_show_progress", stop)
    assert main([*given, str(tmp_path / "x")]) == 130
    assert len(list((tmp_path / "x").iterdir())) == 16
    monkeypatch.setattr(sample, "_show_progress", lambda done, total: calls.append((done, total)))
    calls.clear()
    for expected in ([(0, 2), (1, 2), (2, 2)], [(0, 0)]):
        assert main([*given, str(tmp_path / "x")]) == 0
        assert calls == expected
        calls.clear()
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("at_once", "x")
    )
    assert first == second


def test_the_home_folder(folder, tmp_path, monkeypatch):
    """A shell leaves `~` as it is after a dash and a name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["sample", str(folder), "--classes", "bee", "--steps", "1", "--output=~/x"]) == 0
    assert len(list((tmp_path / "home" / "x").iterdir())) == 1
    assert not Path("~").exists()


def test_the_order_of_arguments_is_shown(capsys):
    """An option that takes several words takes what comes after it."""
    with pytest.raises(SystemExit):
        main(["sample", "--classes", "bee", "FOLDER"])
    assert "usage: enat sample FOLDER [OPTION ...]\n" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["weights", "protocol"])
def test_options_of_inception_are_refused_with_lite0(option, tmp_path, capsys):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    given = [str(tmp_path), "--reference", str(tmp_path), "--features", "lite0", f"--{option}", "clean"]
    assert main(["score", *given]) == 2
    assert f"--{option} is for --features inception; expected lite0 without it." in capsys.readouterr().err


def test_the_page_of_an_official_file_names_its_experiment(folder, monkeypatch):
    """Without it, the command that the page shows is refused."""
    served = []
    model = enat.load(folder)
    model.description["weights_kind"] = "official"
    monkeypatch.setattr(enat, "load", lambda *_: model)
    monkeypatch.setattr(page, "serve", lambda model, given, *_: served.append(given))
    for encoder_depth, num_tokens in ((22, 256), (22, 1024), (15, 256)):
        model.net.encoder_depth, model.net.num_tokens = encoder_depth, num_tokens
        assert main(["page", "FILE", "--tokenizer", "VQGAN"]) == 0
    experiments = [given.split()[0] for given in served]
    assert experiments == ["experiment=enat_l_256", "experiment=enat_l_512", "experiment=enat_b_256"]


def test_a_port_in_use_is_told_in_the_words_of_the_command(folder, monkeypatch, capsys):
    def serve(*_):
        raise InputError("port=7860: can't be used on 127.0.0.1; expected another port.")

    monkeypatch.setattr(page, "serve", serve)
    assert main(["page", str(folder)]) == 2
    assert "enat: error: --port 7860: can't be used" in capsys.readouterr().err


def test_edits_are_written_class_by_class(folder, picture, tmp_path, monkeypatch):
    given = ["edit", str(folder), str(picture), "--classes", "bee", "ant", "--output", str(tmp_path / "x")]
    drawn = []
    own = enat.pipeline.Pipeline.edit

    def draw(model, image, class_id, *rest, **options):
        drawn.append(class_id)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return own(model, image, class_id, *rest, **options)

    monkeypatch.setattr(enat.pipeline.Pipeline, "edit", draw)
    assert main(given) == 130
    assert len(list((tmp_path / "x").iterdir())) == 1
    assert main(given) == 0
    assert drawn == [1, 0, 0]


def test_a_folder_that_cannot_be_made_is_told_before_the_work(folder, picture, tmp_path, monkeypatch, capsys):
    (tmp_path / "x").touch()
    monkeypatch.setattr("enat.generation.sample_images", lambda *_: pytest.fail("drawn for nothing"))
    monkeypatch.setattr(enat.pipeline.Pipeline, "edit", lambda *_, **__: pytest.fail("drawn for nothing"))
    for command in (["sample", str(folder)], ["edit", str(folder), str(picture)]):
        assert main([*command, "--output", str(tmp_path / "x")]) == 2
        assert "x: File exists." in capsys.readouterr().err


def test_files_are_never_replaced_by_others(folder, tmp_path, capsys):
    draw = ["sample", str(folder), "--classes", "ant", "--output", str(tmp_path / "x")]
    assert main(draw) == main(draw) == 0  # the same again
    (path,) = (tmp_path / "x").iterdir()
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*draw, "--steps", "2"]) == 2
    assert "this file exists and is of other settings; expected another --output DIR." in capsys.readouterr().err
    assert path.read_bytes() == before
    path.write_text("a user's file")
    assert main(draw) == 2
    assert path.read_text() == "a user's file"


@pytest.mark.parametrize("number", ["50001", "1000000000000"])
def test_more_images_than_a_command_draws(folder, picture, tmp_path, capsys, number):
    classes = ["--classes", "ant", "bee", "--output", str(tmp_path / "many")]
    images = f"with 2 classes, these are {2 * int(number):,} images; expected at most 100,000 in a command."
    assert main(["sample", str(folder), "--images-per-class", number, *classes]) == 2
    assert f"--images-per-class {number}: {images}" in capsys.readouterr().err
    assert main(["edit", str(folder), str(picture), "--results", number, *classes]) == 2
    assert f"--results {number}: {images}" in capsys.readouterr().err
    assert not (tmp_path / "many").exists()


@pytest.fixture
def picture(folder, tmp_path):
    """An image file of the size of the network's images."""
    enat.load(folder).generate("cat", seed=2)[0].save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


EDITS = {
    "a box": (["--box", "0", "0", "0.5", "1"], {"region": (0, 0, 0.5, 1)}),
    "a mask": (["--mask", "MASK", "--soft-blend", "0"], {"region": "MASK", "soft_blend": 0}),
    "a smaller image": (["--scale", "0.5"], {"scale": 0.5}),
    "variations": (["--keep", "0.5", "--results", "3"], {"keep": 0.5, "results_per_class": 3}),
}


@pytest.mark.parametrize("kind", EDITS)
def test_edits_are_those_of_the_library_with_their_settings_inside(folder, picture, tmp_path, kind, capsys):
    arguments, options = EDITS[kind]
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 4))
    mask.save(tmp_path / "mask.png")
    arguments = [str(tmp_path / "mask.png") if argument == "MASK" else argument for argument in arguments]
    options = {name: mask if value == "MASK" else value for name, value in options.items()}
    edit = ["edit", str(folder), str(picture), "--classes", "bee", "0", "--seed", "7"]
    assert main([*edit, *arguments, "--output", str(tmp_path / "x")]) == 0
    expected = enat.load(folder).edit(Image.open(picture), ["bee", 0], seed=7, **options)
    assert capsys.readouterr().out == f"{len(expected)} images in {tmp_path / 'x'}\n"
    each = len(expected) // 2
    names = [f"picture_class_{label}_seed_7_000{number}.png" for label in ("0001_bee", "0000_ant")
             for number in range(each)]  # fmt: skip
    assert {path.name for path in (tmp_path / "x").iterdir()} == set(names)
    for name, image in zip(names, expected, strict=True):
        assert Image.open(tmp_path / "x" / name).tobytes() == image.tobytes()
    facts = read_facts(tmp_path / "x" / names[-1])
    assert (facts["class"], facts["number"], facts["seed"]) == ("ant", each - 1, 7)
    assert facts["edit"]["keep"] == options.get("keep", 0)
    assert (facts["edit"]["mask_sha256"] is not None) == (kind == "a mask")
    # Of another image, the results are others, and do not replace these.
    Image.new("RGB", (8, 8)).save(picture)
    assert main([*edit, *arguments, "--output", str(tmp_path / "x")]) == 2
    assert "of other settings; expected another --output DIR." in capsys.readouterr().err


WRONG = {
    "a class": (["sample", "FOLDER", "--classes", "bees"], "--classes bees: expected class ids from 0 to 4"),
    "an id": (["sample", "FOLDER", "--classes", "9"], "--classes 9: expected class ids from 0 to 4"),
    "a folder": (["sample", "/none/at/all"], "weights=/none/at/all: there is no such file."),
    "guidance": (
        ["sample", "FOLDER", "--guidance", "-1"],
        "--guidance -1.0: Input should be greater than or",
    ),
    "nan": (["sample", "FOLDER", "--guidance", "nan"], "--guidance nan: Input should be a finite number"),
    "a count": (["sample", "FOLDER", "--images-per-class", "0"], "0: expected an integer of at least 1"),
    "a seed": (["sample", "FOLDER", "--seed", "-5"], "expected"),
    "a device": (["sample", "FOLDER", "--device", "toaster"], "toaster"),
    "a command": (["paint"], "invalid choice: 'paint'"),
    "nothing": ([], "the following arguments are required: COMMAND"),
    "an output": (["sample", "FOLDER", "--output", "/dev/null/x"], "/dev/null/x"),
    "no image": (
        ["edit", "FOLDER", "/none.png"],
        "/none.png: unreadable: No such file or directory; expected an image.",
    ),
    "a folder as an image": (["edit", "FOLDER", "/"], "/: unreadable: Is a directory; expected an image."),
    "no picture": (["edit", "FOLDER", __file__], "test_command.py: unreadable"),
    "an empty box": (["edit", "FOLDER", "IMAGE", "--box", "1", "0", "0", "1"], "--box [1.0, 0.0, 0.0, 1.0]: expected"),
    "a large box": (["edit", "FOLDER", "IMAGE", "--box", "0", "0", "9", "1"], "9: expected a number from 0 to 1"),
    "nan in a box": (["edit", "FOLDER", "IMAGE", "--keep", "nan"], "nan: expected a number from 0 to 1"),
    "two regions": (["edit", "FOLDER", "IMAGE", "--mask", "x", "--scale", "0.5"], "not allowed with argument"),
    "a black mask": (["edit", "FOLDER", "IMAGE", "--mask", "IMAGE"], "--mask: nothing in the mask is white"),
    "no scale": (["edit", "FOLDER", "IMAGE", "--scale", "0"], "--scale 0.0"),
    "a huge border": (["edit", "FOLDER", "IMAGE", "--soft-blend", "99999"], "expected an integer from 0 to 1024"),
    "a port": (["page", "FOLDER", "--port", "99999"], "99999: expected an integer from 0 to 65535"),
    "a page of no weights": (["page", "/none/at/all"], "weights=/none/at/all: there is no such file."),
    "a scale that is too large": (
        ["edit", "FOLDER", "IMAGE", "--scale", "0.99"],
        "--scale 0.99: this leaves no pixel of 8 around the image; expected 0.875 or less.",
    ),
    "a mask of another shape": (
        ["edit", "FOLDER", "IMAGE", "--mask", "WIDE"],
        "--mask: the mask has 40 x 8 pixels and the image 8 x 8; expected the same ratio",
    ),
    "a tokenizer": (["sample", "FOLDER", "--tokenizer", "/none"], "--tokenizer /none: "),
    "an image as statistics": (
        ["score", "IMAGES", "--reference", "IMAGE", "--features", "lite0"],
        "enat: error: --reference /",
    ),
    "no Inception": (
        ["score", "IMAGES", "--reference", "IMAGES", "--weights", "/none.pth"],
        "--weights /none.pth: there is no such file.",
    ),
    "images": (
        ["score", "/none", "--reference", "FOLDER"],
        "/none: there is no such folder; expected one of images, or an .npz file",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_bad_input_is_a_sentence(folder, tmp_path, capsys, kind):
    arguments, sentence = WRONG[kind]
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    Image.new("RGB", (40, 8)).save(tmp_path / "wide.png")
    places = {"FOLDER": str(folder), "IMAGE": str(tmp_path / "black.png"), "WIDE": str(tmp_path / "wide.png")}
    places["IMAGES"] = str(tmp_path)
    try:
        status = main([places.get(argument, argument) for argument in arguments])
    except SystemExit as leaving:  # of argparse
        status = leaving.code
    printed = capsys.readouterr().err
    assert status == 2
    assert sentence in printed
    assert "Traceback" not in printed
    assert printed.strip().splitlines()[-1].startswith("enat")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_in_plain_words(name):
    printed = subprocess.run([sys.executable, "-c", START, name, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert printed.returncode == 0
    assert "--" in printed.stdout
    assert "HELP" not in printed.stdout


def test_scores_are_those_of_the_task(command, photos, inception, tmp_path, capsys):
    paths = sorted(photos.rglob("*.png")) or sorted(photos.rglob("*.jpg"))
    for number, path in enumerate(paths):
        side = tmp_path / ("images" if number % 2 else "real")
        side.mkdir(exist_ok=True)
        shutil.copy(path, side / path.name.replace(".", f"_{number}."))
    images, real = str(tmp_path / "images"), str(tmp_path / "real")
    features = ["metrics=inception", f"metrics.evaluation.features.weights={inception}", "protocol=[adm]"]
    scored = ["scored.path=" + images, "scored.resolution=32", "scored.num_workers=0"]
    reference = ["reference=images", f"reference.path={real}", "reference.resolution=32", "reference.num_workers=0"]
    task = command("task=score", *features, *scored, *reference, f"output={tmp_path / 'score'}")
    assert task.status == 0, task.err
    capsys.readouterr()
    given = ["--reference", real, "--weights", str(inception), "--protocol", "adm", "--resolution", "32"]
    assert main(["score", images, *given]) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed["scores"] == task.results["scores"]
    assert {"fid", "inception_score", "sfid", "kid", "precision", "recall"} <= printed["scores"]["adm"].keys()
    assert printed["images_sha256"] == task.results["images"]["sha256"]
    assert np.isfinite(printed["scores"]["adm"]["fid"])
    assert main(["score", images, *given[2:], "--reference", str(tmp_path / "none")]) == 2


def test_an_operation_that_apple_gpus_lack(folder, tmp_path, capsys, monkeypatch):
    def lacking(*_, **__):
        raise NotImplementedError("The operator 'aten::x' is not currently implemented for the MPS device. If you want")

    monkeypatch.setattr(enat, "load", lacking)
    assert main(["sample", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "for the MPS device; expected --device cpu, or PYTORCH_ENABLE_MPS_FALLBACK=1." in capsys.readouterr().err


def test_one_image_is_told_of_as_one(folder, tmp_path, capsys):
    assert main(["sample", str(folder), "--classes", "bee", "--output", str(tmp_path / "x")]) == 0
    assert f"1 image in {tmp_path / 'x'}" in capsys.readouterr().out
