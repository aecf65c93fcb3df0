"""Image files of a command, which say inside how they were drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from enat.errors import InputError, counted
from enat.images import read_facts, write_png

MAX_IMAGES = 100_000  # of a command, whose names are kept in memory


def refuse_too_many(num_classes: int, per_class: int, argument: str) -> None:
    """Refuses more images than a command draws.

    Raises:
        InputError: naming the argument that says how many images a class has.
    """
    if num_classes * per_class > MAX_IMAGES:
        classes = counted(num_classes, "class", "classes")
        raise InputError(
            f"{argument} {per_class}: with {classes}, these are {num_classes * per_class:,} images; expected at most "
            f"{MAX_IMAGES:,} in a command."
        )


def prepare(folder: Path, files: Mapping[Path, Mapping[str, Any]]) -> set[Path]:
    """Makes a folder for images, and returns which of them are not there yet.

    Args:
        folder: of the images.
        files: for each file, what is written into it beside the image.

    Raises:
        InputError: naming the first file that was drawn with other settings, or by something else.
    """
    missing = {path for path in files if not path.exists()}
    for path, wanted in files.items():
        if path not in missing and read_facts(path) != json.loads(json.dumps(wanted)):
            raise InputError(f"{path}: this file exists and is of other settings; expected another --output DIR.")
    folder.mkdir(parents=True, exist_ok=True)  # before any image is drawn, for it may fail
    return missing


def write_images(files: Sequence[tuple[Path, Mapping[str, Any]]], images: Sequence[Image.Image]) -> None:
    """Writes images to their files, with what is to be written beside each."""
    for (path, wanted), image in zip(files, images, strict=True):
        write_png(path, image, wanted)
