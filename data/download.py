"""Downloads a single file over http(s), which goes on where it was stopped."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse, InvalidURL
from itertools import chain
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
ZIP, PICKLE = b"PK", b"\x80"
STARTS = {".npz": (ZIP,), ".pth": (ZIP, PICKLE), ".pt": (ZIP, PICKLE), ".ckpt": (ZIP, PICKLE)}  # by the ends of names
BLANKS = b"\xef\xbb\xbf \t\r\n"  # which a page may begin with
PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416


class OtherVersionError(InputError):
    """What the server sends does not continue the part of a file that is there."""


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
        InputError: if the file can't be fetched, begins as no such file or has another sha256, or if another process
            downloads it.
    """
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: expected an address of http or https.")
    address = quote(url, safe=":/?#[]@!$&'()*+,;=%")  # letters outside ASCII and spaces, as a browser sends them
    partial = path.with_name(f"{path.name}.partial")
    version = path.with_name(f"{path.name}.version")  # the server's mark of the version that the part is of
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_links(partial, version)
    with _open_alone(partial, version, url) as file:
        _fetch(lambda: _fetch_next(url, address, partial, version, file, on_progress), version)
        digest = sha256_of(partial)
        if sha256 is not None and not digest.startswith(sha256.lower()):
            partial.unlink()
            raise InputError(f"{url}: the sha256 of the file is {digest}; expected {sha256}. It was removed.")
        partial.replace(path)
    return digest


@contextmanager
def _open_alone(partial: Path, version: Path, url: str) -> Iterator[BinaryIO]:
    """Opens the part of a file to append to it, and holds it for this process.

    At the end, an empty part is removed, and the mark of a part that is not there any more.

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
            if not partial.exists() or (_is_at(file, partial) and not partial.stat().st_size):
                partial.unlink(missing_ok=True)
                version.unlink(missing_ok=True)


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


def _fetch(fetch_next: Callable[[], bool], version: Path) -> None:
    """Fetches what is missing of a file; all of it, once, if the server has another version of it by now.

    Args:
        fetch_next: see `_fetch_next`.
        version: the file with the mark of the version that the part is of.

    Raises:
        InputError: if the file can't be fetched, or only a part of it.
    """
    for begins_anew in (False, True):
        try:
            while fetch_next():
                pass  # the server sends less at a time than was asked for
            return
        except OtherVersionError:
            if begins_anew:
                raise
            version.unlink(missing_ok=True)  # without a mark, the part does not count


def _fetch_next(
    url: str,
    address: str,
    partial: Path,
    version: Path,
    file: BinaryIO,
    on_progress: Callable[[int, int | None], None],
) -> bool:
    """Appends what the server sends to the part that is there, which is open as `file`; says whether there is more.

    Raises:
        OtherVersionError: if the server sends another part of the file, or a part of another version of it.
        InputError: if nothing can be fetched, or less than the server has announced.
    """
    known = version.read_text() if version.exists() else ""  # without a mark, a part can't be told from another's
    done = partial.stat().st_size if known else 0
    headers = {"Range": f"bytes={done}-", "If-Range": known} if done else {}
    try:
        with urlopen(Request(address, headers=headers), timeout=TIMEOUT) as response:
            _refuse_compressed(url, response)
            start, end, total = _range_of(response)
            mark = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            if response.status == PARTIAL_CONTENT:
                mark = mark or known
                if not done or (start, mark) != (done, known):
                    raise OtherVersionError(f"{url}: the server sends another part than was asked for; try again.")
            done = start
            chunks = _chunks_of(response, None if end is None else end - start)
            first = next(chunks, b"")
            if not done and (first or not end):
                _refuse_other_content(url, partial.with_suffix("").suffix, first)
            version.write_text(mark)
            file.truncate(done)
            for chunk in chain([first], chunks):
                file.write(chunk)
                done += len(chunk)
                on_progress(done, total)
            file.flush()
    except HTTPError as error:
        return _refuse_unless_complete(url, error, partial, done)
    except InputError:  # which is a ValueError, too
        raise
    except (ValueError, InvalidURL, URLError) as error:
        raise InputError(f"{url}: can't be reached ({getattr(error, 'reason', error)}).") from error
    except (OSError, HTTPException) as error:
        raise InputError(f"{url}: the download stopped ({error}); the same command continues it.") from error
    _check_size(url, partial, done)
    if end is not None and done < end:
        raise InputError(f"{url}: the download stopped at {done:,} of {total:,} bytes; the same command continues it.")
    return total is not None and done < total


def _refuse_unless_complete(url: str, error: HTTPError, partial: Path, done: int) -> bool:
    """Returns False, for there is no more, if a server has no bytes after the part that is there.

    Raises:
        InputError: for any other answer; a part of another file is removed.
    """
    if error.code != RANGE_NOT_SATISFIABLE or not done:
        reason = str(error.reason).partition("\n")[0].rstrip(".")
        raise InputError(f"{url}: the server answers {error.code} ({reason}).") from error
    if done != _bytes_of((error.headers.get("Content-Range") or "").rpartition("/")[2]):
        partial.unlink()
        raise InputError(f"{url}: the file has changed since a part of it was fetched; try again.") from error
    return False


def _range_of(response: HTTPResponse) -> tuple[int, int | None, int | None]:
    """Returns which bytes of a file a server sends: the first, the one after the last, and how many there are in all.

    The first is -1 for a part of which the server does not say all three.
    """
    if response.status != PARTIAL_CONTENT:
        length = _bytes_of(response.headers.get("Content-Length"))
        return 0, length, length
    pattern = rf"bytes (\d{{1,{MAX_DIGITS}}})-(\d{{1,{MAX_DIGITS}}})/(\d{{1,{MAX_DIGITS}}})"
    match = re.fullmatch(pattern, response.headers.get("Content-Range") or "", re.ASCII)
    first, last, total = map(int, match.groups()) if match else (0, 0, 0)
    return (first, last + 1, total) if first <= last < total else (-1, None, None)


def _chunks_of(response: HTTPResponse, length: int | None) -> Iterator[bytes]:
    """Yields what a server sends, at most `length` bytes of it."""
    left = length
    while chunk := response.read(CHUNK if left is None else min(CHUNK, left)):
        yield chunk
        left = None if left is None else left - len(chunk)


def _check_size(url: str, partial: Path, done: int) -> None:
    """Compares the size of a file on the disk with what was written.

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


def _refuse_compressed(url: str, response: HTTPResponse) -> None:
    """Raises InputError for a file that a server has compressed on the way, for which it was not asked."""
    encoding = response.headers.get("Content-Encoding") or "identity"
    if encoding.lower() != "identity":
        raise InputError(f"{url}: the server sends the file compressed ({encoding}); fetch it with a browser.")


def _refuse_other_content(url: str, suffix: str, start: bytes) -> None:
    """Raises InputError for an empty file, a page, and what does not begin as a file of this suffix does."""
    if not start:
        raise InputError(f"{url}: the server sends an empty file.")
    is_page = start.lstrip(BLANKS).startswith(b"<")
    if is_page or not start.startswith(STARTS.get(suffix.lower(), b"")):
        what = "a web page or XML" if is_page else f"no {suffix} file"
        raise InputError(f"{url}: the server gives {what} instead of the file; open it in a browser.")
