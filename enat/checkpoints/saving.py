"""Writes a network, the settings of its sampler and its tokenizer as a folder that `enat.load` reads."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from enat.building import refuse_huge
from enat.checkpoints.card import model_card
from enat.checkpoints.folder import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    MAX_CONFIG_BYTES,
    TOKENIZER,
    config_text,
    write_folder,
)
from enat.errors import InputError
from enat.files import MODEL, exists, part_of, read_record, read_text, sha256_of, sha256_of_bytes, weights_file
from enat.net import ENAT
from enat.tokenizers.base import Tokenizer

# Parts of the settings of a run that sampling, scoring and fine-tuning read; the others are of its machine.
KEPT = ("name", "seed", "module", "tokenizer", "sampler", "metrics", "reference", "scores", "protocols")
NEEDED = ("module.net", "tokenizer", "sampler")
FINGERPRINTS = ("tokenizer_sha256", "codes_sha256")
PASSED_ON = (*FINGERPRINTS, "licence", "recipe", "scores", "provenance")


def save_folder(
    folder: str | Path,
    net: ENAT,
    tokenizer: Tokenizer | None,
    class_names: Sequence[str] | None,
    description: Mapping[str, Any],
    half: bool = False,
) -> dict[str, str]:
    """Writes a folder of weights (docs/python.md, The folder).

    Args:
        folder: is made if there is none.
        net: the network.
        tokenizer: makes images; None leaves it out, so that a reader has to name it.
        class_names: one for each class id, or None.
        description: `settings`, as the checkpoints of a run have them, and what else is known of the weights.
        half: whether the weights are stored in float16.

    Returns:
        The sha256 of each file with weights, by name.

    Raises:
        InputError: if the settings are unknown or could not be read again, a weight is beyond the range of float16,
            files can't be written, or those in the folder are of another program.
    """
    settings = description.get("settings")
    if not isinstance(settings, Mapping) or not all(isinstance(part_of(settings, part), Mapping) for part in NEEDED):
        raise InputError(f"{folder}: the settings of the pipeline are unknown; expected one that enat.load returned.")
    kept = {name: settings[name] for name in KEPT if name in settings}
    kept["tokenizer"] = {
        name: None if name in ("weights", "folder") else value for name, value in settings["tokenizer"].items()
    }
    if devices := part_of(settings, "trainer.devices"):
        kept["trainer"] = {"devices": devices}
    files = {MODEL: save(stored(net.state_dict(), half), {"format": "pt"})}
    if tokenizer is not None and (state := tokenizer.stored_weights()):
        own = {"settings": json.dumps({"tokenizer": kept["tokenizer"]})}  # so that it can be used by itself
        files[TOKENIZER] = save(stored(state, half), own)
    hashes: dict[str, str] = {name: sha256_of_bytes(content) for name, content in files.items()}
    config: dict[str, Any] = {
        "format": "enat",
        "format_version": FORMAT_VERSION,
        "class_names": None if class_names is None else list(class_names),
        "net_sizes": net.sizes,
        "weights_kind": description.get("weights_kind", "raw"),
        "files": {**hashes, **({TOKENIZER: None} if tokenizer is None else {})},
        **{name: description[name] for name in PASSED_ON if description.get(name)},
    }
    if tokenizer is not None and (half or any(x.dtype != torch.float32 for x in tokenizer.parameters())):
        config = {name: value for name, value in config.items() if name not in FINGERPRINTS}  # they change by rounding
    config.setdefault("recipe", recipe_of(settings))
    config["provenance"] = {"versions": versions(), **config.get("provenance", {})}
    config["settings"] = kept
    for part in NEEDED:
        refuse_huge(part_of(kept, part), f"{folder}: can't be saved, since it could not be read again", part)
    text = config_text(config, Path(folder))
    card = model_card(Path(folder), config) if _may_replace_card(Path(folder)) else None
    write_folder(Path(folder), text, files, card)
    return hashes


def _may_replace_card(folder: Path) -> bool:
    """Says whether a folder has no model card, or one that was made from its `config.json` and not changed since."""
    if not exists(folder / CARD):
        return True
    try:
        config = read_record(folder / CONFIG, MAX_CONFIG_BYTES)
        return read_text(folder / CARD) == model_card(folder, config)
    except (InputError, KeyError, TypeError, AttributeError):  # of another program
        return False


def describe(content: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns what is known of the weights of a file, for `save_folder`: where they come from, and what the file says.

    Args:
        content: of the file, as `read_file` returns it.
        path: of the file.
    """
    described = {name: content[name] for name in ("settings", "weights_kind", *PASSED_ON) if name in content}
    described["model_sha256"] = content.get("model_sha256") or sha256_of(weights_file(path))
    if "provenance" not in described:
        described["provenance"] = {"source": Path(path).name, "source_sha256": described["model_sha256"]}
        if isinstance(content.get("global_step"), int):
            described["provenance"]["steps"] = content["global_step"]
    return described


def stored(state: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Returns weights as they are stored, floating-point numbers in float16 if `half`.

    Raises:
        InputError: for a weight beyond the range of float16.
    """
    if not half:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in halves.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"half=true: the weight {name} has values beyond the range of float16; leave out half=true."
            )
    return {name: tensor.contiguous() for name, tensor in halves.items()}


def recipe_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns how a network was trained, as far as the settings of its run say it, in plain values."""
    recipe: dict[str, Any] = {name: settings[name] for name in ("name", "seed") if name in settings}
    if steps := part_of(settings, "trainer.max_steps"):
        recipe["steps"] = steps
    data = settings.get("data") or {}
    if "batch_size" in data:
        recipe["batch_size"] = data["batch_size"]
    if "_target_" in data:
        recipe["data"] = str(data["_target_"]).rpartition(".")[2]
    for name in ("shards", "images"):
        if isinstance(data.get(name), str):
            recipe[name] = Path(data[name]).name
    optimizer = part_of(settings, "module.optimizer")
    if isinstance(optimizer, Mapping) and "_target_" in optimizer:
        options = {name: value for name, value in optimizer.items() if not name.startswith("_")}
        recipe["optimizer"] = {"name": str(optimizer["_target_"]).rpartition(".")[2], **options}
    return recipe


def versions() -> dict[str, str]:
    """Returns the versions of this program and of torch."""
    try:
        own = version("enat")
    except PackageNotFoundError:  # a copy of the code that is not installed
        own = "unknown"
    return {"enat": own, "torch": torch.__version__}
