"""The contract of a tokenizer: a fixed map between images and token ids. Shapes: `B` images, `L = h*w` tokens."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from enat.errors import InputError


def as_weights(x: Tensor, part: nn.Module) -> Tensor:
    """Casts the input of a part of a tokenizer to the type of its weights, to which a user may have cast them."""
    return x.to(next(part.parameters()).dtype)


class Tokenizer(nn.Module, ABC):
    """Turns images (B, channels, H, W), floats in [0, 1], into token ids (B, L), row by row, and back.

    Attributes:
        codebook_size: token ids are below it.
        resolution: side of the images, in pixels.
        grid: height and width of the token grid.
        channels: of the images, 3 for colours or 1 for grey.
    """

    codebook_size: int
    resolution: int
    grid: tuple[int, int]
    channels: int = 3

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, channels, H, W) in [0, 1] -> token ids (B, L), int64."""

    @abstractmethod
    def decode(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> images (B, channels, H, W) in [0, 1]."""

    def check_sizes(self, codebook_size: int, num_tokens: int) -> None:
        """Checks that a network of these sizes can model the tokens of this tokenizer.

        Raises:
            InputError: if it can't.
        """
        own = (self.codebook_size, self.grid[0] * self.grid[1])
        if own != (codebook_size, num_tokens):
            raise InputError(
                f"module.net: codebook_size={codebook_size}, num_tokens={num_tokens}; the tokenizer has {own[0]} "
                f"and {own[1]}."
            )

    def stored_weights(self) -> dict[str, Tensor]:
        """Returns the weights under the names that the option `weights` of this tokenizer reads.

        Raises:
            InputError: if they are not read from a single file.
        """
        return dict(self.state_dict())

    def fingerprint(self, resolution: int | None = None) -> str:
        """Returns the sha256 of kind, sizes and weights: equal ids stand for equal images only where it is equal.

        With a `resolution`, it is that of the same tokenizer for images of another size, whose codes are the same.
        """
        return self._sha256(self.state_dict(), resolution)

    def codes_fingerprint(self, resolution: int | None = None) -> str:
        """Returns the sha256 of kind, sizes and all weights but the decoder's; where it is equal, ids mean the same.

        The `resolution` is that of `fingerprint`.
        """
        encoding = {name: weight for name, weight in self.state_dict().items() if not name.startswith("decoder.")}
        return self._sha256(encoding, resolution)

    def fingerprints(self) -> dict[str, str]:
        """Returns both fingerprints by the names that files give them."""
        return {"tokenizer_sha256": self.fingerprint(), "codes_sha256": self.codes_fingerprint()}

    def has_other_codes(self, described: Mapping[str, Any], resolution: int | None = None) -> bool:
        """Says whether tokens are those of another tokenizer. A tokenizer with another decoder has the same.

        Args:
            described: what a file says of the tokenizer of its tokens, such as its `fingerprints`. Files of older
                versions lack the second one, and official files lack both; official files count as fitting.
            resolution: that of `fingerprint`.
        """
        if described.get("tokenizer_sha256") in (None, self.fingerprint(resolution)):
            return False
        return described.get("codes_sha256") != self.codes_fingerprint(resolution)

    def _sha256(self, weights: Mapping[str, Tensor], resolution: int | None) -> str:
        resolution = self.resolution if resolution is None else resolution
        digest = hashlib.sha256(f"{type(self).__name__} {self.codebook_size} {resolution}".encode())
        for name, tensor in sorted(weights.items()):
            digest.update(name.encode())
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)  # NumPy has no bfloat16
            digest.update(content.numpy().tobytes())
        return digest.hexdigest()
