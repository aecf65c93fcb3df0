"""Keeps a second process from writing into the folder of a run that is under way."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enat.errors import InputError
from experiments.runtime.ranks import is_first

LOCK = "in_use.json"


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds a folder for this process and the ranks that it leads; a lock whose process is gone does not count.

    Raises:
        InputError: if another process holds the folder.
    """
    path = folder / LOCK
    if not is_first():  # which holds it for all
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    own = {"host": socket.gethostname(), "process": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
    while True:
        try:
            with path.open("x") as file:
                json.dump({**own, "began": _beginning(os.getpid())}, file)
            break
        except FileExistsError:
            _remove_if_gone(path, own)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_if_gone(path: Path, own: dict[str, object]) -> None:
    """Removes a lock whose process has ended.

    Raises:
        InputError: if the process is at work, or is on another machine, where nobody can tell.
    """
    try:
        holder = json.loads(path.read_text())
        host, process = holder["host"], holder["process"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # cut off by a full disk
        host, process, holder = own["host"], 0, {}
    is_same_job = own["job"] is not None and holder.get("job") == own["job"]  # which SLURM has put into its queue again
    is_here = host == own["host"]
    began = _beginning(process)
    is_at_work = is_here and process != os.getpid() and began is not None and began == holder.get("began")
    if is_at_work or not (is_here or is_same_job):
        raise InputError(
            f"{path.parent}: process {process} on {host} is at work in this folder; expected another output=DIR. If it "
            f"is gone, delete {path}."
        )
    path.unlink(missing_ok=True)


def _beginning(process: int) -> int | None:
    """Returns when a process of this machine began, in clock ticks; None if there is no such process."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
