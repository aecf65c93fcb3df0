"""Downloads a single file over http(s), which goes on where it was stopped."""

from collections.abc import Callable
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from enat.errors import InputError
from enat.files import sha256_of

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
        InputError: if the file can't be fetched, is a web page, or has another sha256.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: expected an address of http or https.")
    address = quote(url, safe=":/?#[]@!$&'()*+,;=%")  # letters outside ASCII and spaces, as a browser sends them
    partial = path.with_name(f"{path.name}.partial")
    version = path.with_name(f"{path.name}.version")  # the server's mark of the version that the part is of
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_links(partial, version)
    known = version.read_text() if version.exists() else ""  # without a mark, a part can't be told from another's
    done = partial.stat().st_size if partial.exists() and known else 0
    headers = {"Range": f"bytes={done}-", "If-Range": known} if done else {}
    try:
        with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
            _refuse_other_content(url, response.headers.get_content_type())
            done = done if response.status == 206 else 0  # 206: the rest; 200: the whole file
            length = _bytes_of(response.headers.get("Content-Length"))
            total = None if length is None else done + length
            version.write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
            with partial.open("ab" if done else "wb") as file:
                done = _copy(response, file, done, total, on_progress)
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
    if total is not None and done < total:
        raise InputError(f"{url}: the download stopped at {done:,} of {total:,} bytes; the same command continues it.")
    _refuse_page(url, partial)
    digest = sha256_of(partial)
    version.unlink()
    if sha256 is not None and not digest.startswith(sha256.lower()):
        partial.unlink()
        raise InputError(f"{url}: the sha256 of the file is {digest}; expected {sha256}. It was removed.")
    partial.replace(path)
    return digest


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
