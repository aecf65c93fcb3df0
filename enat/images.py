"""Sets of images, gone through block by block. Shapes: `b` images of a block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Rounds images in [0, 1] half up to uint8 of the same shape, as torchvision saves them."""
    return images.float().mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turns images (n, channels, H, W) in [0, 1], of one channel or three, into images of Pillow."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()  # (n, H, W, channels)
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]


class Block(NamedTuple):
    """Some images of a set."""

    numbers: Tensor  # (b,), of the images among all of the set; on the CPU
    images: Tensor  # (b, channels, H, W), in [0, 1]
    class_ids: Tensor | None = None  # (b,)
    skipped: Sequence[str] = ()  # why images that belong here could not be read


class Images(Protocol):
    """A set of images.

    Attributes:
        num_images: how many images there are.
        read_together: how many blocks one process should read one after the other.
        identity: plain values that tell one set from another.
    """

    num_images: int
    read_together: int
    identity: Mapping[str, Any]

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """Reads the images of these numbers, one block for each range, in order."""


def blocks_of(num_images: int, block_size: int, first: int = 0) -> list[range]:
    """Cuts the numbers of images, from `first` on, into blocks; only the last one may be smaller."""
    return [range(start, min(start + block_size, num_images)) for start in range(first, num_images, block_size)]


@dataclass
class Progress:
    """Functions that are called while a set of images is gone through.

    Args:
        on_start: is called once before the first block, with the number of images and how many of them are done.
        on_images: is called on rank 0 with the number of images of each further block.
        on_block: is called with each block, on the process that made it.
    """

    on_start: Callable[[int, int], None] = lambda total, done: None
    on_images: Callable[[int], None] = lambda count: None
    on_block: Callable[[Block], None] = lambda block: None
