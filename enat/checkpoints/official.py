"""Reads and writes the checkpoints of the official program (SPEC 9), by names and shapes.

Shapes: `L` tokens of an image, `D` width, `K` codebook size, `C` classes.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from enat.errors import InputError

# Pairs of a pattern of the official names and ours; `#` stands for the number of a block.
_NAMES = [
    ("x_embedder.word_embeddings", "token_embedding"),
    ("x_embedder.position_embeddings", "position_embedding"),
    ("x_embedder.LayerNorm", "embedding_norm"),
    ("y_embedder.embedding_table", "class_embedding"),
    ("prev_proj.norm", "reuse.norm"),
    ("prev_proj.mlp.fc1", "reuse.mlp.0"),
    ("prev_proj.mlp.fc2", "reuse.mlp.2"),
    ("blocks.#.adaLN_modulation.1", "blocks.#.modulation"),
    ("blocks.#.attn.q", "blocks.#.attention.query"),
    ("blocks.#.attn.kv.A", "blocks.#.attention.context_kv"),
    ("blocks.#.attn.kv.B", "blocks.#.attention.self_kv"),
    ("blocks.#.attn.proj", "blocks.#.attention.out"),
    ("blocks.#.mlp.fc1", "blocks.#.mlp.0"),
    ("blocks.#.mlp.fc2", "blocks.#.mlp.2"),
    ("norm", "head.0"),
    ("mlm_layer.fc", "head.1"),
    ("mlm_layer.ln", "head.3"),
]
_TO_OURS = dict(_NAMES)
_TO_OFFICIAL = {ours: official for official, ours in _NAMES}
_HEAD_BIAS = ("mlm_layer.bias", "head_bias")  # (1, 1, K+1) there, (K+1,) here
_UNUSED = "prev_embedder."  # an MLP in the official files that the official program never calls


def _translate(name: str, names: Mapping[str, str]) -> str | None:
    """The name of a weight or bias by a table of modules; None where the table has none."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"(?<=^blocks\.)\d+", module)
    module = re.sub(r"(?<=^blocks\.)\d+", "#", module)
    if kind not in ("weight", "bias") or module not in names:
        return None
    return f"{names[module].replace('#', number.group() if number else '')}.{kind}"


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict carries the official program's names."""
    return any(name.removeprefix("module.").startswith("x_embedder.") for name in state)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict, with or without a `module.` prefix, as one of `enat.net.ENAT`.

    Raises:
        InputError: for a name that the official program does not write.
    """
    ours = {}
    for prefixed, tensor in state.items():
        name = prefixed.removeprefix("module.")
        if name.startswith(_UNUSED):
            continue
        if name == _HEAD_BIAS[0]:
            ours[_HEAD_BIAS[1]] = tensor.flatten()
            continue
        translated = _translate(name, _TO_OURS)
        if translated is None:
            raise InputError(f"{prefixed}: no weight of an official ENAT checkpoint has this name.")
        ours[translated] = tensor
    return ours


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `enat.net.ENAT` in the official names; the official file's unused MLP is zero.

    Raises:
        InputError: for a name that an ENAT network does not have.
    """
    official = {}
    for name, tensor in state.items():
        translated = _HEAD_BIAS[0] if name == _HEAD_BIAS[1] else _translate(name, _TO_OFFICIAL)
        if translated is None:
            raise InputError(f"{name}: no weight of an ENAT network has this name.")
        official[translated] = tensor.view(1, 1, -1) if name == _HEAD_BIAS[1] else tensor
    for name in [name for name in official if name.startswith("prev_proj.mlp.")]:
        official[name.replace("prev_proj.mlp.", _UNUSED)] = torch.zeros_like(official[name])
    return official


def infer_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes of an ENAT state dict (our names) tell of its sizes.

    Returns:
        `codebook_size`, `num_classes`, `num_tokens`, `width`, and `depth`: encoder plus decoder. The
        number of heads and where the decoder starts leave no trace in the shapes.

    Raises:
        InputError: if a weight that tells a size is missing.
    """
    try:
        return {
            "codebook_size": state["token_embedding.weight"].shape[0] - 1,
            "num_classes": state["class_embedding.weight"].shape[0] - 1,
            "num_tokens": state["position_embedding.weight"].shape[0],
            "width": state["token_embedding.weight"].shape[1],
            "depth": 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"these are not the weights of an ENAT network ({error}).") from error
