"""Keeps the output of a task out of the folders of images that it reads: its pictures would count as images of them.

This is checked before Hydra makes the output folder, for a class folder of images may not be empty.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError
from enat.files import exists, part_of

FOLDERS = ("images", "image", "path")  # options that name a folder of images, or something else such as shards
REFERENCE = re.compile(r"\$\{(\w[\w.]*)\}")


def refuse_output_among_images(config: DictConfig) -> None:
    """Refuses an output folder that lies in a folder of images of which the task, or one of its stages, reads all.

    Args:
        config: of a command, or of a job of a multirun.

    Raises:
        InputError: naming the option of the images.
    """
    is_multirun = config.hydra.mode == RunMode.MULTIRUN
    option = "hydra.sweep.dir" if is_multirun else "output"
    output = OmegaConf.select(config, option, throw_on_resolution_failure=False, throw_on_missing=False)
    if not isinstance(output, str):
        return
    content: Any = OmegaConf.to_container(config, resolve=False)
    for name in names_reached(content, "task", set()):
        if name.rpartition(".")[2] not in FOLDERS:
            continue
        value = OmegaConf.select(config, name, throw_on_resolution_failure=False, throw_on_missing=False)
        for folder in value if OmegaConf.is_list(value) else [value]:
            if isinstance(folder, str) and _is_among_images(output, folder):
                raise InputError(
                    f"{name}={folder}: {option}={output} would lie inside this folder of images, so that pictures in "
                    f"it would count as images; expected {'output' if not is_multirun else option}=DIR outside of it."
                )


def _is_among_images(output: str, folder: str) -> bool:
    if not exists(folder) or not Path(folder).is_dir() or (Path(folder) / "manifest.json").is_file():
        return False  # the last is a folder of shards
    return Path(output).resolve().is_relative_to(Path(folder).resolve())


def names_reached(content: Any, name: str, seen: set[str]) -> Iterator[str]:
    """Gives the names, as a user types them, of a part of a configuration and of all that it holds or refers to.

    A part comes after those that it holds or refers to.

    Args:
        content: the whole configuration, as plain values with references such as `${data.images}`.
        name: of the part.
        seen: names of parts that have been looked at.
    """
    if name in seen:
        return
    seen.add(name)
    part = part_of(content, name)
    if isinstance(part, dict):
        for key in part:
            yield from names_reached(content, f"{name}.{key}", seen)
    if isinstance(part, str):
        for reference in REFERENCE.findall(part):
            yield from names_reached(content, reference, seen)
    yield name
