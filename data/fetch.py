"""Downloads remote shards. A URL may be of http(s) or of any other file system that fsspec can read."""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
from aiohttp import ClientError, ClientTimeout

from data.credentials import without_credentials
from data.manifest import Manifest, Shard
from enat.errors import InputError
from enat.files import sha256_of, write_atomically

MAX_MANIFEST = 2**24  # bytes
CHUNK = 2**20  # bytes that are in memory at a time
PATIENCE = 60  # seconds without a byte
SLOWEST = 2**14  # bytes a second
SCHEMES = ("http", "https", "file", "s3", "gs", "az", "abfs", "hf")


def local_folder(folder_or_url: str, cache: Path) -> Path:
    """Returns the local folder of a set of shards: the folder itself, or for a URL a folder below `cache`."""
    if "://" not in folder_or_url and not folder_or_url.startswith("pipe:"):
        return Path(folder_or_url)
    return cache / hashlib.sha256(folder_or_url.encode()).hexdigest()[:16]


def fetch(folder_or_url: str, cache: Path) -> Path:
    """Downloads the manifest of a URL and all shards that are missing or altered in the local folder, and returns it.

    Raises:
        InputError: for a URL of another scheme than `SCHEMES`, which may run programs; for a file
            that can't be read or does not have the sha256 that the manifest gives.
    """
    folder = fetch_manifest(folder_or_url, cache)
    if folder == Path(folder_or_url):
        return folder
    for shard in Manifest.load(folder).all_shards():
        path = folder / shard.name
        if path.exists() and sha256_of(path) == shard.sha256:
            continue
        write_atomically(path, partial(_copy_shard, _url_of(folder_or_url, shard.name), shard))
    return folder


def fetch_manifest(folder_or_url: str, cache: Path) -> Path:
    """Downloads the manifest of a URL alone, and returns its local folder; for the errors see `fetch`."""
    folder = local_folder(folder_or_url, cache)
    if folder == Path(folder_or_url):
        return folder
    scheme = folder_or_url.partition(":")[0]
    if scheme not in SCHEMES:
        url = without_credentials(folder_or_url)
        raise InputError(f"data.shards={url}: expected a folder, or a URL of {', '.join(SCHEMES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "manifest.json"
    content = b"".join(_download(_url_of(folder_or_url, copy.name), MAX_MANIFEST))
    write_atomically(copy, content)
    try:
        Manifest.load(folder)
    except InputError as error:
        url = without_credentials(_url_of(folder_or_url, copy.name))
        raise InputError(str(error).replace(str(copy), url)) from error
    return folder


def _url_of(url: str, name: str) -> str:
    """Returns the URL of a file in the folder of a URL, which may end with a query, such as `?token=...`."""
    place, *query = re.split(r"(?=[?#])", url, maxsplit=1) if url.startswith("http") else [url]
    return "".join([place.rstrip("/"), "/", name, *query])


def _copy_shard(url: str, shard: Shard, file: IO[bytes]) -> None:
    """Copies a shard from a server to a file.

    Raises:
        InputError: if it can't be read, or does not have the sha256 that the manifest gives.
    """
    digest = hashlib.sha256()
    for part in _download(url, shard.bytes):
        digest.update(part)
        file.write(part)
    if digest.hexdigest() != shard.sha256:
        raise InputError(
            f"{without_credentials(url)}: the shard was altered; its sha256 is not the manifest's. The same command "
            "fetches it again; if that does not help, expected the shard that the manifest names on the server."
        )


def _download(url: str, at_most: int) -> Iterator[bytes]:
    """Yields the content of a URL in parts; a server may not take forever, nor send much more than `at_most` bytes.

    Raises:
        InputError: if it can't be read, or is longer; it names the URL without passwords and access keys.
    """
    options: dict[str, Any] = {}
    if url.startswith("http"):
        options["block_size"] = 0  # as a stream: of a range, fsspec takes all that the server sends
        options["client_kwargs"] = {"timeout": ClientTimeout(total=PATIENCE + at_most / SLOWEST, sock_read=PATIENCE)}
    shown = without_credentials(url)
    try:
        taken = 0
        with fsspec.open(url, "rb", **options) as file:
            while taken <= at_most and (part := file.read(min(CHUNK, at_most + 1 - taken))):
                taken += len(part)
                yield part
    except FileNotFoundError as error:
        raise InputError(f"{shown}: there is no such file on the server.") from error
    except (OSError, ImportError, ValueError, ClientError) as error:
        reason = "the server is too slow" if isinstance(error, TimeoutError) else without_credentials(str(error))
        raise InputError(f"{shown}: can't be read: {reason}.") from None  # the error itself has the whole URL
    if taken > at_most:
        raise InputError(f"{shown}: more than {at_most:,} bytes, which is too long for this file.")
