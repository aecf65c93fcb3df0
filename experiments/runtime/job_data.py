"""Hashes the data that the options of a job name, so that a finished job is not taken for one on other data."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from enat.files import sha256_of

# Options that name data which a task reads and no task changes.
OF_DATA = ("data.shards", "data.images", "scored.path", "reference.path", "metrics.images", "images")


def data_sha256(overrides: Sequence[str]) -> dict[str, str]:
    """Returns a hash of the data that each override names, by the name of its option, such as `scored.path.sha256`.

    Left out are data that are not on a disk of this machine.

    Args:
        overrides: of a job.
    """
    hashes = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        value = None if override.is_delete() else override.value()
        name = override.key_or_group
        if name in OF_DATA and isinstance(value, str) and value and (files := _files_of(Path(value))):
            stats = [file.stat() for file in files]
            state = tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)
            hashes[f"{name}.sha256"] = _hash_of(Path(value), tuple(files), state)
    return hashes


def _files_of(path: Path) -> list[Path]:
    """Returns what is at a path: a file, the manifest of shards, which has their hashes, or the images in a folder."""
    from data.images import find_images  # here, since it imports torch

    manifest = path / "manifest.json"
    if path.is_file():
        return [path]
    if manifest.is_file():
        return [manifest]
    return find_images(path)[0] if path.is_dir() else []


@lru_cache(maxsize=64)
def _hash_of(path: Path, files: tuple[Path, ...], state: tuple[tuple[int, int], ...]) -> str:
    """Returns a hash of files, which are read once for all jobs of a process as long as their state is the same."""
    from data.image_module import listing_sha256  # here, since it imports torch

    return sha256_of(path) if files == (path,) else listing_sha256(path, files)
