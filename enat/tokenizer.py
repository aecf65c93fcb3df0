"""What a tokenizer is: a frozen map between images and token ids. Shapes: `B` images, `L = h*w` tokens."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Tokenizer(nn.Module, ABC):
    """Turns images (B, channels, H, W), floats in [0, 1], into token ids (B, L), row by row, and back.

    Attributes:
        codebook_size: token ids are below it.
        grid: height and width of the token grid.
    """

    codebook_size: int
    grid: tuple[int, int]

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> token ids (B, L), int64."""

    @abstractmethod
    def decode(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> images (B, channels, H, W) in [0, 1]."""
