"""Hashes the files and folders that the options of a job name, so that its results are not taken for those of others.

The options are those of the command and of YAML files.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from enat.files import exists, sha256_of, weights_file

# Options that name what a task reads and no task changes, such as `data.shards` or `tokenizer.weights`.
NAMES = ("classes", "image", "images", "labels", "mask", "other", "path", "shards", "weights")
ELSEWHERE = ("task", "weights")  # the first refers to other options; the record of a job has the second by itself


def data_sha256(config: DictConfig) -> dict[str, str]:
    """Returns a hash of what each option names, by the name of the option, such as `data.shards.sha256`.

    Left out is what the job writes itself, and what is not on a disk of this machine.

    Args:
        config: of a job, with the folder of the job as `output`.
    """
    hashes = {}
    content = OmegaConf.to_container(config)
    assert isinstance(content, dict)
    for option in _options({name: part for name, part in content.items() if name not in ELSEWHERE}):
        value = OmegaConf.select(config, option, throw_on_resolution_failure=False)
        several = OmegaConf.is_list(value)
        for number, path in enumerate(value if several else [value]):
            if not isinstance(path, str) or not path or Path(path).is_relative_to(config.output):
                continue
            if (sha256 := sha256_at(Path(path))) is not None:
                hashes[f"{option}[{number}].sha256" if several else f"{option}.sha256"] = sha256
    return hashes


def sha256_at(path: Path) -> str | None:
    """Returns a hash of a file, of shards, of weights, or of the images in a folder; None if there is none."""
    files = _files_of(path) if exists(path) else []
    state = tuple((stat.st_size, stat.st_mtime_ns) for stat in (file.stat() for file in files))
    return _hash_of(path, tuple(files), state) if files else None


def _options(part: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """Gives the full names of all options in a part of a configuration that are called as in `NAMES`."""
    for name, value in part.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{name}.")
        elif name in NAMES:
            yield f"{prefix}{name}"


def _files_of(path: Path) -> list[Path]:
    """Returns what is at a path: a file, or a folder's weights, its manifest of shards, or its images."""
    from data.images import find_images  # here, since it imports torch

    for file in (weights_file(path), path / "manifest.json"):
        if file.is_file():
            return [file]
    return find_images(path)[0] if path.is_dir() else []


@lru_cache(maxsize=64)
def _hash_of(path: Path, files: tuple[Path, ...], state: tuple[tuple[int, int], ...]) -> str:
    """Returns a hash of files, which are read once for all jobs of a process as long as their state is the same."""
    from data.image_module import listing_sha256  # here, since it imports torch

    return sha256_of(path) if files == (path,) else listing_sha256(path, files)
