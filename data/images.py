"""Image files as ADM's loader sees them: which there are, RGB, cropped, in several views.

Shapes: `V` views of an image, `S` their side in pixels.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from enat.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}


@dataclass
class ImageList:
    """Image files below a folder, the class id of each, and the names of the classes."""

    folder: Path
    files: list[str]  # relative to the folder
    class_ids: np.ndarray  # (files,)
    class_names: list[str]

    @classmethod
    def find(cls, folder: Path, labels: Path | None = None) -> "ImageList":
        """Class folders of images, or, with a CSV of the columns `file` and `class`, the files that it lists.

        Class ids are the places of the sorted class names.

        Raises:
            InputError: if there are no images, a class folder has none, or the CSV does not fit the folder.
        """
        if not folder.is_dir():
            raise InputError(f"images={folder}: there is no such folder.")
        pairs = _class_folders(folder) if labels is None else _listed(folder, labels)
        names = sorted({name for _, name in pairs})
        number = {name: index for index, name in enumerate(names)}
        class_ids = np.array([number[name] for _, name in pairs])
        return cls(folder, [file for file, _ in pairs], class_ids, names)


def _class_folders(folder: Path) -> list[tuple[str, str]]:
    pairs = []
    for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in class_folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not files:
            raise InputError(f"images={folder}: the class folder {class_folder.name} has no images.")
        pairs += [(str(path.relative_to(folder)), class_folder.name) for path in files]
    if not pairs:
        raise InputError(f"images={folder}: expected a folder of images for each class, or labels=FILE for a flat one.")
    return pairs


def _listed(folder: Path, labels: Path) -> list[tuple[str, str]]:
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            pairs = [(row["file"], row["class"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels={labels}: expected a CSV file with the columns file and class.") from error
    for name, label in pairs:
        if not name or not label or not (folder / name).is_file():
            raise InputError(f"labels={labels}: {name} has no class or is not in {folder}.")
    if not pairs:
        raise InputError(f"labels={labels}: the file lists no images.")
    return pairs


def load_rgb(path: Path) -> Image.Image:
    """An image as ADM's loader reads it: by Pillow, to RGB, whatever its EXIF orientation says.

    Raises:
        InputError: with the reason, if it can't be read, or is grey of more than 8 bits, which Pillow would clip.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise InputError(f"{path}: more than 8 bits a channel (mode {image.mode}); convert it first.")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{path}: unreadable: {error}") from error


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """ADM's crop (SPEC 7): halve with a box filter while possible, bicubic to the short side, cut the centre."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


class Views(Protocol):
    """What is made of an image: an RGB image -> uint8 (V, S, S, 3)."""

    names: list[str]
    side: int

    def __call__(self, image: Image.Image) -> np.ndarray: ...


class PlainAndFlipped:
    """The centre crop as it is and flipped left-right, as in the official recipe."""

    names = ["plain", "flipped"]  # noqa: RUF012

    def __init__(self, side: int):
        self.side = side

    def __call__(self, image: Image.Image) -> np.ndarray:
        plain = np.asarray(center_crop(image, self.side))
        return np.stack([plain, plain[:, ::-1]])


class TenCrop:
    """Four corners and the centre of a centre crop 1.1 times as large, and all of them flipped."""

    names = [f"{place}{flip}" for flip in ("", ", flipped") for place in ("nw", "ne", "sw", "se", "centre")]  # noqa: RUF012

    def __init__(self, side: int):
        self.side = side

    def __call__(self, image: Image.Image) -> np.ndarray:
        large = np.asarray(center_crop(image, int(1.1 * self.side)))
        end = len(large) - self.side
        corners = [(0, 0), (0, end), (end, 0), (end, end), (end // 2, end // 2)]
        crops = np.stack([large[top : top + self.side, left : left + self.side] for top, left in corners])
        return np.concatenate([crops, crops[:, :, ::-1]])
