"""task=export: writes the weights of a checkpoint without the state of training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from enat.checkpoints.official import to_official
from enat.checkpoints.weights import DESCRIPTIONS, load_weights, read_file, select_state, with_found_tokenizer
from enat.errors import InputError
from enat.files import sha256_of, write_atomically
from enat.layers import Block
from enat.net import ENAT

TOKENIZER_FILE = "tokenizer.safetensors"


def export(net: ENAT, weights: str | None, with_tokenizer: bool, half: bool, output: str) -> dict[str, Any]:
    """Writes the EMA weights of a checkpoint as safetensors with this project's names, and as an official file.

    Every task that takes `weights=FILE` reads both files. A variant of ENAT has no official file.

    Args:
        net: a network of the checkpoint's sizes.
        weights: a checkpoint of this project, or an official one.
        with_tokenizer: whether the weights of the tokenizer are written beside them, so that the folder can be moved
            and is all that is needed to draw images.
        half: whether the weights are stored in float16, which halves the files.
        output: the folder of the files.

    Returns:
        The files, the sha256 of each, and where the weights come from.

    Raises:
        InputError: if the tokenizer is asked for, and the checkpoint does not say which one it is.
    """
    source = load_weights(net, weights)
    content = with_found_tokenizer(read_file(str(weights)), str(weights))
    state = _stored(net.state_dict(), half)
    results: dict[str, Any] = {}
    if with_tokenizer:
        path = Path(output) / TOKENIZER_FILE
        content["settings"] = _write_tokenizer(content, str(weights), half, path)
        if path.exists():
            results = {"tokenizer": str(path), "tokenizer_sha256": sha256_of(path)}
    ours = Path(output) / "weights.safetensors"
    metadata = {name: json.dumps(content[name]) for name in DESCRIPTIONS if name in content}
    write_atomically(ours, save(state, {**metadata, "net_sizes": json.dumps(net.sizes)}))
    results |= {"safetensors": str(ours), "safetensors_sha256": sha256_of(ours), **source}
    if type(net) is not ENAT or any(type(block) is not Block for block in net.blocks):
        print("This is a variant of ENAT, for which there is no official file format.")
        return results
    official = Path(output) / "nnet_ema.pth"
    write_atomically(official, lambda file: torch.save(to_official(state), file))
    return {**results, "official": str(official), "official_sha256": sha256_of(official)}


def _stored(state: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    """Returns weights as they are stored, floating-point numbers in float16 if `half`.

    Raises:
        InputError: for a weight beyond the range of float16.
    """
    stored = {}
    for name, tensor in state.items():
        halved = tensor.half() if half and tensor.is_floating_point() else tensor
        if halved.is_floating_point() and not halved.isfinite().all():
            raise InputError(f"half=true: the weight {name} has values beyond the range of float16; leave it out.")
        stored[name] = halved.contiguous()
    return stored


def _write_tokenizer(content: Mapping[str, Any], weights: str, half: bool, path: Path) -> dict[str, Any]:
    """Writes the weights of a checkpoint's tokenizer, if it has any; returns the checkpoint's settings with their file.

    Raises:
        InputError: if the checkpoint does not say its tokenizer.
    """
    settings = content.get("settings")
    if not isinstance(settings, dict) or not isinstance(settings.get("tokenizer"), dict):
        raise InputError(f"weights={weights}: the file does not say its tokenizer; leave out with_tokenizer=true.")
    file = settings["tokenizer"].get("weights")
    if file is None:
        return settings
    state, _ = select_state(read_file(file))
    write_atomically(path, save(_stored(state, half)))
    return {**settings, "tokenizer": {**settings["tokenizer"], "weights": path.name}}
