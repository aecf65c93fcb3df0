"""Images as tensors and as files, and sets of them that are gone through block by block.

Shapes: `b` images of a block; `n` images, `L` tokens of an image, `T` steps.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from enat.errors import InputError
from enat.files import write_atomically

MASKED_COLOUR = (0.16, 0.22, 0.42)
FACTS = "enat"  # the key of the text in a PNG file that says how its image was drawn
MAX_STRETCH = 8  # ratio of an image's sides up to which a crop resizes the whole image
MAX_NAME_BYTES = 100  # of a class or another word, in the names of files


def to_bytes(images: Tensor) -> Tensor:
    """Rounds images in [0, 1] half up to uint8 of the same shape, as torchvision saves them."""
    return images.float().mul(255).add(0.5).clamp(0, 255).to(torch.uint8)


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turns images (n, channels, H, W) in [0, 1], of one channel or three, into images of Pillow."""
    pixels = to_bytes(images).permute(0, 2, 3, 1).cpu().numpy()  # (n, H, W, channels)
    return [Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image) for image in pixels]


def refuse_deep(image: Image.Image, name: str | Path) -> None:
    """Refuses an image whose grey levels or colours Pillow would clip when it converts them to 8 bits.

    Args:
        image: the image.
        name: of its file or its argument, for the error.

    Raises:
        InputError: for more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise InputError(f"{name}: more than 8 bits a channel (mode {image.mode}); convert it first.")


def upright(image: Image.Image) -> Image.Image:
    """Returns an image as viewers show it, turned as its EXIF orientation says; as it is if its EXIF can't be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever Pillow raises on damaged EXIF; on damaged pixels, the caller gets the error again
        return image


def as_mode(image: Image.Image, mode: str, name: str) -> Image.Image:
    """Converts an image of Pillow, which may still have to be read from its file, to a mode such as RGB, upright.

    Args:
        image: the image.
        mode: of the result, with 8 bits a channel.
        name: of its file or its argument, for errors.

    Raises:
        InputError: for more than 8 bits a channel, an image without pixels, and one that can't be read.
    """
    refuse_deep(image, name)
    if not min(image.size):
        raise InputError(f"{name}: {image.width} x {image.height} pixels; expected an image with some.")
    try:
        return upright(image).convert(mode)
    except Exception as error:  # whatever a plugin of Pillow raises on a damaged file
        raise InputError(
            f"{name}: can't be read: {str(error).rstrip('.')}; expected an image that is whole."
        ) from error


def refuse_other_shape(mask: Image.Image, image_size: tuple[int, int], name: str = "region") -> None:
    """Refuses a mask whose ratio of the sides is not that of the image, so that it would be cropped differently.

    Args:
        mask: of any size.
        image_size: width and height of the image in pixels.
        name: of the mask, for errors.

    Raises:
        InputError: naming both sizes.
    """
    width, height = mask.size
    if abs(width * image_size[1] - height * image_size[0]) >= max(*mask.size, *image_size):  # a pixel is for rounding
        raise InputError(
            f"{name}: the mask has {width} x {height} pixels and the image {image_size[0]} x {image_size[1]}; expected "
            "the same ratio of the sides."
        )


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """Crops an image to a square of `side` pixels, as ADM does (docs/method.md, Data).

    The image is halved with a box filter while its short side is at least twice `side`, then resized with a bicubic
    filter until the short side is `side`; the centre of that is cut out.
    """
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if max(image.size) > MAX_STRETCH * min(image.size):
        image = _middle(image)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    left = (size[0] - side) // 2
    top = (size[1] - side) // 2
    return image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


def _middle(image: Image.Image) -> Image.Image:
    """Cuts the middle out of a very long image, so that the rest is not resized: it would fill the memory."""
    short = min(image.size)
    box = [0, 0, image.width, image.height]
    axis = 0 if image.width > image.height else 1
    start = (image.size[axis] - MAX_STRETCH * short) // 2
    box[axis], box[axis + 2] = start, start + MAX_STRETCH * short
    return image.crop((box[0], box[1], box[2], box[3]))


def square_pixels(image: Image.Image, side: int, channels: int) -> Tensor:
    """Crops an RGB image as `center_crop` does: (1, channels, side, side) in [0, 1], grey for one channel."""
    cropped = center_crop(image, side).convert("L" if channels == 1 else "RGB")
    pixels = np.atleast_3d(np.asarray(cropped, dtype=np.float32)) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def white_pixels(mask: Image.Image, side: int, name: str = "region") -> Tensor:
    """Crops a mask to a square in the middle, and returns which of side x side pixels it marks, (side, side).

    A pixel is marked if any pixel of the mask over it is white: brighter than half, and more opaque than half.

    Args:
        mask: of any size.
        side: of the images, in pixels.
        name: of the mask, for errors.

    Raises:
        InputError: for a mask that `as_mode` refuses.
    """
    with_alpha = as_mode(mask, "RGBA", name)
    is_white = (np.asarray(with_alpha.convert("L")) > 127) & (np.asarray(with_alpha.getchannel("A")) > 127)
    short = min(mask.size)
    left, top = (mask.width - short) // 2, (mask.height - short) // 2
    square = torch.from_numpy(is_white[top : top + short, left : left + short])
    return F.adaptive_max_pool2d(square[None].float(), side)[0] > 0


def cut_word(word: str) -> str:
    """Cuts a word that becomes a part of a file's name to a length that all disks take."""
    return word.encode(errors="replace")[:MAX_NAME_BYTES].decode(errors="ignore")


def file_name(picture: tuple[int, int], names: Sequence[str], seed: int) -> str:
    """Returns the name of an image's file, such as `class_0003_cat_seed_0_0007.png`.

    Args:
        picture: the class id of the image, and its number in the class.
        names: the names of the classes.
        seed: of the noise.
    """
    class_id, number = picture
    label = f"{class_id:04d}"
    if names[class_id] != str(class_id):
        label += "_" + cut_word(re.sub(r"[^\w-]+", "_", names[class_id]))
    return f"class_{label}_seed_{seed}_{number:04d}.png"


def pixels_sha256(image: Image.Image | None) -> str | None:
    """Returns the sha256 of the mode, the size and the pixels of an image; None for none."""
    if image is None:
        return None
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def png_bytes(image: Image.Image, facts: Mapping[str, Any]) -> bytes:
    """Returns an image as the bytes of a PNG file, with plain values inside that say how it was drawn."""
    text = PngImagePlugin.PngInfo()
    text.add_text(FACTS, json.dumps(facts))
    file = io.BytesIO()
    image.save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def write_png(path: Path, image: Image.Image, facts: Mapping[str, Any]) -> None:
    """Writes the file of `png_bytes`, whole or not at all."""
    write_atomically(path, png_bytes(image, facts))


def read_facts(file: Path | IO[bytes]) -> dict[str, Any] | None:
    """Returns what `png_bytes` has put into a file beside the image; None for a file without it.

    Raises:
        InputError: if there is no such file, or it can't be read.
    """
    try:
        content = io.BytesIO(file.read_bytes()) if isinstance(file, Path) else file
    except OSError as error:
        raise InputError(f"{file}: can't be read: {error.strerror}.") from error
    try:
        with Image.open(content, formats=["PNG"]) as image:
            facts = json.loads(image.info.get(FACTS, "null"))
    except (OSError, ValueError, TypeError, RecursionError, SyntaxError, Image.DecompressionBombError):
        return None
    return facts if isinstance(facts, dict) else None


def reveal(images: Tensor, steps: Sequence[Tensor], mask_token_id: int) -> Tensor:
    """Covers what is still masked at each step; the rest is of the final images.

    Without a correction (`enat.corrections`), revealed tokens do not change.

    Args:
        images: the final images (n, channels, h, w), in [0, 1].
        steps: the token ids (n, L) that each of the T steps started from, of a square grid.
        mask_token_id: the id that marks masked tokens.

    Returns:
        Images (n, T+1, 3, h, w); the last of each are the final ones.
    """
    tokens = torch.stack([*steps, torch.zeros_like(steps[0])], dim=1)  # (n, T+1, L)
    side = math.isqrt(tokens.shape[2])
    is_masked = (tokens == mask_token_id).unflatten(2, (side, side))
    covered = is_masked.repeat_interleave(images.shape[2] // side, 2).repeat_interleave(images.shape[3] // side, 3)
    colour = images.new_tensor(MASKED_COLOUR).view(3, 1, 1)
    return torch.where(covered.unsqueeze(2), colour, images.unsqueeze(1))


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
