"""What is said of images that are left out or cut, and of folders without images."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_module import listing_sha256, split_folder
from data.images import ImageList, Plain
from data.scored_images import FolderImages
from data.sources import ImageSource
from data.tokenization import split_numbers
from data.tokenizer_split import note_on_split
from enat.errors import InputError
from experiments import tokenize
from experiments.tokenize import describe, open_source


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9)).save(path)


def test_links_without_permission(tmp_path, monkeypatch):
    """As to the folder of another user: what they lead to is skipped, and the other images are read."""
    for name in ("cat/a.png", "cat/b.png", "dog/a.png"):
        save(tmp_path / name)
    asked = Path.stat

    def refuse(path, **options):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return asked(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    listed = ImageList.find(tmp_path)
    assert listed.files == ["cat/a.png", "dog/a.png"]
    assert listed.ignored == [f"{tmp_path}/cat/b.png: a link to a file without permission to open it"]


def test_why_a_folder_has_no_images(tmp_path):
    """Photos of a telephone, for example, which Pillow can't read by itself."""
    (tmp_path / "cat").mkdir()
    for number in range(3):
        (tmp_path / "cat" / f"{number}.HEIC").write_text("x")
    reason = rf"\({tmp_path}/cat: files \.heic are no images: 3\)"
    with pytest.raises(InputError, match=rf"the class folder cat has no images {reason}\.$"):
        ImageList.find(tmp_path)
    with pytest.raises(InputError, match=rf"found 0 images {reason}; expected at least 2\.$"):
        FolderImages(str(tmp_path / "cat"), None, 0)


@pytest.mark.parametrize(
    ("size", "change"), [((8, 8), "as the tokenizer wants them"), ((8, 16), "cropped and scaled to 8")]
)
def test_images_of_which_a_part_is_cut_off(tmp_path, size, change):
    for number in range(3):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    listed = ImageList(tmp_path, [f"{number}.png" for number in range(3)], np.zeros(3, int), ["cat"])
    assert f"they are {change} (" in describe(ImageSource(listed, Plain(8), 1, 0), 8, 0.5)


def test_the_note_on_held_out_images_is_printed(tmp_path, monkeypatch, capsys):
    for number in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    listed = ImageList(tmp_path, [f"{number}.png" for number in range(4)], np.zeros(4, int), ["cat"])
    monkeypatch.setattr(tokenize, "note_on_split", lambda weights, _, numbers: f"{weights} has seen {numbers}.")
    tokenize.print_plan(ImageSource(listed, Plain(8), 1, 0), 8, 0.5, 3, "FILE")
    expected = split_numbers(4, 0.5, 3)["held_out"].tolist()
    assert capsys.readouterr().out.splitlines()[-1] == f"FILE has seen {expected}."


def test_a_machine_that_does_not_say_which_cores_are_free(tmp_path, monkeypatch):
    """As macOS."""
    for number in range(2):
        save(tmp_path / f"{number}.png")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert FolderImages(str(tmp_path), None, 4).num_workers == 3


@pytest.mark.parametrize("option", ["labels", "classes"])
def test_a_token_cache_has_no_labels(tmp_path, option):
    """The names of a list of classes would be left out silently."""
    np.save(tmp_path / "train.npy", np.zeros((4, 5), np.int64))
    given = {"labels": None, "classes": None, option: "some.txt"}
    with pytest.raises(InputError, match=rf"^{option}=some\.txt: a token cache such as {tmp_path}/train\.npy has its"):
        open_source(
            f"{tmp_path}/train.npy", **given, num_classes=1, views=Plain(8), batch_size=1, num_workers=0, is_grey=False
        )


def test_held_out_images_that_the_tokenizer_was_trained_on_are_counted(tmp_path):
    """Their reconstructions are better than those of new images."""
    folder, weights = tmp_path / "images", tmp_path / "last.ckpt"
    for name in ("cat", "dog"):
        for number in range(10):
            save(folder / name / f"{number}.png")
    save(folder / "beside.png")
    parts = split_folder(str(folder), 0.2, 0)
    data = {"held_out": 0.2, "seed": 0}
    content = {"settings": {"module": {}, "data": data}, "data_sha256": listing_sha256(folder, [*parts[0], *parts[1]])}
    torch.save({**content, "state_dict": {"x": torch.zeros(1)}}, weights)

    def note(share, seed, path=str(weights)):
        images = ImageList.find(folder)
        return note_on_split(path, images, split_numbers(20, share, seed)["held_out"].tolist())

    assert note(0.2, 0) is note(0.1, 0) is note(0.0, 1) is note(0.5, 1, None) is note(0.5, 1, f"{tmp_path}/no") is None
    trained = {str(file.relative_to(folder)) for file in parts[1]}
    files = ImageList.find(folder).files
    count = sum(files[number] in trained for number in split_numbers(20, 0.5, 1)["held_out"])
    assert count > 0
    assert note(0.5, 1).startswith(f"Note: the tokenizer was trained on {count} of the 10 held-out images, and gives")
    assert "trained on 6 of the 10 held-out images" in note(0.5, 0)
    Image.new("RGB", (5, 5)).save(folder / "cat" / "0.png")  # these are other images
    assert note(0.5, 0) is None
