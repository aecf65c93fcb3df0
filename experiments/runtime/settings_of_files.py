"""Checks the settings that a checkpoint, a folder of weights or a manifest of shards has, before Hydra sees them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from enat.errors import InputError
from enat.files import by_full_name
from experiments.runtime.options import CONF
from experiments.runtime.targets import is_allowed

# What the settings of a file may have built, since the file may come from anybody.
OF_FILES = (
    *(f"enat.{part}." for part in ("net", "variants", "reuse", "packed", "kernels", "masking", "loss", "module")),
    *(f"enat.{part}." for part in ("sampler", "schedules", "orders", "corrections", "tokenizers")),
    *(f"enat.{part}." for part in ("features", "metrics")),
    *("data.references.", "data.scored_images.", "data.toy.digits.", "data.image_module.", "torchmetrics."),
    *("torch.optim.", "enat.training.learning_rates."),
)

# Options of a tokenizer that change no token, or of which each file has its own.
OF_SPEED = ("tokenizer.batch_size", "tokenizer.compile", "tokenizer.weights")


def check_settings(file: str, node: Any) -> None:
    """Checks settings of a file, which are about to become a part of the configuration.

    Raises:
        InputError: for settings that are not plain values, and for names of what a file may not have built.
    """
    refuse_references(file, node)
    refuse_other_targets(file, node)


def settings_of_shards(shards: str, given: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Returns the sizes of a network for a folder of shards, and the settings of their tokenizer.

    Raises:
        InputError: for a folder without a manifest, or with one that can't be read.
    """
    from data.fetch import fetch_manifest  # here, since they import torch
    from data.manifest import Manifest
    from enat.checkpoints.folder import found_beside

    folder = Path(shards)
    if "://" in shards:
        cache = given.get("data.cache", yaml.safe_load((CONF / "data" / "shards.yaml").read_text())["cache"])
        folder = fetch_manifest(shards, Path(cache))
    path = folder / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"data.shards={shards}: there is no manifest.json in it; expected the output of task=tokenize."
        )
    manifest = Manifest.load(folder)
    sizes = {"codebook_size": manifest.codebook_size, "num_tokens": manifest.num_tokens}
    sizes["num_classes"] = len(manifest.class_names)
    check_settings(str(path), {"tokenizer_settings": manifest.tokenizer_settings})
    tokenizer = manifest.tokenizer_settings
    return sizes, tokenizer and found_beside(tokenizer, folder.absolute().parent)


def refuse_other_sizes(first: str, other: str, given: Mapping[str, Any]) -> None:
    """Refuses a multirun over shards of other sizes: all of its jobs have those of the first.

    Raises:
        InputError: naming a size in which they differ.
    """
    before, now = (settings_of_shards(shards, given)[0] for shards in (first, other))
    for name, size in before.items():
        if now[name] != size:
            raise InputError(
                f"data.shards={first},{other}: {name} is {size} in the one and {now[name]} in the other; expected a "
                "command for each."
            )


def settings_of_tokenizer(weights: str) -> dict[str, Any] | None:
    """Returns the settings of a tokenizer that was trained here; None for another, such as the VQGAN of MAGE.

    Raises:
        InputError: for a file that can't be read.
    """
    from enat.checkpoints.weights import read_file  # here, since it imports torch

    settings = read_file(weights).get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("tokenizer"), dict):
        return None
    tokenizer: dict[str, Any] = settings["tokenizer"]
    check_settings(weights, tokenizer)
    return tokenizer


def refuse_other_tokenizers(first: str, other: str, given: Mapping[str, Any]) -> None:
    """Refuses a multirun over tokenizers of other settings: all of its jobs have those of the first.

    Raises:
        InputError: naming an option in which they differ, unless the command line has it.
    """
    before, now = (by_full_name({"tokenizer": settings_of_tokenizer(weights) or {}}) for weights in (first, other))
    for name in sorted(before.keys() | now.keys()):
        if name not in (*OF_SPEED, *given) and before.get(name) != now.get(name):
            raise InputError(
                f"tokenizer.weights={first},{other}: {name} is {before.get(name)} in the one and {now.get(name)} in "
                "the other; expected a command for each."
            )


def refuse_other_targets(file: str, node: Any) -> None:
    """Refuses settings of a file that would have anything built but networks, tokenizers, samplers and metrics.

    Raises:
        InputError: naming the target.
    """
    for _, value in _items(node):
        refuse_other_targets(file, value)
    if isinstance(node, Mapping) and "_target_" in node and not is_allowed(node["_target_"], OF_FILES):
        raise InputError(
            f"{file}: its settings name {node['_target_']}, which is no part of a network, a tokenizer or a metric."
        )


def refuse_references(file: str, node: Any, option: str = "") -> None:
    """Refuses settings of a file that are no plain values, since files are written with what references stand for.

    Raises:
        InputError: for a reference, which would stand for something that nobody has checked, for a list of defaults,
            of which Hydra would compose the settings, and for other types.
    """
    place = option or "settings"
    if isinstance(node, str) and "${" in node:
        raise InputError(f"{file}: {place}={node}: the settings of a file may not have references in them.")
    if not isinstance(node, Mapping | list | tuple | str | int | float | None):
        raise InputError(f"{file}: {place}: expected plain values, not {type(node).__name__}.")
    for name, value in _items(node):
        if name == "defaults" or (isinstance(name, str) and "${" in name):
            raise InputError(f"{file}: {place}: the settings of a file may not have {name} in them.")
        refuse_references(file, value, f"{option}.{name}" if option else str(name))


def _items(node: Any) -> list[tuple[Any, Any]]:
    """Returns the parts of a node with their names or numbers; none of a plain value."""
    if isinstance(node, Mapping):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list | tuple) else []
