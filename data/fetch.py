"""Brings remote shards to this machine. A URL is of http(s), or of any other file system that fsspec knows."""

import hashlib
from pathlib import Path

import fsspec
from aiohttp import ClientError

from data.shards import Manifest, write_atomically
from enat.errors import InputError


def local_folder(place: str, cache: Path) -> Path:
    """Where a folder's shards lie on this machine: a local one as it is, a remote one below `cache`."""
    if "://" not in place and not place.startswith("pipe:"):
        return Path(place)
    return cache / hashlib.sha256(place.encode()).hexdigest()[:16]


def fetch(place: str, cache: Path) -> Path:
    """Copies the manifest and the shards of a URL that are not yet here; returns the local folder.

    Raises:
        InputError: for a URL of a kind that is not known (`pipe:` runs shell commands and is refused), or a file
            that can't be read, or is not what the manifest says.
    """
    folder = local_folder(place, cache)
    if folder == Path(place):
        return folder
    scheme = place.partition(":")[0]
    if scheme not in fsspec.available_protocols() or scheme in ("pipe", "cached", "simplecache"):
        raise InputError(f"data.shards={place}: expected a folder, or a URL of http, https or another fsspec scheme.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "manifest.json", _read(f"{place}/manifest.json"))
    for shard in (shard for shards in Manifest.load(folder).splits.values() for shard in shards):
        path = folder / shard.name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256:
            continue
        content = _read(f"{place}/{shard.name}")
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise InputError(f"{place}/{shard.name}: the shard was altered; its sha256 is not the manifest's.")
        write_atomically(path, content)
    return folder


def _read(url: str) -> bytes:
    try:
        with fsspec.open(url, "rb") as file:
            return file.read()
    except (OSError, ImportError, ValueError, ClientError) as error:
        raise InputError(f"{url}: can't be read: {error}.") from error
