"""task=edit with the weights of the repository."""

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks.sample_grid import shortened
from data.images import load_rgb
from data.toy.digits import classify_digits, digit_images, digit_labels
from enat.editing import box_region, draw_anew, tokens_under
from enat.images import center_crop, square_pixels
from enat.pipeline import load
from enat.tokenizers.base import Tokenizer
from experiments.command.main import main
from experiments.edit import MAX_COLUMNS, name_images, result_files

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two images of 64 x 48 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, colour in {"red": (220, 30, 30), "blue (2)": (20, 60, 200)}.items():
        pixels = np.full((48, 64, 3), 255, dtype=np.uint8)
        pixels[8:40, 16:48] = colour
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def edit(command, tmp_path):
    """Runs the task with eight steps in a folder; returns what it gave, and the images."""

    def call(*options, output="edit"):
        folder = tmp_path / output
        outcome = command("task=edit", f"weights={EMOJI}", "sampler.num_steps=4", f"output={folder}", *options)
        return outcome, {file.stem: np.asarray(Image.open(file)) for file in (folder / "images").glob("*.png")}

    return call


def test_the_other_half_of_several_images(edit, pictures):
    """With a hard blend, the half that is kept has the pixels of the image; each result has another half beside it."""
    half = ["region.box=[0.5,0,1,1]", "soft_blend=0"]
    outcome, edited = edit(f"image={pictures}", *half, "classes=[flag,face]", "results_per_image=2")
    results = outcome.results
    assert results["num_images"] == len(edited) == 2 * 2 * 2
    assert (results["tokens_drawn"], results["tokens_kept"]) == (32, 32)
    assert results["cost"]["gflop"] < results["cost"]["gflop_without_reuse"] < results["cost"]["gflop_nat"]
    assert Path(results["strip"]).exists()
    for name in ("red", "blue (2)"):
        own = [pixels for file, pixels in edited.items() if file.startswith(name)]
        before = np.asarray(center_crop(load_rgb(pictures / f"{name}.png"), 32))
        assert all(np.array_equal(pixels[:, :16], before[:, :16]) for pixels in own)
        assert len({pixels[:, 16:].tobytes() for pixels in own}) == 4
    _, alone = edit(f"image='{pictures / 'red.png'}'", *half, "classes=face", "results_per_image=1", output="alone")
    assert np.array_equal(alone["red_class_0001_face_seed_0_0000"], edited["red_class_0001_face_seed_0_0000"])


def test_what_is_no_image_in_a_folder_is_named(edit, pictures, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "lost.png").symlink_to("nowhere.png")
    (folder / "notes.txt").touch()
    reasons = [f"{folder}/lost.png: a link to a file that does not exist", f"{folder}: files .txt are no images: 1"]
    outcome, edited = edit(f"image={folder}")
    assert (outcome.status, edited) == (1, {})
    assert f"or a folder of images; {'; '.join(reasons)}." in outcome.err
    (folder / "red.png").symlink_to(pictures / "red.png")
    outcome, edited = edit(f"image={folder}", "results_per_image=1")
    assert outcome.results["skipped"] == reasons
    assert all(f"Skipped {reason}\n" in outcome.out for reason in reasons)
    assert len(edited) == 1
    damaged = folder / "damaged.png"
    damaged.write_bytes((pictures / "red.png").read_bytes()[:100])
    outcome, edited = edit(f"image={folder}", "results_per_image=1", output="another")
    assert len(edited) == outcome.results["num_images"] == 1
    (reason,) = set(outcome.results["skipped"]) - set(reasons)
    assert reason.startswith(f"{damaged}: unreadable: ")
    assert f"Skipped {reason}\n" in outcome.out
    assert list(outcome.results["inputs_sha256"]) == ["image red"]
    outcome, edited = edit(f"image=[{damaged},{folder}]", output="named")
    assert (outcome.status, edited) == (1, {})
    assert f"{damaged}: unreadable: " in outcome.err


def test_images_are_read_when_they_are_edited(edit, pictures, monkeypatch):
    """All of a large folder, or all results of an image, would fill the memory."""
    read = []
    monkeypatch.setattr(
        "experiments.edit.square_pixels", lambda *parts: read.append(len(read)) or square_pixels(*parts)
    )
    written = []
    monkeypatch.setattr("experiments.edit.write_atomically", lambda path, _: written.append((path, len(read))))
    saved = []
    monkeypatch.setattr("experiments.edit.save_grid", lambda *parts: saved.append(parts[0]) or parts[2])
    edit(f"image={pictures}", "results_per_image=12", "batch_size=5")
    assert [count for _, count in written] == [1] * 12 + [2] * 12
    assert saved[0].shape[0] == 2 * MAX_COLUMNS


def test_results_of_another_tokenizer_are_not_kept(edit, pictures, monkeypatch):
    options = [f"image={pictures / 'red.png'}", "results_per_image=1"]
    assert edit(*options)[0].status == 0
    monkeypatch.setattr(Tokenizer, "fingerprint", lambda *_: "another")
    refused, edited = edit(*options)
    assert "the folder holds images of another tokenizer (tokenizer_sha256: " in refused.err
    assert len(edited) == 1


@pytest.mark.parametrize(
    ("options", "titles"),
    [
        (["region.keep=0.5"], ["before", "region"]),
        (["region.scale=0.5"], ["placed", "region"]),
        (["region.keep=0.5", "other={red}"], ["before", "other", "region"]),
    ],
)
def test_the_columns_of_the_picture_are_named(edit, pictures, monkeypatch, options, titles):
    saved = []
    monkeypatch.setattr("experiments.edit.save_grid", lambda *parts: saved.append(parts) or parts[2])
    red = pictures / "red.png"
    edit(f"image={red}", "results_per_image=2", *(option.format(red=red) for option in options))
    ((images, names, _, columns),) = saved
    assert columns == [*titles, "", ""]
    assert len(images) == len(columns)
    assert names == ["red, unconditional"]


def test_long_names_of_rows_keep_their_ends():
    assert shortened("face") == "face"
    assert shortened("class_0001_face_seed_0_0000, face") == "class_0001...0000, face"


def test_a_mask_says_the_same_as_a_box(edit, pictures, tmp_path):
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[24:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = [f"image={pictures / 'red.png'}", "classes=face", "results_per_image=2"]
    _, by_mask = edit(*common, f"region.mask={tmp_path}/mask.png", output="mask")
    _, by_box = edit(*common, "region.box=[0,0.5,1,1]", output="box")
    assert len(by_mask) == 2
    assert all(np.array_equal(by_mask[name], by_box[name]) for name in by_box)


def test_thin_lines_of_a_mask_count(edit, tmp_path):
    """A token is drawn if any pixel of the mask over it is white, however large the mask is; as in `model.edit`."""
    Image.new("RGB", (32, 32), (220, 30, 30)).save(tmp_path / "red.png")
    pixels = np.zeros((512, 512), dtype=np.uint8)
    pixels[:, 100:103] = 255
    line = Image.fromarray(pixels.copy())
    line.save(tmp_path / "line.png")
    pixels[:, 256:] = 255
    half = Image.fromarray(pixels)
    half.save(tmp_path / "half.png")
    common = [f"image={tmp_path}/red.png", "classes=face", "results_per_image=1", "soft_blend=0"]
    for name, mask, tokens in (("line", line, 8), ("half", half, 40)):
        outcome, edited = edit(*common, f"region.mask={tmp_path}/{name}.png", output=name)
        assert outcome.results["tokens_drawn"] == tokens
        pipeline = load(EMOJI).with_sampler(num_steps=4)
        (expected,) = pipeline.edit(Image.open(tmp_path / "red.png"), "face", mask, soft_blend=0)
        assert np.array_equal(next(iter(edited.values())), np.asarray(expected))


def test_no_result_replaces_another(edit, tmp_path):
    """Two folders have images of one name, and a third has the name that one of them would get."""
    for name in ("1/a", "1/a_2", "2/a", "2/A"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "in" / f"{name}.png")
    outcome, edited = edit(f"image={tmp_path}/in", "classes=face", "results_per_image=1", "sampler.num_steps=1")
    names = {f"{name}_class_0001_face_seed_0_0000" for name in ("a", "a_2", "a_3", "A_4")}
    assert len(edited) == outcome.results["num_images"] == 4
    assert {name.lower() for name in edited} == {name.lower() for name in names}


@pytest.mark.parametrize("replaced", ["image red", "other", "region.mask"])
def test_results_of_another_file_at_the_same_path_are_kept(edit, tmp_path, replaced):
    """The same command with the same files is done again, with another picture it is refused."""
    paths = {name: tmp_path / f"{name.rpartition(' ')[2]}.png" for name in ("image red", "other", "region.mask")}
    for path in paths.values():
        Image.new("RGB", (32, 32), "white").save(path)
    image, other, mask = paths.values()
    options = [f"image={image}", f"other={other}", f"region.mask={mask}", "region.keep=0.5", "results_per_image=1"]
    first, _ = edit(*options, "sampler.num_steps=1")
    results = Path(first.results["strip"]).with_name("results.json")
    assert set(first.results["inputs_sha256"]) == set(paths)
    assert edit(*options, "sampler.num_steps=1")[0].status == 0
    before = results.read_bytes()
    picture = Image.new("RGB", (32, 32), "white")
    picture.putpixel((3, 3), (250, 250, 250))
    picture.save(paths[replaced])
    refused, _ = edit(*options, "sampler.num_steps=1")
    assert refused.status == 1
    assert f"the folder holds results of other images ({replaced}: " in refused.err
    assert "another output=DIR, or resume=false for a new folder." in refused.err
    assert results.read_bytes() == before
    older = {name: value for name, value in json.loads(before).items() if name != "inputs_sha256"}
    results.write_text(json.dumps(older))
    assert edit(*options, "sampler.num_steps=1")[0].status == 0
    picture.putpixel((3, 3), (240, 240, 240))
    picture.save(paths[replaced])
    assert edit(*options, "sampler.num_steps=1", "resume=false")[0].status == 0


def test_results_of_classes_with_like_names_have_other_files():
    names = ["a b", "a_b", "cat!", "cat?", "x" * 300, "x" * 301]
    files = result_files(Path("x"), ["a"], range(len(names)), names, 0, 1)
    assert len(set(files.values())) == len(names)
    assert max(len(file.name) for file in files.values()) < 200


def test_images_with_long_names_have_other_names():
    names = name_images([Path(f"{'n' * 240}{number}.png") for number in range(3)])
    assert len(set(names)) == 3
    assert max(map(len, names)) < 120


def test_images_whose_names_look_the_same_have_other_names():
    """On some disks, they would be one file."""
    files = [Path(f"{unicodedata.normalize(form, 'Käse')}.png") for form in ("NFC", "NFD")]
    names = name_images(files)
    assert len({unicodedata.normalize("NFC", name) for name in names}) == 2


def test_what_is_around_a_shrunken_image(edit, pictures):
    outcome, edited = edit(
        f"image={pictures / 'red.png'}", "region.scale=0.5", "soft_blend=0", "classes=face", "results_per_image=2"
    )
    assert outcome.results["tokens_kept"] == 16
    first, second = edited.values()
    assert np.array_equal(first[8:24, 8:24], second[8:24, 8:24])
    assert first[8:24, 8:24, 0].mean() > 200  # the red square
    assert not np.array_equal(first, second)


def test_variations_and_interpolations(edit, pictures):
    """A share of the tokens is kept, of one image or of two; the more, the more alike the results are."""
    common = [f"image={pictures / 'red.png'}", "classes=face", "results_per_image=3"]
    spread = {}
    for keep in (0.2, 0.9):
        outcome, edited = edit(*common, f"region.keep={keep}", output=f"keep_{keep}")
        assert outcome.results["tokens_drawn"] == round((1 - keep) * 64)
        spread[keep] = np.std([pixels.astype(float) for pixels in edited.values()], axis=0).mean()
    assert spread[0.9] < spread[0.2]
    colours = {}
    for weight in (0, 1):
        other = [f"other='{pictures / 'blue (2).png'}'", f"weight={weight}", "region.keep=0.95"]
        _, edited = edit(*common, *other, output=f"weight_{weight}")
        colours[weight] = np.mean([pixels[12:20, 12:20] for pixels in edited.values()], axis=(0, 1, 2))
    assert colours[0][0] > colours[0][2] + 60  # red
    assert colours[1][2] > colours[1][0] + 60  # blue


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["image=missing.png"], r"missing\.png: unreadable: "),
        ([], "image=None: expected an image file"),
        (["image={red}", "region.box=[0,0,0,1]"], r"box=\[.*\]: expected left, top"),
        (["image={red}", "region.box=[0,0,1,1]", "region.scale=0.5"], "region: expected one of mask, box and scale"),
        (["image={red}", "classes=dog"], "classes=dog: expected class ids from 0 to 5"),
        (["image={red}", "region.mask={black}"], "nothing in the mask is white"),
        (["image={red}", "region.mask={clear}"], "nothing in the mask is white"),
        (
            ["image={red}", "region.mask={wide}"],
            r"region\.mask=.*wide\.png: the mask has 90 x 30 pixels and the image 64",
        ),
        (["image={red}", "other={folder}"], r"other=.*: this is a folder; expected one image file"),
        (["image={red}", "classes=[face,face]"], "a class is named twice; results_per_image=N draws more results of"),
        (["image={red}", "region.keep=2"], "region.keep=2"),
    ],
)
def test_bad_options_end_in_a_sentence(edit, pictures, tmp_path, options, sentence):
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    Image.new("RGBA", (64, 48), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    Image.new("L", (90, 30), 255).save(tmp_path / "wide.png")
    files = {name: tmp_path / f"{name}.png" for name in ("black", "clear", "wide")}
    files |= {"red": pictures / "red.png", "folder": tmp_path}
    outcome, edited = edit(*(option.format(**files) for option in options))
    assert outcome.status in (1, 2)
    assert re.search(sentence, outcome.err)
    assert not edited


@pytest.mark.slow
def test_the_hidden_half_of_a_digit(separate_command, tmp_path):
    """With the class given, at least 80 % of 200 completed digits are of their class, by the classifier."""
    assert separate_command("callbacks.generation_metrics=null", f"output={tmp_path}").status == 0
    model = load(tmp_path / "checkpoints" / "last.ckpt")
    images, classes = digit_images("held_out")[:200], digit_labels("held_out")[:200]
    token_ids = model.tokenizer.encode(images)
    is_drawn = tokens_under(box_region([0, 0.5, 1, 1], 8, 8), model.tokenizer.grid).expand(len(images), -1)
    generator = torch.Generator().manual_seed(0)
    edited = draw_anew(model.net, model.sampler, token_ids, is_drawn, classes, generator)
    assert torch.equal(edited[~is_drawn], token_ids[~is_drawn])
    assert (classify_digits(model.tokenizer.decode(edited)) == classes).double().mean() >= 0.8
    # another class cannot be had as often, so that the class counts and not the kept half alone
    others = draw_anew(model.net, model.sampler, token_ids, is_drawn, (classes + 1) % 10, generator)
    assert (classify_digits(model.tokenizer.decode(others)) == classes).double().mean() < 0.8


def test_a_photo_of_a_camera_is_edited_as_viewers_show_it(edit, tmp_path):
    """By the task and by `enat edit`: the file has the pixels on their side, and says so."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    shown, mask = Image.fromarray(pixels), Image.new("L", (48, 64))
    mask.paste(255, (0, 0, 24, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in {"image": shown, "mask": mask}.items():
        image.save(tmp_path / f"{name}_shown.png")
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / f"{name}_taken.png", exif=exif)
    drawn = []
    for kind in ("shown", "taken"):
        files = [f"image={tmp_path}/image_{kind}.png", f"region.mask={tmp_path}/mask_{kind}.png"]
        _, edited = edit(*files, "classes=face", "results_per_image=1", "soft_blend=0", output=kind)
        drawn += [picture.tobytes() for picture in edited.values()]
        arguments = ["edit", str(EMOJI), f"{tmp_path}/image_{kind}.png", "--mask", f"{tmp_path}/mask_{kind}.png"]
        assert main([*arguments, "--output", f"{tmp_path}/{kind}/by_command"]) == 0
        drawn += [Image.open(file).tobytes() for file in (tmp_path / kind / "by_command").glob("*.png")]
    assert len(drawn) == 4
    assert drawn[:2] == drawn[2:]
