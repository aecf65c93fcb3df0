"""Sets of images that can be scored, read block by block. Shapes: `b` images of a block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from enat.net import ENAT
from enat.randomness import generator_for
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8 of the same shape, rounded half up, as torchvision saves them."""
    return images.float().mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


class Block(NamedTuple):
    """Some images of a set."""

    numbers: Tensor  # (b,), of the images among all of the set; on the CPU
    images: Tensor  # (b, channels, H, W), in [0, 1]
    class_ids: Tensor | None = None  # (b,)
    skipped: Sequence[str] = ()  # why images that belong here could not be read


class Images(Protocol):
    """A set of images.

    Attributes:
        num_images: how many.
        read_together: how many blocks are best read by the same process, one after the other.
        identity: plain values that tell one set from another.
    """

    num_images: int
    read_together: int
    identity: Mapping[str, Any]

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """Reads the images of these numbers, a block for each range, in order."""


class TensorImages:
    """Images that are in memory.

    Args:
        images: (n, channels, H, W), in [0, 1].
        class_ids: (n,).
    """

    read_together = 1
    identity: Mapping[str, Any] = {"kind": "tensor"}

    def __init__(self, images: Tensor, class_ids: Tensor | None = None):
        self.images, self.class_ids, self.num_images = images, class_ids, len(images)

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `Images`."""
        for place in places:
            numbers = torch.tensor(place)
            class_ids = None if self.class_ids is None else self.class_ids[numbers].to(device)
            yield Block(numbers, self.images[numbers].to(device), class_ids)


class GeneratedImages:
    """Images that a network generates, in balanced classes: image `i` is of class `i` modulo their number.

    The noise belongs to fixed blocks of images, each with a seed of its own: batches and processes decide who draws
    which block, not what is in it. (In another batch, the sums of a matrix product may be rounded otherwise, and where
    two tokens tie but for that, the other one may be drawn.)

    Args:
        net: in evaluation mode.
        sampler, tokenizer: make images with it.
        num_images: how many.
        seed: of the noise.
        block_size: images with noise of their own.
        batch_size: images that are generated at a time, a multiple of `block_size`.
        context: entered for generation and decoding, such as autocast.
    """

    def __init__(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        num_images: int,
        seed: int,
        block_size: int,
        batch_size: int,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.net, self.sampler, self.tokenizer, self.context = net, sampler, tokenizer, context
        self.num_images, self.seed, self.block_size = num_images, seed, block_size
        self.read_together = batch_size // block_size
        self.identity: Mapping[str, Any] = {"kind": "generated", "seed": seed, "block_size": block_size}

    def token_ids(self, places: Sequence[range]) -> list[Tensor]:
        """Generates the token ids (b, L) of blocks, all in one batch; only the last of all may be cut short."""
        device = self.net.head_bias.device
        firsts = torch.tensor([place.start for place in places], device=device)
        numbers = (firsts.unsqueeze(1) + torch.arange(self.block_size, device=device)).flatten()
        generators = [
            generator_for(device, "block of images", self.seed, place.start // self.block_size) for place in places
        ]
        drawn = self.sampler(self.net, numbers % self.net.num_classes, generators).split(self.block_size)
        return [token_ids[: len(place)] for token_ids, place in zip(drawn, places, strict=True)]

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `Images`."""
        self.tokenizer.to(device)
        for start in range(0, len(places), self.read_together):
            together = places[start : start + self.read_together]
            with self.context():
                drawn = self.token_ids(together)
            for place, token_ids in zip(together, drawn, strict=True):
                with self.context():
                    images = self.tokenizer.decode(token_ids).float()
                numbers = torch.tensor(place)
                yield Block(numbers, images, (numbers % self.net.num_classes).to(device))
