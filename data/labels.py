"""Reads which class each image of a folder has, and numbers the classes."""

import csv
from collections import Counter
from pathlib import Path

from enat.errors import InputError, without_controls
from enat.files import exists
from enat.generation import UNCONDITIONAL
from enat.unicode import composed, finder

MAX_CLASSES = 100_000  # a larger number is a name, such as a date, and no class id


def read_labels(folder: Path, labels: Path) -> list[tuple[str, str]]:
    """Returns the file and the class of each row of a CSV file with the columns `file` and `class`.

    Args:
        folder: of the images; the files are named relative to it.
        labels: the CSV file.

    Raises:
        InputError: for a file that is missing or another one, a row without a file or a class or with further values,
            and an image that is not there or listed twice.
    """
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval=""))
        files_and_classes = [(row["file"], row["class"].strip()) for row in rows]
    except OSError as error:
        raise InputError(f"labels={labels}: can't be read: {error.strerror}.") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"labels={labels}: expected a CSV file with the columns file and class.") from error
    for number, row in enumerate(rows, start=1):
        if None in row:  # where `DictReader` puts the values for which there is no column
            raise InputError(
                f"labels={labels}: row {number} has more values than there are columns; expected quotes around a name "
                "with commas."
            )
    files_and_classes = _as_stored(folder, files_and_classes)
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


def _as_stored(folder: Path, files_and_classes: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the rows with the names of files as the disk has them, in whatever Unicode form, see `enat.unicode`."""
    if all(exists(folder / name) for name, _ in files_and_classes):
        return files_and_classes
    stored = {composed(name): name for path in sorted(folder.rglob("*")) if (name := str(path.relative_to(folder)))}
    return [
        (name if exists(folder / name) else stored.get(composed(name), name), class_name)
        for name, class_name in files_and_classes
    ]


def number_classes(names: set[str], classes: Path | None) -> tuple[list[str], dict[str, int]]:
    """Returns the class names in the order of their ids, and the id of each name, see `data.images.ImageList.find`."""
    if classes is not None:
        ordered = _read_classes(classes)
        find = finder(ordered)
        places = {name: find(name) for name in sorted(names)}
        if unknown := [name for name, place in places.items() if place is None]:
            raise InputError(f"classes={classes}: the class {unknown[0]} is not in it.")
        for name in ordered:
            _check_class_name(name)
        return ordered, {name: place for name, place in places.items() if place is not None}
    if all(name.isascii() and name.isdigit() for name in names):
        ids = {name: int(name) for name in names}  # "007" is 7
        if len(set(ids.values())) == len(ids) and max(ids.values()) < MAX_CLASSES:
            return [str(class_id) for class_id in range(max(ids.values()) + 1)], ids
    ordered = sorted(names)
    forms: dict[str, str] = {}
    for name in ordered:
        _check_class_name(name)
        if forms.setdefault(composed(name), name) != name:
            raise InputError(
                f"the class {name} is there in two forms of Unicode that look the same; expected one of them, or "
                "classes=FILE."
            )
    return ordered, {name: class_id for class_id, name in enumerate(ordered)}


def _check_class_name(name: str) -> None:
    """Refuses a name that could not be printed or asked for, whether the class has images or not."""
    try:
        without_controls(name)
    except ValueError as error:
        raise InputError(f"a class is named {name!r}; expected a name without control characters.") from error
    if name == UNCONDITIONAL:
        raise InputError(f"a class is named {name}, which stands for images of no class; expected another name.")


def _read_classes(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise InputError(f"classes={path}: can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"classes={path}: expected a text file with a class name on each line.") from error
    names = [line for line in lines if line]
    if len(set(names)) < len(names):
        raise InputError(f"classes={path}: a class is named twice.")
    return names
