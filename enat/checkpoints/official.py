"""Translates the checkpoints of the official program, by names and shapes (docs/method.md, Official files).

Shapes: `L` tokens of an image, `D` width, `K` codebook size, `C` classes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from enat.checkpoints.names import block_of, join_blocks
from enat.errors import InputError

# Pairs of an official name and ours; `#` stands for the number of a block, counted through encoder and decoder.
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
_UNUSED = "prev_embedder."  # an MLP of the official files that the official program never calls

OFFICIAL_DEPTHS = {24: (22, 2, 16), 16: (15, 1, 8)}  # of ENAT-L and ENAT-B: encoder, decoder, heads


def _translate(name: str, names: Mapping[str, str]) -> str | None:
    """Translates the name of a weight or bias by a table of modules; returns None for a name that is not in it."""
    module, _, kind = name.rpartition(".")
    number = re.search(r"(?<=^blocks\.)\d+", module)
    module = re.sub(r"(?<=^blocks\.)\d+", "#", module)
    if kind not in ("weight", "bias") or module not in names:
        return None
    return f"{names[module].replace('#', number.group() if number else '')}.{kind}"


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Says whether a state dict has the names of the official program."""
    return any(name.removeprefix("module.").startswith("x_embedder.") for name in state)


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translates an official state dict, with or without the prefix `module.`, to the names of `enat.net.ENAT`.

    Blocks stay in one numbering, since the file does not show where the decoder starts: see `split_blocks`.

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
    """Translates weights of `enat.net.ENAT` to the official names; the official file's unused MLP is zero.

    Raises:
        InputError: for a name that an ENAT network does not have.
    """
    official = {}
    for name, tensor in join_blocks(state).items():
        translated = _HEAD_BIAS[0] if name == _HEAD_BIAS[1] else _translate(name, _TO_OFFICIAL)
        if translated is None:
            raise InputError(f"{name}: no weight of an ENAT network has this name.")
        official[translated] = tensor.view(1, 1, -1) if name == _HEAD_BIAS[1] else tensor
    for name in [name for name in official if name.startswith("prev_proj.mlp.")]:
        official[name.replace("prev_proj.mlp.", _UNUSED)] = torch.zeros_like(official[name])
    return official


def infer_sizes(state: Mapping[str, Tensor], path: str | Path) -> dict[str, int]:
    """Reads the sizes of a network from the shapes of its weights, in the names of `enat.net.ENAT`.

    Args:
        state: the weights.
        path: of their file, for errors.

    Returns:
        `codebook_size`, `num_classes`, `num_tokens`, `width`, and `depth`: encoder plus decoder. Also `encoder_depth`
        and `decoder_depth` where the names show them. The number of heads does not show.

    Raises:
        InputError: if a weight that shows a size is missing.
    """
    blocks = {block for name in state if (block := block_of(name))}
    depths = Counter(part for part, _ in blocks)
    try:
        sizes = {
            "codebook_size": state["token_embedding.weight"].shape[0] - 1,
            "num_classes": state["class_embedding.weight"].shape[0] - 1,
            "num_tokens": state["position_embedding.weight"].shape[0],
            "width": state["token_embedding.weight"].shape[1],
            "depth": len(blocks),
        }
    except (KeyError, IndexError) as error:
        raise InputError(f"{path}: these are not the weights of an ENAT network ({error}).") from error
    if "blocks" not in depths:
        sizes |= {"encoder_depth": depths["encoder"], "decoder_depth": depths["decoder"]}
    return sizes


def official_settings(state: Mapping[str, Tensor], path: str | Path) -> dict[str, Any]:
    """Returns the settings of an official file, which has none (docs/method.md, Recipe).

    Raises:
        InputError: for a network of another depth.
    """
    sizes: dict[str, Any] = dict(infer_sizes(state, path))
    depth = sizes.pop("depth")
    if depth not in OFFICIAL_DEPTHS:
        raise InputError(f"{path}: {depth} blocks; expected the 24 of ENAT-L or the 16 of ENAT-B.")
    encoder_depth, decoder_depth, num_heads = OFFICIAL_DEPTHS[depth]
    sizes |= {"encoder_depth": encoder_depth, "decoder_depth": decoder_depth, "num_heads": num_heads}
    is_512 = sizes["num_tokens"] == 1024
    schedules = {
        "mask_schedule": "cosine",
        "guidance_schedule": "rising",
        "sampling_temperature_schedule": "falling",
        "gumbel_temperature_schedule": "falling",
    }
    sampler = {
        "_target_": "enat.sampler.Sampler",
        "num_steps": 8,
        "guidance_scale": 3.5 if is_512 else 2.5,
        "sampling_temperature": 4.0 if is_512 else 6.0,
        "gumbel_temperature": 1.5,
        **{name: {"_target_": f"enat.schedules.{kind}", "_partial_": True} for name, kind in schedules.items()},
    }
    return {
        "name": Path(path).stem,
        "module": {"net": {"_target_": "enat.net.ENAT", **sizes}},
        "sampler": sampler,
        "tokenizer": {"_target_": "enat.tokenizers.vqgan.VQGAN", "resolution": 512 if is_512 else 256, "weights": None},
    }
