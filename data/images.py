"""Lists image files with their classes, reads them as ADM does, and cuts views out of them.

Shapes: `V` views of an image, `S` height and width of a view in pixels.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
from annotated_types import Ge
from PIL import Image
from torch.utils.data import Dataset

from enat.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass
class ImageList:
    """Image files below a folder, with a class id for each."""

    folder: Path
    files: list[str]  # relative to the folder
    class_ids: np.ndarray  # (files,)
    class_names: list[str]  # a class id is an index of this list

    @classmethod
    def find(cls, folder: Path, labels: Path | None = None) -> "ImageList":
        """Lists the images of a folder. A class id is the position of the class in the sorted list of class names.

        Args:
            folder: has a folder of images for each class, named after the class.
            labels: a CSV file with the columns `file` and `class`, for a folder that is not sorted into classes.

        Raises:
            InputError: if there are no images, a class has none, or the CSV file names files that are not there.
        """
        if not folder.is_dir():
            raise InputError(f"images={folder}: there is no such folder.")
        files_and_classes = _list_class_folders(folder) if labels is None else _read_labels(folder, labels)
        files, classes = zip(*files_and_classes, strict=True)
        class_names, class_ids = np.unique(classes, return_inverse=True)
        return cls(folder, list(files), class_ids, class_names.tolist())

    def short_sides(self, at_most: int = 200) -> tuple[int, int]:
        """Returns the smallest and largest short side in pixels, of about `at_most` images that can be opened."""
        sides = []
        for name in self.files[:: max(len(self.files) // at_most, 1)]:
            try:
                with Image.open(self.folder / name) as image:
                    sides.append(min(image.size))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue  # it is named when it is read
        return min(sides, default=0), max(sides, default=0)


def _list_class_folders(folder: Path) -> list[tuple[str, str]]:
    """Returns the file and the class of each image; all files of a class folder belong to the class."""
    files_and_classes = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"images={folder}: the class folder {class_folder.name} has no images.")
        files_and_classes += [(str(path.relative_to(folder)), class_folder.name) for path in files]
    if not files_and_classes:
        raise InputError(f"images={folder}: expected a folder of images for each class, or labels=FILE for a flat one.")
    return files_and_classes


def _read_labels(folder: Path, labels: Path) -> list[tuple[str, str]]:
    """Returns the file and the class of each row of a CSV file."""
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            files_and_classes = [(row["file"], row["class"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels={labels}: expected a CSV file with the columns file and class.") from error
    for name, class_name in files_and_classes:
        if not name or not class_name or not (folder / name).is_file():
            raise InputError(f"labels={labels}: {name} has no class or is not in {folder}.")
    if not files_and_classes:
        raise InputError(f"labels={labels}: the file lists no images.")
    return files_and_classes


def load_rgb(path: Path) -> Image.Image:
    """Reads an image as ADM's loader does: with Pillow, converted to RGB, ignoring the EXIF orientation.

    Raises:
        InputError: if the file can't be read, or has more than 8 bits a channel, which Pillow would clip.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: more than 8 bits a channel (mode {image.mode}); convert it first.")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: unreadable: {error}") from error


class ImageFiles(Dataset[np.ndarray | str]):
    """Reads image files below a folder by number and transforms each; for an unreadable one it gives the reason."""

    def __init__(self, folder: Path, files: Sequence[str | Path], transform: Callable[[Image.Image], np.ndarray]):
        self.folder = folder
        self.files = files
        self.transform = transform

    def __getitem__(self, number: int) -> np.ndarray | str:
        try:
            return self.transform(load_rgb(self.folder / self.files[number]))
        except InputError as error:
            return str(error)


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crops an image to a square of `side` pixels, as ADM does (docs/method.md, Data).

    The image is halved with a box filter while its short side is at least twice `side`, then resized with a bicubic
    filter until the short side is `side`; the centre of that is cut out.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    left = (size[0] - side) // 2
    top = (size[1] - side) // 2
    return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


class Views(Protocol):
    """Cuts views of one size out of an image."""

    names: list[str]  # one for each view
    side: int  # height and width of a view in pixels, `S`

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turns an RGB image into its views, uint8 (V, S, S, 3)."""


class PlainAndFlipped:
    """Makes two views, as the official recipe does: the centre crop, and its mirror image (docs/method.md, Data)."""

    names = ["plain", "flipped"]  # noqa: RUF012

    def __init__(self, side: Annotated[int, Ge(1)]):
        self.side = side

    def __call__(self, image: Image.Image) -> np.ndarray:
        plain = np.asarray(center_crop(image, self.side))
        return np.stack([plain, plain[:, ::-1]])


class TenCrop:
    """Makes ten views: the corners and the centre of a centre crop 1.1 times as large, and their mirror images."""

    names = [f"{place}{flip}" for flip in ("", ", flipped") for place in ("nw", "ne", "sw", "se", "centre")]  # noqa: RUF012

    def __init__(self, side: Annotated[int, Ge(1)]):
        self.side = side

    def __call__(self, image: Image.Image) -> np.ndarray:
        large = np.asarray(center_crop(image, int(1.1 * self.side)))
        end = len(large) - self.side
        corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
        crops = np.stack([large[top : top + self.side, left : left + self.side] for top, left in corners])
        return np.concatenate([crops, crops[:, :, ::-1]])
