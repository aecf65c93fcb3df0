"""Names of blocks: `encoder.i` and `decoder.i` here, but `blocks.i` in official files and in those of older versions.

`blocks.i` counts through the encoder and then the decoder.
"""

import re
from collections.abc import Mapping

from torch import Tensor

_BLOCK = re.compile(r"^(net\.)?(encoder|decoder|blocks)\.(\d+)\.")  # `net.` in the state dict of the LightningModule


def block_of(name: str) -> tuple[str, int] | None:
    """Returns the list and the number of the block that a weight belongs to; None for other weights."""
    match = _BLOCK.match(name)
    return None if match is None else (match[2], int(match[3]))


def split_blocks(state: Mapping[str, Tensor], encoder_depth: int) -> dict[str, Tensor]:
    """Renames `blocks.i` to `encoder.i` or `decoder.(i - encoder_depth)`; other names stay as they are."""

    def split(match: re.Match[str]) -> str:
        prefix, part, number = match[1] or "", match[2], int(match[3])
        if part != "blocks":
            return match[0]
        if number < encoder_depth:
            return f"{prefix}encoder.{number}."
        return f"{prefix}decoder.{number - encoder_depth}."

    return {_BLOCK.sub(split, name): tensor for name, tensor in state.items()}


def join_blocks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the blocks of a whole network to `blocks.i`, as `split_blocks` reads them."""
    encoder_depth = len({block for name in state if (block := block_of(name)) and block[0] == "encoder"})

    def join(match: re.Match[str]) -> str:
        prefix, part, number = match[1] or "", match[2], int(match[3])
        return f"{prefix}blocks.{number + encoder_depth * (part == 'decoder')}."

    return {_BLOCK.sub(join, name): tensor for name, tensor in state.items()}
