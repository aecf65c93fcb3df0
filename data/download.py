"""Downloads a single file over http(s), which goes on where it was stopped."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from enat.errors import InputError
from enat.files import sha256_of

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

TIMEOUT = 60  # seconds without a byte
CHUNK = 2**20  # bytes
MAX_DIGITS = 18  # of a number of bytes
NO_FILES = {  # types of what a server sends in place of a file
    "text/html": "a web page",
    "application/xhtml+xml": "a web page",
    "application/json": "JSON",
    "application/problem+json": "JSON",
    "text/xml": "XML",
}
RANGE_NOT_SATISFIABLE = 416


def download_file(
    url: str, path: Path, sha256: str | None = None, on_progress: Callable[[int, int | None], None] = lambda *_: None
) -> str:
    """Downloads a file. What an earlier call has fetched of the same version of the file is not fetched again.

    Args:
        url: of http or https.
        path: where the file goes; until it is complete, it is called PATH.partial.
        sha256: of the file, or the first digits of it; None checks nothing.
        on_progress: is called with the number of bytes that are there, and of all of them if the server says it.

    Returns:
        The file's sha256.

    Raises:
        InputError: if the file can't be fetched, is a web page, has another sha256, or another process downloads it.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: expected an address of http or https.")
    address = quote(url, safe=":/?#[]@!$&'()*+,;=%")  # letters outside ASCII and spaces, as a browser sends them
    partial = path.with_name(f"{path.name}.partial")
    version = path.with_name(f"{path.name}.version")  # the server's mark of the version that the part is of
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_links(partial, version)
    with _open_alone(partial, url) as file:
        _fetch(url, address, partial, version, file, on_progress)
        _refuse_page(url, partial)
        digest = sha256_of(partial)
        version.unlink()
        if sha256 is not None and not digest.startswith(sha256.lower()):
            partial.unlink()
            raise InputError(f"{url}: the sha256 of the file is {digest}; expected {sha256}. It was removed.")
        partial.replace(path)
    return digest


@contextmanager
def _open_alone(partial: Path, url: str) -> Iterator[BinaryIO]:
    """Opens the part of a file to append to it, and holds it for this process; an empty part is removed at the end.

    Raises:
        InputError: if another process holds it, or it can't be opened.
    """
    try:
        file = partial.open("ab")
    except OSError as error:
        raise InputError(f"{partial}: can't be written: {error.strerror}.") from error
    with file:
        if not _lock(file) or not _is_at(file, partial):  # or else another process has just renamed or removed it
            raise InputError(f"{url}: another process is downloading it to {partial}; wait until it is done.")
        try:
            yield file
        finally:
            if _is_at(file, partial) and not partial.stat().st_size:
                partial.unlink()


def _lock(file: BinaryIO) -> bool:
    """Locks a file until it is closed; returns whether no other process has locked it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the disk knows no locks; `_check_size` notices what a second process has written
        return True
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Says whether an open file is the one that a path leads to."""
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _fetch(
    url: str,
    address: str,
    partial: Path,
    version: Path,
    file: BinaryIO,
    on_progress: Callable[[int, int | None], None],
) -> None:
    """Fetches what is missing of a file and appends it to the part that is there, which is open as `file`.

    Raises:
        InputError: if the file can't be fetched, or only a part of it.
    """
    known = version.read_text() if version.exists() else ""  # without a mark, a part can't be told from another's
    done = partial.stat().st_size if known else 0
    headers = {"Range": f"bytes={done}-", "If-Range": known} if done else {}
    try:
        with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
            _refuse_other_content(url, response.headers.get_content_type())
            done = done if response.status == 206 else 0  # 206: the rest; 200: the whole file
            length = _bytes_of(response.headers.get("Content-Length"))
            total = None if length is None else done + length
            version.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
            file.truncate(done)
            done = _copy(response, file, done, total, on_progress)
            file.flush()
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not done:
            raise InputError(f"{url}: the server answers {error.code} ({error.reason}).") from error
        total = _bytes_of((error.headers.get("Content-Range") or "").rpartition("/")[2])
        if done != total:  # or else all of it is there, and only its name is missing
            partial.unlink()
            raise InputError(f"{url}: the file has changed since a part of it was fetched; try again.") from error
    except InputError:  # which is a ValueError, too
        raise
    except (ValueError, InvalidURL, URLError) as error:
        raise InputError(f"{url}: can't be reached ({getattr(error, 'reason', error)}).") from error
    except (OSError, HTTPException) as error:
        raise InputError(f"{url}: the download stopped ({error}); the same command continues it.") from error
    _check_size(url, partial, done, total)


def _check_size(url: str, partial: Path, done: int, total: int | None) -> None:
    """Compares the size of a file on the disk with what was written and with what the server says.

    Raises:
        InputError: if it has another size; a file that another process has written to is removed.
    """
    size = partial.stat().st_size if partial.exists() else 0
    if size != done:
        partial.unlink(missing_ok=True)
        raise InputError(
            f"{url}: {partial} has {size:,} bytes instead of {done:,}, since another process writes to it, too; it was "
            "removed. Start the same command again, once."
        )
    if total is not None and size < total:
        raise InputError(f"{url}: the download stopped at {size:,} of {total:,} bytes; the same command continues it.")


def _remove_links(*paths: Path) -> None:
    """Removes links in the place of files that are to be written, so that what they lead to stays as it is.

    Raises:
        InputError: for a folder, a pipe or a device in such a place.
    """
    for path in paths:
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
            path.unlink()
        elif path.exists() and not path.is_file():
            raise InputError(f"{path}: this is no file; expected it to be removed, or another folder.")


def _bytes_of(text: str | None) -> int | None:
    """Returns a number of bytes in a header; None for any other text."""
    return int(text) if text and text.isdecimal() and len(text) <= MAX_DIGITS else None


def _refuse_other_content(url: str, kind: str) -> None:
    """Raises InputError if the type that a server gives is one of `NO_FILES`."""
    if kind in NO_FILES:
        raise InputError(f"{url}: the server gives {NO_FILES[kind]} instead of the file; open it in a browser.")


def _refuse_page(url: str, partial: Path) -> None:
    """Raises InputError for an empty file, and for a web page that a server gave another type, which is removed."""
    if not partial.stat().st_size:
        raise InputError(f"{url}: the server sends an empty file.")
    with partial.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        partial.unlink()
        raise InputError(f"{url}: the server gives a web page instead of the file; open it in a browser.")


def _copy(
    response: BinaryIO, file: BinaryIO, done: int, total: int | None, on_progress: Callable[[int, int | None], None]
) -> int:
    """Copies what a server sends to a file; returns how many bytes are there then."""
    while chunk := response.read(CHUNK):
        file.write(chunk)
        done += len(chunk)
        on_progress(done, total)
    return done
