"""Writes files whole or not at all, and tells files and the work in folders from one another."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from enat.errors import InputError

MAX_DEPTH = 50  # of nested settings; those of this project have about ten
MAX_SETTINGS = 100_000  # values; those of this project have some hundred
MAX_VALUES = 10_000_000  # in a whole file
MAX_TEXT = 2**28  # bytes of a file of settings or results
EXPECTED = "expected a file that this program has written, or none"
CHOICES = "another output=DIR, or resume=false for a new folder"  # what a user can do about work of other settings
MARK = ".made_by_enat"  # a file in folders that this program may remove
MODEL = "model.safetensors"  # the weights of the network, in a folder that task=export wrote


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name, syncs it, and renames it; an earlier file stays whole until then.

    Args:
        path: of the file.
        content: the bytes of the file, or a function that writes them to an open file.

    Raises:
        InputError: if the file can't be written, for lack of space for example. No part of it is left then.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")  # several machines may write here
    try:
        with temporary.open("xb") as file:  # which follows no link
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch turns a file's errors into its own
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: can't be written: {cause.strerror}; an earlier file is unchanged.") from error
    finally:
        with suppress(OSError):  # the sentence above says what is wrong with the disk or the name
            temporary.unlink(missing_ok=True)  # what an error has left of it


def make_own_folder(folder: Path) -> None:
    """Makes a folder for files that `remove_own_folder` may remove later; a mark in it says so.

    Raises:
        InputError: if there are files of somebody else in it already.
    """
    is_others = folder.is_symlink() or (folder.exists() and not folder.is_dir())
    if is_others or (folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).exists()):
        raise InputError(f"{folder}: this exists already and is of another program; expected another output=DIR.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def remove_own_folder(folder: Path) -> None:
    """Removes a folder that `make_own_folder` has made, and leaves any other as it is."""
    if folder.is_symlink() or not (folder / MARK).exists():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).unlink()  # last, so that what a killed process has left is still known as ours
    folder.rmdir()


def weights_file(path: str | Path) -> Path:
    """Returns the file with the weights: `model.safetensors` of a folder of weights; another path itself."""
    path = Path(path)
    return path / MODEL if path.is_dir() else path


def exists(path: str | Path) -> bool:
    """Says whether there is something at a path, which may be a text that no file can be called."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def expand_home(path: Path) -> Path:
    """Returns a path in which `~` at the beginning stands for the home folder."""
    return path.expanduser() if path.parts[:1] == ("~",) else path


def lost_link(path: Path) -> str | None:
    """Returns a sentence on a link that leads nowhere, such as to a scratch disk that was cleared; None for others."""
    if not path.is_symlink() or exists(path):
        return None
    return f"{path}: a link to {path.readlink()}, which does not exist; expected it to be made, or no link."


def refuse_lost_links(folder: Path) -> None:
    """Refuses links in a folder that lead nowhere and stand in the place of folders, whose names have no suffix.

    A link in the place of a file is replaced when the file is written.

    Raises:
        InputError: naming the first.
    """
    for path in sorted(folder.iterdir()):
        if not path.suffix and (sentence := lost_link(path)) is not None:
            raise InputError(sentence)


def make_before(folder: Path) -> Path:
    """Makes the first of `before_1`, `before_2` ... in a folder that is free, for results that don't count any more."""
    number = 1
    while (before := folder / f"before_{number}").exists():
        number += 1
    before.mkdir()
    return before


def is_open(folder: Path) -> bool:
    """Says whether the files of a folder may be listed and opened."""
    return os.access(folder, os.R_OK | os.X_OK)


def sha256_of(path: str | Path) -> str:
    """Returns the sha256 of a file's content, which is read in parts."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_if_readable(path: str | Path) -> str:
    """Returns the sha256 of a file's content, or `unreadable` for a file that the disk does not give."""
    try:
        return sha256_of(path)
    except OSError:
        return "unreadable"


def sha256_of_bytes(content: bytes) -> str:
    """Returns the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def refuse_other_work(
    folder: Path,
    earlier: Mapping[str, Any],
    wanted: Mapping[str, Any],
    what: str,
    choices: str = CHOICES,
) -> None:
    """Refuses to go on in a folder whose work was begun with other settings.

    Where a class is defined does not count, so that work goes on after a class has moved: of a `_target_`, only the
    last part of the name is compared. A setting that is missing counts as null.

    Args:
        folder: of the work.
        earlier: the settings of the work in the folder, plain values that may nest.
        wanted: the settings that are asked for now.
        what: the folder holds, such as "another run".
        choices: what the user can do other than to use the earlier settings.

    Raises:
        InputError: if settings differ; it names each with its earlier and its present value.
    """
    before = by_full_name(earlier)
    now = by_full_name(wanted)
    changes = [
        f"{name}: {_shown(before.get(name))} before, {_shown(now.get(name))} now"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    if changes:
        raise InputError(
            f"{folder}: the folder holds {what} ({'; '.join(changes)}); expected the same settings, {choices}."
        )


def refuse_other_content(
    folder: Path, recorded: Any, hashes: Mapping[str, str], what: str, choices: str = CHOICES
) -> None:
    """Refuses to replace results of files that have other content now; a hash that is not known is not compared.

    Args:
        folder, what, choices: see `refuse_other_work`.
        recorded: the hashes that the folder's record has, by name; other values, such as None, are no hashes.
        hashes: the same of now.

    Raises:
        InputError: naming what differs.
    """
    earlier = recorded if isinstance(recorded, dict) else {}
    known = earlier.keys() & hashes.keys()
    before, now = ({name: part[name] for name in known} for part in (earlier, hashes))
    refuse_other_work(folder, before, now, what, choices)


def read_text(path: Path, at_most: int = MAX_TEXT) -> str:
    """Returns the text of a file of a folder that may come from anybody.

    Raises:
        InputError: for a pipe or a device, which may never end, for more than `at_most` bytes, and for what is no text.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; {EXPECTED}.")
    try:
        with path.open("rb") as file:
            content = file.read(at_most + 1)
        text = content.decode()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text; {EXPECTED}.") from error
    if len(content) > at_most:
        raise InputError(f"{path} has more than {at_most:,} bytes; {EXPECTED}.")
    return text


def read_record(path: Path, at_most: int = MAX_TEXT) -> dict[str, Any]:
    """Returns what a JSON file of a folder that may come from anybody says, by name.

    Raises:
        InputError: for what `read_text` refuses, and for a file that is no JSON, nests too deep or has no names.
    """
    text = read_text(path, at_most)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise InputError(f"{path} nests too deep; {EXPECTED}.") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON; {EXPECTED}.") from error
    values_of(content, path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no values by name; {EXPECTED}.")
    return content


def values_of(content: Any, what: Any, at_most: int = MAX_VALUES) -> list[Any]:
    """Returns all values in nested content, whether they hold others or not.

    A pickle may hold a dictionary that is in itself, or lists that each hold another one twice, so that to walk through
    all of it takes forever.

    Args:
        content: dictionaries, lists, tuples and sets of anything.
        what: begins the sentence about what is wrong.
        at_most: so many values.

    Raises:
        InputError: if there are more values, or if they nest more than `MAX_DEPTH` levels deep.
    """
    values: list[Any] = []
    level = [content]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for node in level:
            if not isinstance(node, dict | list | tuple | set | frozenset):
                continue
            if len(values) + len(inner) + len(node) > at_most:
                raise InputError(f"{what}: what it says of itself has more than {at_most:,} values.")
            inner += node.values() if isinstance(node, dict) else node
        values += inner
        level = inner
    if level:
        raise InputError(f"{what}: what it says of itself nests more than {MAX_DEPTH} levels deep.")
    return values


def part_of(settings: Any, name: str) -> Any:
    """Returns the part of nested settings with a dotted name, such as `module.net`; None if there is none."""
    for key in name.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def by_full_name(settings: Any, name: str = "") -> dict[str, Any]:
    """Flattens nested settings: {"module": {"net": {"width": 96}}} becomes {"module.net.width": 96}."""
    if isinstance(settings, Mapping):
        named = {f"{name}.{key}" if name else str(key): value for key, value in settings.items()}
    elif isinstance(settings, list | tuple):
        if not any(isinstance(value, Mapping) for value in settings):
            return {name: list(settings)}
        named = {f"{name}[{index}]": value for index, value in enumerate(settings)}
    else:
        return {name: str(settings).rpartition(".")[2] if name.endswith("_target_") else settings}
    return {full: value for key, part in named.items() for full, value in by_full_name(part, key).items()}


def _shown(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:8]}..."  # of a sha256, enough to tell it from another
    return value if isinstance(value, str) else json.dumps(value, default=str)
