"""Which files of a folder are images, which classes they have, and what is said of the others."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_module import listing_sha256
from data.images import SUFFIXES, ImageList, Overview, Plain, find_images, load_rgb
from data.scored_images import ClassFolderImages, FolderImages
from data.sources import ImageSource
from enat.errors import InputError
from enat.images import center_crop
from experiments.tokenize import describe

TWELVE = [str(number) for number in range(12)]


def save(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 9), (colour, colour, colour)).save(path)


def test_each_file_is_found_once_through_links(tmp_path):
    save(tmp_path / "a" / "1.png")
    save(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "a" / "latest").symlink_to(".")  # a loop
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "again.png").symlink_to("1.png")
    (tmp_path / "a" / "gone.png").symlink_to("nothing.png")
    (tmp_path / "a" / "notes.txt").write_text("x")
    save(tmp_path / "a" / ".ipynb_checkpoints" / "3.png")
    save(tmp_path / "a" / "._4.png")
    files, ignored = find_images(tmp_path / "a")
    assert [str(path.relative_to(tmp_path / "a")) for path in files] == ["1.png", "linked/2.png"]
    assert [reason.rpartition("/")[2] for reason in ignored] == [
        "gone.png: a link to a file that does not exist",
        "a: files .txt are no images: 1",
    ]


def test_suffixes_are_pillows():
    assert {
        ".jpg",
        ".jfif",
        ".jpe",
        ".png",
        ".webp",
        ".avif",
        ".pgm",
        ".jp2",
        ".tga",
        ".bmp",
        ".gif",
        ".tif",
    } <= SUFFIXES
    assert not {".txt", ".csv", ".npz", ".pdf", ".mpg", ".h5"} & SUFFIXES


@pytest.mark.parametrize(
    ("folders", "names", "ids"),
    [
        (
            [str(number) for number in range(12)],
            [str(number) for number in range(12)],
            [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9],
        ),
        (["000", "002", "010"], [str(number) for number in range(11)], [0, 2, 10]),
        (["1", "01"], ["01", "1"], [0, 1]),  # equal numbers are names
        (["20240101", "20240102"], ["20240101", "20240102"], [0, 1]),  # dates too
        (["b", "a", "1"], ["1", "a", "b"], [0, 1, 2]),
    ],
)
def test_classes_that_are_numbers_are_ids(tmp_path, folders, names, ids):
    for folder in folders:
        save(tmp_path / folder / "x.png")
    listed = ImageList.find(tmp_path)
    assert listed.class_names == names
    assert listed.class_ids.tolist() == ids  # of the folders in order


def test_classes_from_a_file_keep_their_ids(tmp_path):
    for folder in ("dog", "cat"):
        save(tmp_path / "images" / folder / "x.png")
    with pytest.raises(InputError, match=r"classes=.*classes\.txt: can't be read: No such file or directory\."):
        ImageList.find(tmp_path / "images", classes=tmp_path / "classes.txt")
    (tmp_path / "classes.txt").write_text("bird\ncat\n\ndog\n")
    listed = ImageList.find(tmp_path / "images", classes=tmp_path / "classes.txt")
    assert (listed.class_names, listed.class_ids.tolist()) == (["bird", "cat", "dog"], [1, 2])
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(InputError, match="the class dog is not in it"):
        ImageList.find(tmp_path / "images", classes=tmp_path / "classes.txt")


def test_a_csv_of_numbers_too(tmp_path):
    for number in range(11):
        save(tmp_path / "images" / f"{number}.png")
    rows = "".join(f"{number}.png,{number}\n" for number in range(11))
    (tmp_path / "labels.csv").write_text(f"file,class\n{rows}")
    assert ImageList.find(tmp_path / "images", tmp_path / "labels.csv").class_ids.tolist() == list(range(11))


@pytest.mark.parametrize("again", ["0.png", "./0.png"])
def test_a_csv_that_names_a_file_twice(tmp_path, again):
    """Under two classes, it would have two labels, and could be trained on and held out."""
    for number in range(2):
        save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "labels.csv").write_text(f"file,class\n0.png,cat\n1.png,cat\n{again},dog\n")
    with pytest.raises(InputError, match=r"labels\.csv: 0\.png is listed twice; expected one class for each file"):
        ImageList.find(tmp_path / "images", tmp_path / "labels.csv")


def test_splits_are_no_classes(tmp_path):
    for split in ("train", "val"):
        save(tmp_path / split / "cat" / "x.png")
    with pytest.raises(InputError, match=r"its folders are train and val, which are no classes; expected one of them"):
        ImageList.find(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, OverflowError, MemoryError])
def test_whatever_a_plugin_raises_names_the_file(tmp_path, monkeypatch, error):
    save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: (_ for _ in ()).throw(error("damaged")))
    with pytest.raises(InputError, match=r"x\.png: unreadable"):
        load_rgb(tmp_path / "x.png")


def test_the_crop_of_a_long_image_needs_little_memory():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20_000, 3), dtype=np.uint8)
    tracemalloc.start()
    cropped = center_crop(Image.fromarray(pixels), 64)
    assert cropped.size == (64, 64)
    middle = Image.fromarray(pixels[:, 9_990:10_010])
    assert np.abs(np.asarray(cropped, int) - np.asarray(center_crop(middle, 64), int)).max() <= 1
    tracemalloc.stop()
    assert center_crop(Image.new("RGB", (200_000, 1)), 256).size == (256, 256)  # would be 39 GB


def test_a_name_that_is_not_utf8(tmp_path):
    (tmp_path / "a").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(b"broken")
    save(tmp_path / "a" / "b.png")
    assert len(find_images(tmp_path)[0]) == 2


def test_what_is_ignored_is_said_with_the_scores(tmp_path):
    for number in range(3):
        save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("x")
    blocks = list(FolderImages(str(tmp_path), None, 0).read([range(2), range(2, 3)], torch.device("cpu")))
    assert [list(block.skipped) for block in blocks] == [[f"{tmp_path}: files .txt are no images: 1"], []]


def test_images_beside_class_folders_are_named(tmp_path):
    """They are in no class, but in the scores of the same folder."""
    (tmp_path / "cat").mkdir()
    for name in ("cat/a.png", "stray.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    listed = ImageList.find(tmp_path)
    assert listed.files == ["cat/a.png"]
    assert listed.ignored == [f"{tmp_path}: images beside the class folders: 1, such as stray.png"]


def test_a_class_with_control_characters_is_refused(tmp_path):
    """Its shards could not be read, since a manifest may not steer a terminal."""
    folder = tmp_path / "a\x1b[31m"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    with pytest.raises(InputError, match="expected a name without control characters"):
        ImageList.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unconditional", "a class is named unconditional, which stands for images of no class"),
        ("a\x1b[31m", "expected a name without control characters"),
        ("a\x0bb", "expected a name without control characters"),
    ],
)
def test_names_of_classes_without_images_are_checked_too(tmp_path, name, sentence):
    """They have ids, so that samples could ask for them."""
    save(tmp_path / "images" / "cat" / "x.png")
    (tmp_path / "classes.txt").write_text(f"{name}\ncat\n")
    with pytest.raises(InputError, match=sentence):
        ImageList.find(tmp_path / "images", classes=tmp_path / "classes.txt")


def test_a_class_of_two_lines_in_a_csv_is_refused(tmp_path):
    save(tmp_path / "images" / "0.png")
    (tmp_path / "labels.csv").write_text('file,class\n0.png,"x\ny"\n')
    with pytest.raises(InputError, match="expected a name without control characters"):
        ImageList.find(tmp_path / "images", tmp_path / "labels.csv")


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "x\0.png"])
def test_a_csv_with_what_no_file_can_be_called(tmp_path, name):
    save(tmp_path / "images" / "0.png")
    (tmp_path / "labels.csv").write_text(f"file,class\n0.png,cat\n{name},cat\n")
    with pytest.raises(InputError, match=r"labels=.*labels\.csv: row 2: x.*\.png is not in"):
        ImageList.find(tmp_path / "images", tmp_path / "labels.csv")


def test_a_flat_folder_for_scores(tmp_path):
    """The sentence names no option that the task at hand may lack."""
    for number in range(3):
        save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=rf"^{tmp_path}: expected a folder of images for each class in it; task=token"):
        ClassFolderImages(str(tmp_path), "train", 0.5, 0, None, 0)


def test_images_whose_looks_are_not_what_is_read(tmp_path):
    """Transparency and the EXIF orientation are ignored, which the first look at the images says."""
    exif = Image.Exif()
    for orientation in (1, 6):
        exif[0x0112] = orientation
        Image.new("RGB", (12, 9)).save(tmp_path / f"{orientation}.jpg", exif=exif)
    Image.new("RGBA", (12, 9), (255, 0, 255, 0)).save(tmp_path / "clear.png")
    save(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_text("x")
    names = sorted(path.name for path in tmp_path.iterdir())
    listed = ImageList(tmp_path, names, np.zeros(len(names), int), ["cat"])
    assert listed.look() == Overview(smallest=9, largest=9, num_images=4, num_altered=2, are_square=False)
    note = describe(ImageSource(listed, Plain(8), 1, 0), 8, 0.5).splitlines()[-1]
    assert note.startswith(
        "Images with an alpha channel or an EXIF orientation, which are ignored: 2 of the 4 looked at"
    )
    assert np.asarray(load_rgb(tmp_path / "clear.png"))[0, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize("link", ["cat/other.png", "hound", "dog/loop"])
def test_a_file_is_of_one_class(tmp_path, link):
    """A link to an image of another class, to a class folder, and to the folder above."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    target = {"cat/other.png": "dog/0.png", "hound": "dog", "dog/loop": ""}[link]
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r" and .* are one file, by a link; expected one class for it"):
        ImageList.find(tmp_path)


def test_folders_without_permission(tmp_path, monkeypatch):
    """The user of tests may be root, who may read all, so that the permission is only said to lack."""
    for name in ("cat/a.png", "cat/closed/b.png", "dog/a.png"):
        save(tmp_path / name)
    closed = {tmp_path / "cat" / "closed"}
    monkeypatch.setattr(os, "access", lambda path, mode: path not in closed)
    listed = ImageList.find(tmp_path)
    assert listed.files == ["cat/a.png", "dog/a.png"]
    assert listed.ignored == [f"{tmp_path}/cat/closed: a folder without permission to read it"]
    closed.add(tmp_path / "dog")
    with pytest.raises(InputError, match=r"the class folder dog can't be read; allow or move it\."):
        ImageList.find(tmp_path)
    closed.add(tmp_path)
    with pytest.raises(InputError, match=rf"^{tmp_path}: the folder can't be read; expected one with permission"):
        ImageList.find(tmp_path)


def test_the_content_of_a_file_without_permission(tmp_path, monkeypatch):
    """It is skipped when it is read, so that its hash must not stop the work before."""
    for name in ("a/x.png", "a/y.png"):
        save(tmp_path / name)
    opened = Path.open

    def refuse(path, *arguments, **options):
        if path.name == "x.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    source = ImageSource(ImageList.find(tmp_path), Plain(8), 2, 0)
    numbers = np.arange(2)
    before, listed_before = source.content(numbers), listing_sha256(tmp_path, find_images(tmp_path)[0])
    monkeypatch.setattr(Path, "open", refuse)
    assert source.content(numbers) != before
    assert listing_sha256(tmp_path, find_images(tmp_path)[0]) != listed_before
