"""Files written whole or not at all, and what tells one from another."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from enat.errors import InputError


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a temporary name, syncs it, and renames it; what was there stays whole until then.

    Args:
        path: of the file.
        content: its bytes, or what writes them to an open file.

    Raises:
        InputError: if it can't be written, for want of space or else; nothing is left of it then.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__  # torch turns a file's errors into its own
        if not isinstance(cause, OSError):
            raise
        raise InputError(f"{path}: can't be written: {cause.strerror}; what was there before is whole.") from error


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file's content, read in parts."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
