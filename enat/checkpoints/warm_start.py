"""Starts a network from the weights of another one, which may have other classes, another codebook or another grid.

Shapes: `L` tokens of an image, `D` width.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from enat.checkpoints.names import split_blocks
from enat.checkpoints.selection import state_of_file
from enat.checkpoints.weights import load_exactly, read_file, refuse_other_network
from enat.errors import InputError
from enat.files import sha256_of, weights_file
from enat.net import ENAT
from enat.tokenizers.base import Tokenizer

# Weights with a row for each class or each entry of the codebook, and a last row for the null class or the mask: the
# option that says how many there are, what messages call the weights, and what they call the last row.
TABLES = {
    "class_embedding.weight": ("num_classes", "embedding of classes", "null class"),
    "token_embedding.weight": ("codebook_size", "embedding of tokens", "mask"),
    "head_bias": ("codebook_size", "bias of the head", "mask"),
}
KEPT = ("width", "num_heads", "encoder_depth", "decoder_depth", "variant", "interactions")  # of the network
HINT = "Fine-tuning keeps width, heads, depth and variant of the network."


def warm_start(net: ENAT, path: str | Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Gives a network the weights of a file where they fit, and leaves it as it was initialised where they do not.

    A table of classes or tokens of another size, or of tokens of another tokenizer, is drawn anew, but for the null
    class or the mask. Embeddings of positions of another grid are interpolated. All other weights must fit.

    Args:
        net: gets the weights.
        path: of the file.
        tokenizer: made the tokens that the network is to be trained on.

    Returns:
        Where the weights come from: `weights` (the path), `kind` (EMA, official or raw), `sha256`, and `changes`, a
        sentence for each weight that does not come from the file as it is. Also its `class_names`, if it has any, and
        `notes`, a sentence on weights that are kept although the file does not say whether they fit.

    Raises:
        InputError: for a file that can't be read, or a network of another width or depth.
    """
    content = read_file(path)
    refuse_other_network(net, content, path, KEPT, HINT)
    selected, kind = state_of_file(content, path)
    state = split_blocks(selected, net.encoder_depth)
    own = net.state_dict()
    tokens = "token_embedding.weight"
    has_as_many_codes = tokens in state and state[tokens].shape == own[tokens].shape
    changes = draw_tables(state, own, has_other_codes(content, tokenizer))
    name = "position_embedding.weight"
    if name in state and state[name].shape != own[name].shape:
        changes.append(
            f"The embedding of positions is interpolated: module.net.num_tokens is {len(own[name])} instead of "
            f"{len(state[name])}."
        )
        state[name] = interpolate_positions(state[name], len(own[name]), path)
    load_exactly(net, state, path, HINT)
    notes = []
    if "tokenizer_sha256" not in content and has_as_many_codes:
        notes.append("The embedding of tokens is kept; the file does not say whether its tokenizer is the same.")
    return {
        "weights": str(path),
        "kind": kind,
        "sha256": sha256_of(weights_file(path)),
        "changes": changes,
        "class_names": list(content.get("class_names") or []),
        "notes": notes,
    }


def has_other_codes(content: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Says whether a file's network was trained on the codes of another tokenizer, as far as the file says that.

    The same tokenizer for images of another size has the same codes.
    """
    settings = (content.get("settings") or {}).get("tokenizer") or {}
    resolutions = (tokenizer.resolution, settings.get("resolution"))
    return all(tokenizer.has_other_codes(content, resolution) for resolution in resolutions)


def draw_tables(state: dict[str, Tensor], own: Mapping[str, Tensor], has_other_codes: bool) -> list[str]:
    """Replaces the tables of a file that do not fit by those that a network was initialised with, but for the last row.

    Args:
        state: the weights of the file, which are changed.
        own: the weights of the network.
        has_other_codes: whether the tokens of the file's network are of another tokenizer.

    Returns:
        A sentence for each table.
    """
    changes = []
    for name, (option, table, last) in TABLES.items():
        if name not in state or state[name].shape[1:] != own[name].shape[1:]:
            continue
        if len(state[name]) != len(own[name]):
            reason = f"module.net.{option} is {len(own[name]) - 1} instead of {len(state[name]) - 1}"
        elif has_other_codes and option == "codebook_size":
            reason = "the file's network was trained on the tokens of another tokenizer"
        else:
            continue
        changes.append(f"The {table} is drawn anew, but for the {last}: {reason}.")
        drawn = own[name].clone()
        drawn[-1] = state[name][-1]
        state[name] = drawn
    return changes


def interpolate_positions(embedding: Tensor, num_tokens: int, path: str | Path) -> Tensor:
    """Interpolates embeddings (L, D) of a square grid to a square grid of another size, bicubically.

    Raises:
        InputError: if one of the grids is not square.
    """
    before, now = math.isqrt(len(embedding)), math.isqrt(num_tokens)
    if before**2 != len(embedding) or now**2 != num_tokens:
        raise InputError(f"{path}: {len(embedding)} tokens before, {num_tokens} now; expected square grids.")
    grid = embedding.float().T.unflatten(1, (before, before)).unsqueeze(0)  # (1, D, rows, columns)
    return F.interpolate(grid, size=(now, now), mode="bicubic", antialias=True)[0].flatten(1).T.contiguous()
