"""Reads a CSV file that names the class of each image of a folder."""

import csv
from collections import Counter
from pathlib import Path

from enat.errors import InputError
from enat.files import exists


def read_labels(folder: Path, labels: Path) -> list[tuple[str, str]]:
    """Returns the file and the class of each row of a CSV file with the columns `file` and `class`.

    Args:
        folder: of the images; the files are named relative to it.
        labels: the CSV file.

    Raises:
        InputError: for another file, a row without a file or a class, and an image that is not there or listed twice.
    """
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
        files_and_classes = [(row["file"], row["class"].strip()) for row in rows]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels={labels}: expected a CSV file with the columns file and class.") from error
    for number, (name, class_name) in enumerate(files_and_classes, start=1):
        if not name or not class_name:
            missing = "file" if not name else "class"
            raise InputError(
                f"labels={labels}: row {number} has no {missing}; expected a file and a class in each row."
            )
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"labels={labels}: {name} is not in the folder of the images; expected a file in it.")
        if not (exists(folder / name) and (folder / name).is_file()):
            raise InputError(
                f"labels={labels}: row {number}: {name} is not in {folder}; expected files of this folder."
            )
    if not files_and_classes:
        raise InputError(f"labels={labels}: the file lists no images.")
    counts = Counter((folder / name).resolve() for name, _ in files_and_classes)
    twice = [name for name, _ in files_and_classes if counts[(folder / name).resolve()] > 1]
    if twice:
        raise InputError(f"labels={labels}: {twice[0]} is listed twice; expected one class for each file.")
    return files_and_classes
