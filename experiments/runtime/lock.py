"""Keeps a second process from writing into the folder of a run that is under way."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NotRequired

from pydantic import ConfigDict
from typing_extensions import TypedDict  # of typing, pydantic needs that of Python 3.12

from enat.checkpoints.description import check_description
from enat.errors import InputError
from enat.files import read_record
from experiments.runtime.ranks import is_first

LOCK = "in_use.json"
MAX_LOCK = 2**16  # bytes


class Holder(TypedDict):
    """What a lock says of the process that holds the folder."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    host: str
    process: int
    job: str | None
    began: int | None
    folder: NotRequired[str | None]  # older versions do not say it


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a folder for this process and the ranks that it leads; a lock whose process is gone does not count.

    Raises:
        InputError: if another process holds the folder.
    """
    if not is_first():  # the first rank holds the folder for all
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    own |= {"began": _beginning(os.getpid()), "folder": str(folder.resolve())}
    with _holding(folder / LOCK, own):
        yield


@contextmanager
def _holding(path: Path, own: dict[str, Any]) -> Iterator[None]:
    """Holds a lock, and in the end removes it, unless another one is in its place."""
    while True:
        try:
            with path.open("x") as file:  # which only one of two processes can do
                json.dump(own, file)
            break
        except FileExistsError:
            _remove_if_gone(path, own)
    try:
        yield
    finally:
        with suppress(InputError):  # something else is in its place
            _remove(path, own)


def _remove(path: Path, holder: dict[str, Any]) -> None:
    """Removes the lock of a holder, and no other one."""
    if _read(path) == holder:
        path.unlink(missing_ok=True)


def _remove_if_gone(path: Path, own: dict[str, Any]) -> None:
    """Removes a lock whose process has ended.

    Several processes may see that at the same time, and the first of them may already hold a new lock when the second
    comes to remove the old one. So only the holder of a further lock removes one, after it has read it once more.

    Raises:
        InputError: if the process is at work, or is on another machine, where this one can't look.
    """
    holder = _read(path)
    if holder is None:
        return
    is_same_job = own["job"] is not None and holder["job"] == own["job"]  # which SLURM has put into its queue again
    is_here = holder["host"] == own["host"]
    is_other = holder.get("folder") not in (None, own["folder"])  # this folder is a copy of one that is in use
    is_alive = holder["process"] != os.getpid() and _is_running(holder["process"], holder["began"])
    is_at_work = is_here and is_alive and not is_other
    if is_at_work or not (is_here or is_same_job):
        raise InputError(
            f"{path.parent}: process {holder['process']} on {holder['host']} is at work in this folder; expected "
            f"another output=DIR. If it is gone, delete {path}."
        )
    with _holding(path.with_name(f"{path.name}.removal"), own):
        _remove(path, holder)


def _read(path: Path) -> dict[str, Any] | None:
    """Reads a lock, which its process may just be writing; None if it has been removed.

    Raises:
        InputError: if there is something else in the file, or a link, a pipe or a folder in its place.
    """
    for _ in range(20):
        if path.is_symlink():
            break
        if not path.exists():
            return None
        try:
            holder = read_record(path, MAX_LOCK)
            check_description(holder, Holder, f"{path}:")
            return holder
        except InputError:
            time.sleep(0.1)
    raise InputError(f"{path}: this is no lock of a run; delete it.")


def _is_running(process: int, began: int | None) -> bool:
    """Says whether there is a process of this machine with a number, which began then if that is known."""
    if _beginning(process) != began:  # the number is that of a later process
        return False
    try:
        os.kill(process, 0)  # sends nothing
    except PermissionError:  # it is another user's
        return True
    except (OSError, OverflowError):
        return False
    return True


def _beginning(process: int) -> int | None:
    """Returns when a process of this machine began, in clock ticks; None if there is none, and on macOS."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
