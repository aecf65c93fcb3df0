"""Pixels as tokens. Shapes: `B` images, `L` tokens of an image."""

from typing import Annotated

from annotated_types import Ge
from einops import rearrange
from torch import Tensor

from enat.errors import InputError
from enat.tokenizers.base import Tokenizer


class PixelTokenizer(Tokenizer):
    """Turns each pixel into a token, its grey level; this is exact for images with that many grey levels.

    Args:
        num_levels: number of grey levels, the size of the codebook.
        resolution: side of the image in pixels, and so of the token grid.
    """

    channels = 1

    def __init__(self, num_levels: Annotated[int, Ge(2)], resolution: Annotated[int, Ge(1)]):
        super().__init__()
        self.codebook_size = num_levels
        self.resolution = resolution
        self.grid = (resolution, resolution)

    def encode(self, images: Tensor) -> Tensor:
        if images.shape[1] != 1:
            raise InputError(f"tokenizer=pixels: expected images of 1 channel, these have {images.shape[1]}.")
        return rearrange((images * (self.codebook_size - 1)).round().long(), "b 1 h w -> b (h w)")

    def decode(self, token_ids: Tensor) -> Tensor:
        levels = token_ids.float() / (self.codebook_size - 1)
        return rearrange(levels, "b (h w) -> b 1 h w", h=self.grid[0])
