"""task=export: writes the weights of a checkpoint without the state of training."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from enat.checkpoints.official import to_official
from enat.checkpoints.weights import DESCRIPTIONS, load_weights, read_file
from enat.files import sha256_of, write_atomically
from enat.layers import Block
from enat.net import ENAT


def export(net: ENAT, weights: str | None, output: str) -> dict[str, Any]:
    """Writes the EMA weights of a checkpoint as safetensors with this project's names, and as an official file.

    Every task that takes `weights=FILE` reads both files. A variant of ENAT has no official file.

    Args:
        net: a network of the checkpoint's sizes.
        weights: a checkpoint of this project, or an official one.
        output: the folder of the files.

    Returns:
        The files, the sha256 of each, and where the weights come from.
    """
    source = load_weights(net, weights)
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    ours = Path(output) / "weights.safetensors"
    official = Path(output) / "nnet_ema.pth"
    content = read_file(str(weights))
    metadata = {name: json.dumps(content[name]) for name in DESCRIPTIONS if name in content}
    write_atomically(ours, save(state, {**metadata, "net_sizes": json.dumps(net.sizes)}))
    results = {"safetensors": str(ours), "safetensors_sha256": sha256_of(ours), **source}
    if type(net) is not ENAT or any(type(block) is not Block for block in net.blocks):
        print("This is a variant of ENAT, for which there is no official file format.")
        return results
    official = Path(output) / "nnet_ema.pth"
    write_atomically(official, lambda file: torch.save(to_official(state), file))
    return {**results, "official": str(official), "official_sha256": sha256_of(official)}
