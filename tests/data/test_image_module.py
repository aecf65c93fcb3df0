"""Images for the training of a tokenizer: each once an epoch, other crops each time, broken ones passed over."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_module import HeldOutImages, ImageStream, RandomCrop, listing_sha256, split_folder
from data.images import ImageList
from data.scored_images import ClassFolderImages
from enat.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Twelve images of one grey level each, in two class folders."""
    for number in range(12):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 14), (20 * number,) * 3).save(path)
    return tmp_path / "images"


def levels(images: torch.Tensor) -> list[int]:
    return [int(image.float().mean().round()) // 20 for image in images]


def test_each_image_comes_once_an_epoch_in_another_order(folder):
    files = sorted(folder.rglob("*.png"))
    stream = ImageStream(files, RandomCrop(8), seed=0)
    epochs = [levels(stream.__getitems__(range(12 * epoch, 12 * epoch + 12))) for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    again = ImageStream(files, RandomCrop(8), seed=0)
    assert torch.equal(again.__getitems__(range(15, 20)), stream.__getitems__(range(12, 24))[3:8])


def test_crops_are_squares_out_of_the_image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    crop = RandomCrop(40, smallest=1.0, flip=False)
    for seed in range(5):
        cut = crop(image, np.random.default_rng(seed))
        places = [left for left in range(21) if np.array_equal(cut, pixels[:, left : left + 40])]
        assert len(places) == 1
    mirrored = {
        bool(
            np.array_equal(
                RandomCrop(40, 1.0)(image.crop((0, 0, 40, 40)), np.random.default_rng(seed)), pixels[:, 39::-1]
            )
        )
        for seed in range(10)
    }
    assert mirrored == {True, False}


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 300), (400, 9)])
def test_images_of_any_shape_can_be_cropped(size):
    image = Image.new("RGB", size, (9, 9, 9))
    for smallest in (0.3, 1.0):
        cut = RandomCrop(8, smallest)(image, np.random.default_rng(0))
        assert cut.shape == (8, 8, 3)
        assert (cut == 9).all()


def test_a_broken_image_is_named_once_and_another_taken(folder, capsys):
    files = sorted(folder.rglob("*.png"))
    files[3].write_bytes(b"no image")
    stream = ImageStream(files, RandomCrop(8), seed=0)
    images = stream.__getitems__(range(36))
    assert images.shape == (36, 3, 8, 8)
    assert capsys.readouterr().out.count(f"Another image is taken for {files[3]}: unreadable") == 1
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 12 training images can be read"):
        ImageStream(files, RandomCrop(8), seed=0)
    assert "Another image" not in capsys.readouterr().out


def test_a_broken_image_that_is_the_only_one_held_out(folder, capsys):
    (file,), _ = split_folder(str(folder), 0.1, 0)
    file.write_bytes(b"no image")
    with pytest.raises(InputError) as refused:
        HeldOutImages(str(folder), 0.1, 0, 8)
    assert f"data.images: the only held-out image can't be read; {file}: unreadable" in str(refused.value)
    assert "a larger data.held_out holds out more." in str(refused.value)
    assert HeldOutImages(str(folder), 0.2, 0, 8).__getitems__(range(2)).shape == (2, 3, 8, 8)
    assert f"Another image is taken for {file}: unreadable" in capsys.readouterr().out


def test_the_same_images_are_held_out_as_by_tokenisation(folder):
    held_out, train = split_folder(str(folder), 0.25, 7)
    assert len(held_out) == 3
    assert {*held_out, *train} == set(folder.rglob("*.png"))
    parts = {
        part: ClassFolderImages(str(folder), part, 0.25, 7, resolution=8, num_workers=0)
        for part in ("held_out", "train")
    }
    assert set(parts["held_out"].files) == set(held_out)
    assert set(parts["train"].files) == set(train)
    listed = ImageList.find(folder)
    of_file = dict(zip(listed.files, listed.class_ids.tolist(), strict=True))
    (block,) = parts["held_out"].read([range(3)], torch.device("cpu"))
    assert block.class_ids.tolist() == [of_file[str(file.relative_to(folder))] for file in held_out]


def test_a_folder_that_does_not_serve(folder, tmp_path):
    for images, held_out, sentence in (
        (None, 0.1, "data.images=None: expected a folder of images"),
        (str(tmp_path / "none"), 0.1, "expected a folder of images"),
        (str(folder), 0.0, "holds none of the 12 images out; expected a larger share"),
        (str(folder), 0.99, "leaves no image to train on; expected a smaller share"),
    ):
        with pytest.raises(InputError, match=sentence):
            split_folder(images, held_out, 0)


def test_images_beside_the_class_folders_are_left_out(folder, capsys):
    """As task=tokenize does; or the tokenizer would be trained on images that the network's training holds out."""
    before = split_folder(str(folder), 0.25, 3)
    split_folder.cache_clear()
    Image.new("RGB", (20, 14)).save(folder / "0.png")
    assert split_folder(str(folder), 0.25, 3) == before
    assert f"Ignored: {folder}: 1 image beside the folders of images." in capsys.readouterr().out


def test_a_replaced_image_of_the_same_size_has_another_hash(folder):
    files = [folder / "a/00.bmp", folder / "b/01.bmp"]
    for file in files:
        Image.new("RGB", (20, 14)).save(file)
    before = listing_sha256(folder, files)
    Image.new("RGB", (20, 14), (9, 9, 9)).save(files[0])
    assert listing_sha256(folder, files) != before


def test_a_moved_folder_has_the_same_hash(folder, tmp_path):
    before = listing_sha256(folder, sorted(folder.rglob("*.png")))
    moved = folder.rename(tmp_path / "moved")
    assert listing_sha256(moved, sorted(moved.rglob("*.png"))) == before
    assert HeldOutImages(str(moved), 0.25, 0, 8, at_most=2).num_images == 2
