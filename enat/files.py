"""Files written whole or not at all, and what tells one from another."""

import hashlib
import os
from pathlib import Path

from enat.errors import InputError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name, syncs it, and renames it.

    Raises:
        InputError: if it can't be written, for want of space or else; nothing is left of it then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path}: can't be written: {error.strerror}.") from error


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's content, read in parts."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
