"""Pixels as tokens. Shapes: `B` images, `L` tokens of an image."""

from einops import rearrange
from torch import Tensor

from enat.errors import InputError
from enat.tokenizers.base import Tokenizer


class PixelTokenizer(Tokenizer):
    """A tokenizer whose tokens are grey levels, one per pixel; exact for images of that many levels.

    Args:
        num_levels: grey levels, the size of the codebook.
        resolution: side of the image in pixels, and so of the token grid.
    """

    def __init__(self, num_levels: int, resolution: int):
        super().__init__()
        self.codebook_size, self.resolution, self.grid = num_levels, resolution, (resolution, resolution)

    def encode(self, images: Tensor) -> Tensor:
        if images.shape[1] != 1:
            raise InputError(f"tokenizer=pixels: expected grey images, found {images.shape[1]} channels.")
        return rearrange((images * (self.codebook_size - 1)).round().long(), "b 1 h w -> b (h w)")

    def decode(self, token_ids: Tensor) -> Tensor:
        levels = token_ids.float() / (self.codebook_size - 1)
        return rearrange(levels, "b (h w) -> b 1 h w", h=self.grid[0])
