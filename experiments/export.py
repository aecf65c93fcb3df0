"""task=export: writes the weights of a checkpoint without the state of training."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from enat.checkpoints.official import to_official
from enat.checkpoints.weights import (
    DESCRIPTIONS,
    load_weights,
    other_tokenizer,
    read_file,
    select_state,
    with_found_tokenizer,
    without_loss,
)
from enat.errors import InputError
from enat.files import sha256_of, write_atomically
from enat.layers import Block
from enat.net import ENAT
from enat.pipeline import build_from_settings

TOKENIZER_FILE = "tokenizer.safetensors"


def export(
    net: ENAT, weights: str | None, with_tokenizer: bool, half: bool, output: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes the EMA weights of a checkpoint as safetensors with this project's names, and as an official file.

    Every task that takes `weights=FILE` reads both files. A variant of ENAT has no official file.

    Args:
        net: a network of the checkpoint's sizes.
        weights: a checkpoint of this project, or an official one.
        with_tokenizer: whether the tokenizer is written too, so that the folder is all that is needed to draw images.
        half: whether the weights are stored in float16, which halves the files.
        output: the folder of the files.
        settings: the whole configuration, which says the tokenizer and the sampler.

    Returns:
        The files, the sha256 of each, and where the weights come from.

    Raises:
        InputError: if a weight is beyond the range of float16, or the tokenizer can't be written.
    """
    source = load_weights(net, weights)
    state = _stored(net.state_dict(), half)
    content = with_found_tokenizer(read_file(str(weights)), str(weights))
    content.pop("tokenizer_file", None)  # it stays where it is
    described = {name: content[name] for name in DESCRIPTIONS if name in content}
    described |= {"net_sizes": net.sizes, "weights_kind": source["kind"]}
    if "settings" in described:
        described["settings"] = {**described["settings"], "sampler": settings["sampler"]}
    results: dict[str, Any] = {}
    if with_tokenizer:
        if "settings" not in described:
            raise InputError(
                f"with_tokenizer=true: {weights} does not say its sampler and its classes; expected a checkpoint of a "
                "run."
            )
        tokenizer, path = settings["tokenizer"], Path(output) / TOKENIZER_FILE
        described["settings"] = {**described["settings"], "tokenizer": tokenizer}
        described.pop("tokenizer_sha256", None)  # that of the file says more
        if other_tokenizer(content, build_from_settings(tokenizer).fingerprint()):
            print(f"Note: {weights} was trained on the tokens of another tokenizer than the one that is written.")
        if _write_tokenizer(tokenizer, half, path):
            results = {"tokenizer": str(path), "tokenizer_file_sha256": sha256_of(path)}
            described["tokenizer_file"] = {"name": path.name, "sha256": results["tokenizer_file_sha256"]}
    ours = Path(output) / "weights.safetensors"
    (Path(output) / "results.json").unlink(missing_ok=True)  # of an earlier export, whose files are replaced now
    write_atomically(ours, save(state, {name: json.dumps(value) for name, value in described.items()}))
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
    if not half:
        return {name: tensor.contiguous() for name, tensor in state.items()}
    stored = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for name, tensor in stored.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"half=true: the weight {name} has values beyond the range of float16; leave out half=true."
            )
    return {name: tensor.contiguous() for name, tensor in stored.items()}


def _write_tokenizer(tokenizer: Mapping[str, Any], half: bool, path: Path) -> bool:
    """Writes the weights of a tokenizer with its settings; returns whether it has any.

    Raises:
        InputError: if they can't be read, or lie in a folder of diffusers.
    """
    if tokenizer.get("folder") is not None:
        raise InputError(
            f"with_tokenizer=true: {tokenizer['folder']} is a folder of diffusers, which is not copied; copy it "
            "yourself, and name it by tokenizer.folder=DIR."
        )
    if tokenizer.get("weights") is None:
        return False
    try:
        state, _ = select_state(without_loss(read_file(tokenizer["weights"])))
    except InputError as error:
        raise InputError(f"tokenizer.{error}") from error
    own = json.dumps({"tokenizer": {**tokenizer, "weights": None}})
    write_atomically(path, save(_stored(state, half), {"settings": own}))
    return True
