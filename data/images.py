"""Lists image files with their classes, reads them as ADM does, and cuts views out of them.

Shapes: `V` views of an image, `S` height and width of a view in pixels.
"""

import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import numpy as np
from annotated_types import Ge
from PIL import ExifTags, Image
from torch.utils.data import Dataset

from data.labels import number_classes, read_labels
from enat.errors import InputError
from enat.files import is_open
from enat.images import center_crop, refuse_deep, upright

Image.init()
# All that Pillow reads, but for documents and containers, of which it reads no pixels by itself.
SUFFIXES = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
SUFFIXES -= {".bufr", ".grib", ".h5", ".hdf", ".mpeg", ".mpg", ".wmf", ".emf", ".eps", ".ps", ".fit", ".fits"}
# Files of these formats alone are opened, whatever their names are: another plugin of Pillow may start a program.
FORMATS = sorted({kind for suffix, kind in Image.registered_extensions().items() if suffix in SUFFIXES})
SPLITS = {"train", "training", "val", "valid", "validation", "test"}


def find_images(folder: Path) -> tuple[list[Path], list[str]]:
    """Finds all image files below a folder, each file once; follows links, and passes over names that begin with a dot.

    Returns:
        The files in order, and the reasons why others are ignored.
    """
    files: list[Path] = []
    ignored: list[str] = []
    seen: set[Path] = set()
    others: Counter[str] = Counter()

    def walk(place: Path) -> None:
        real = place.resolve()
        if real in seen:  # a link to a folder above, or a second link to one
            return
        seen.add(real)
        if not is_open(place):
            ignored.append(f"{place}: a folder without permission to read it")
            return
        for path in sorted(place.iterdir()):
            if path.name.startswith("."):
                continue
            try:
                mode = path.stat().st_mode
            except OSError as error:
                which = "without permission to open it" if isinstance(error, PermissionError) else "that does not exist"
                ignored.append(f"{path}: a link to a file {which}")
                continue
            if stat.S_ISDIR(mode):
                walk(path)
            elif not stat.S_ISREG(mode):
                ignored.append(f"{path}: a pipe or a device")
            elif path.suffix.lower() not in SUFFIXES:
                others[path.suffix.lower() or "without suffix"] += 1
            elif path.resolve() not in seen:
                seen.add(path.resolve())
                files.append(path)

    walk(folder)
    ignored += [f"{folder}: files {suffix} are no images: {count}" for suffix, count in others.items()]
    return files, ignored


class Overview(NamedTuple):
    """What the headers of some images say."""

    smallest: int  # short side in pixels
    largest: int
    num_images: int
    num_altered: int  # with an alpha channel or an EXIF orientation, which `load_rgb` ignores
    are_square: bool


@dataclass
class ImageList:
    """Image files below a folder, with a class id for each."""

    folder: Path
    files: list[str]  # relative to the folder
    class_ids: np.ndarray  # (files,)
    class_names: list[str]  # a class id is an index of this list
    ignored: list[str] = field(default_factory=list)  # why other files were ignored

    @classmethod
    def find(cls, folder: Path, labels: Path | None = None, classes: Path | None = None) -> "ImageList":
        """Lists the images of a folder.

        Args:
            folder: has a folder of images for each class, named after the class.
            labels: a CSV file with the columns `file` and `class`, for a folder that is not sorted into classes.
            classes: a text file with a class name on each line, in the order of the ids. Without it, names that are all
                whole numbers are the ids themselves, and other names are numbered in sorted order.

        Raises:
            InputError: if there are no images, a class has none, or a file names what is not there.
        """
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder.")
        if not is_open(folder):
            raise InputError(f"{folder}: the folder can't be read; expected one with permission to read it.")
        ignored: list[str] = []
        listed = _list_class_folders(folder, ignored) if labels is None else read_labels(folder, labels)
        if labels is not None:
            ignored += _left_out(folder, labels, {folder / name for name, _ in listed})
        files, names = zip(*listed, strict=True)
        class_names, class_ids = number_classes(set(names), classes)
        return cls(folder, list(files), np.array([class_ids[name] for name in names]), class_names, ignored)

    def look(self, at_most: int = 200) -> Overview:
        """Looks at the headers of about `at_most` images that can be opened."""
        sizes = []
        num_altered = 0
        for name in self.files[:: max(len(self.files) // at_most, 1)]:
            try:
                with Image.open(self.folder / name, formats=FORMATS) as image:
                    is_turned = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) != 1
                    num_altered += is_turned or image.has_transparency_data
                    sizes.append(image.size)
            except Exception:  # whatever a plugin of Pillow raises; the file is named when it is read
                continue
        short = [min(size) for size in sizes]
        are_square = all(width == height for width, height in sizes)
        return Overview(min(short, default=0), max(short, default=0), len(sizes), num_altered, are_square)


def _left_out(folder: Path, labels: Path, listed: set[Path]) -> list[str]:
    """Says how many images of a folder a CSV file does not list; nothing if it lists all."""
    resolved = {path.resolve() for path in listed}
    others = [path for path in find_images(folder)[0] if path.resolve() not in resolved]
    return [f"{folder}: images that {labels} does not list: {len(others)}, such as {others[0].name}"] if others else []


def _list_class_folders(folder: Path, ignored: list[str]) -> list[tuple[str, str]]:
    """Returns the file and the class of each image; all files of a class folder belong to the class."""
    class_folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if class_folders and {path.name.lower() for path in class_folders} <= SPLITS:
        raise InputError(
            f"{folder}: its folders are {' and '.join(path.name for path in class_folders)}, which are no "
            f"classes; expected one of them, such as {class_folders[0]}."
        )
    files_beside = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    strays = [path for path in files_beside if path.suffix.lower() in SUFFIXES]
    if class_folders and strays:
        ignored.append(f"{folder}: images beside the class folders: {len(strays)}, such as {strays[0].name}")
    files_and_classes = []
    for class_folder in class_folders:
        files, others = find_images(class_folder)
        ignored += others
        if not is_open(class_folder):  # without it, the ids of other classes could change
            raise InputError(f"{folder}: the class folder {class_folder.name} can't be read; allow or move it.")
        if not files:
            reason = f" ({'; '.join(others)})" if others else ""
            raise InputError(f"{folder}: the class folder {class_folder.name} has no images{reason}.")
        files_and_classes += [(str(path.relative_to(folder)), class_folder.name) for path in files]
    places: dict[Path, str] = {}
    for name, _ in files_and_classes:  # a link may lead into another class, which would count its images again
        if (first := places.setdefault((folder / name).resolve(), name)) != name:
            raise InputError(f"{folder}: {first} and {name} are one file, by a link; expected one class for it.")
    if not files_and_classes:
        raise InputError(
            f"{folder}: expected a folder of images for each class in it; task=tokenize also takes a flat one, with "
            "labels=FILE."
        )
    return files_and_classes


def load_rgb(path: Path) -> Image.Image:
    """Reads an image as ADM's loader does: with Pillow, converted to RGB, ignoring transparency and EXIF orientation.

    Raises:
        InputError: if the file can't be read, or has more than 8 bits a channel, which Pillow would clip.
    """
    return _load(path, lambda image: image.convert("RGB"))


def load_upright(path: Path, mode: str = "RGB") -> Image.Image:
    """Reads an image as viewers show it, turned as its EXIF orientation says, and converts it to a mode.

    Raises:
        InputError: as `load_rgb` does.
    """
    return _load(path, lambda image: upright(image).convert(mode))


def _load(path: Path, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    try:
        with Image.open(path, formats=FORMATS) as image:
            refuse_deep(image, path)
            return convert(image)
    except InputError:
        raise
    except Exception as error:  # whatever a plugin of Pillow raises on a damaged file
        reason = getattr(error, "strerror", None) or error  # that of the system has the path again
        raise InputError(f"{path}: unreadable: {str(reason).rstrip('.')}; expected an image.") from error


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


class Views(Protocol):
    """Cuts views of one size out of an image."""

    names: list[str]  # one for each view
    side: int  # height and width of a view in pixels, `S`

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Turns an RGB image into its views, uint8 (V, S, S, 3)."""


class Plain:
    """Makes one view: the centre crop."""

    names = ["plain"]  # noqa: RUF012

    def __init__(self, side: Annotated[int, Ge(1)]):
        self.side = side

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(center_crop(image, self.side))[None]


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
