"""Downloads remote shards. A URL may be of http(s) or of any other file system that fsspec can read."""

import hashlib
import re
from pathlib import Path
from typing import Any

import fsspec
from aiohttp import ClientError, ClientTimeout

from data.credentials import without_credentials
from data.manifest import Manifest
from enat.errors import InputError
from enat.files import sha256_of, write_atomically

MAX_MANIFEST = 2**24  # bytes
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
        content = _file_of(folder_or_url, shard.name, shard.bytes)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            url = without_credentials(_url_of(folder_or_url, shard.name))
            raise InputError(f"{url}: the shard was altered; its sha256 is not the manifest's.")
        write_atomically(path, content)
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
    write_atomically(copy, _file_of(folder_or_url, copy.name, MAX_MANIFEST))
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


def _file_of(url: str, name: str, at_most: int) -> bytes:
    """Downloads a file of the folder of a URL; an error names it without passwords and access keys."""
    try:
        return _download(_url_of(url, name), at_most)
    except InputError as error:
        raise InputError(without_credentials(str(error))) from None


def _download(url: str, at_most: int) -> bytes:
    """Returns the content of a URL, of at most so many bytes; a server may not take forever, nor send much more."""
    options: dict[str, Any] = {}
    if url.startswith("http"):
        options["block_size"] = 0  # as a stream: of a range, fsspec takes all that the server sends
        options["client_kwargs"] = {"timeout": ClientTimeout(total=PATIENCE + at_most / SLOWEST, sock_read=PATIENCE)}
    try:
        content = bytearray()
        with fsspec.open(url, "rb", **options) as file:
            while len(content) <= at_most and (part := file.read(at_most + 1 - len(content))):
                content += part
    except FileNotFoundError as error:
        raise InputError(f"{url}: there is no such file on the server.") from error
    except (OSError, ImportError, ValueError, ClientError) as error:
        reason = "the server is too slow" if isinstance(error, TimeoutError) else error
        raise InputError(f"{url}: can't be read: {reason}.") from error
    if len(content) > at_most:
        raise InputError(f"{url}: more than {at_most:,} bytes, which is too long for this file.")
    return bytes(content)
