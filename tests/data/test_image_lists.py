"""What is said of images that are left out or cut, and of folders without images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import ImageList, Plain
from data.scored_images import FolderImages
from data.sources import ImageSource
from enat.errors import InputError
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
