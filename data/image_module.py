"""Feeds the training of a tokenizer with images of a folder: an endless stream that can be entered at any batch.

Shapes: `B` images of a batch, `S` height and width of a crop in pixels.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from data.images import find_images, load_rgb
from data.module import held_out_blocks, training_loader
from data.tokenization import none_readable, split_numbers
from enat.errors import InputError, counted, printable
from enat.files import sha256_if_readable
from enat.images import Block, center_crop
from enat.randomness import rng_for

HASHED_BYTES = 2**32  # up to which the content of a folder of images is hashed


class RandomCrop:
    """Cuts a random square out of an image and mirrors every second one.

    Args:
        side: of the crop, in pixels.
        smallest: the image is resized so that the crop has at least this share of its short side; 1 takes all of it.
        flip: whether to mirror.
    """

    def __init__(self, side: Annotated[int, Ge(1)], smallest: Annotated[float, Gt(0), Le(1)] = 0.8, flip: bool = True):
        self.side = side
        self.smallest = smallest
        self.flip = flip

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Returns a crop, uint8 (S, S, 3)."""
        size = round(self.side / rng.uniform(self.smallest, 1.0))
        while min(image.size) >= 2 * size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = size / min(image.size)
        width, height = (max(round(length * scale), size) for length in image.size)
        left = int(rng.integers(width - self.side + 1))
        top = int(rng.integers(height - self.side + 1))
        # Only the part that is kept is resized: a very long image would fill the memory.
        box = (left / scale, top / scale, (left + self.side) / scale, (top + self.side) / scale)
        limits = (min(box[2], image.width), min(box[3], image.height))
        crop = image.resize((self.side, self.side), Image.Resampling.BICUBIC, (box[0], box[1], *limits))
        pixels = np.asarray(crop)
        return pixels[:, ::-1] if self.flip and rng.random() < 0.5 else pixels


class ImageReader:
    """Reads images of a list by number. In place of one that can't be read, it takes the next, and names the former.

    Args:
        files: the list.
        split: of which they are: `train` or `held_out`.

    Raises:
        InputError: if no image of the list can be read.
    """

    def __init__(self, files: Sequence[Path], split: Literal["train", "held_out"]):
        self.files = files
        self.split = split
        self.named: set[int] = set()
        self._read(0)  # so that no training begins in vain

    def __call__(self, number: int) -> Image.Image:
        """Reads an image, RGB.

        Raises:
            InputError: if no image of the list can be read.
        """
        image, reasons = self._read(number)
        for place in sorted(reasons.keys() - self.named):
            print(f"Another image is taken for {printable(reasons[place])}")
        self.named |= reasons.keys()
        return image

    def _read(self, number: int) -> tuple[Image.Image, dict[int, str]]:
        """Reads the first image from a number on that can be read; returns it, and what is wrong with those before."""
        reasons: dict[int, str] = {}
        for place in range(number, number + len(self.files)):
            place %= len(self.files)
            try:
                return load_rgb(self.files[place]), reasons
            except InputError as error:
                reasons[place] = str(error)
        raise InputError(f"data.images: {none_readable(self.split, [*reasons.values()], 'data.held_out')}")


class ImageStream(Dataset[Tensor]):
    """Reads training images by their position in an endless stream: each epoch has another order, and other crops.

    Args:
        files: the images.
        crop: cuts a square out of each.
        seed: determines, with the position, the order and the crops.

    Raises:
        InputError: if none of the images can be read.
    """

    def __init__(self, files: Sequence[Path], crop: RandomCrop, seed: int):
        self.read = ImageReader(files, "train")
        self.size = len(files)
        self.crop = crop
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return rng_for("order of images", self.seed, epoch).permutation(self.size)

    def __getitems__(self, positions: range) -> Tensor:
        """Reads the images at positions of the stream, uint8 (B, 3, S, S)."""
        crops = []
        for position in positions:
            epoch, place = divmod(position, self.size)
            rng = rng_for("crop", self.seed, epoch, place)
            crops.append(self.crop(self.read(int(self._order(epoch)[place])), rng))
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


class HeldOutImages(Dataset[Tensor]):
    """The images of a folder that a tokenizer is not trained on, cropped as for tokenisation.

    Args:
        images: the folder.
        held_out: the share of its images; with the same share and seed, task=tokenize holds out the same ones.
        seed: decides which.
        resolution: side of the crops in pixels.
        at_most: the number of images to use.

    Raises:
        InputError: if there is no such folder, it has too few images, or none that is held out can be read.
    """

    read_together = 1

    def __init__(
        self,
        images: str | None,
        held_out: Annotated[float, Ge(0), Lt(1)],
        seed: int,
        resolution: Annotated[int, Ge(1)],
        at_most: Annotated[int, Ge(1)] = 1000,
    ):
        self.files, self.training_files = split_folder(images, held_out, seed)
        self.read_image = ImageReader(self.files, "held_out")
        self.resolution = resolution
        self.num_images = min(at_most, len(self.files))
        self.identity: Mapping[str, Any] = {
            "kind": "held-out images of a folder",
            "path": images,
            "resolution": resolution,
            "listing_sha256": listing_sha256(Path(str(images)), self.files[: self.num_images]),
        }

    def __len__(self) -> int:
        return self.num_images

    def __getitems__(self, numbers: Sequence[int]) -> Tensor:
        """Reads images, uint8 (B, 3, S, S)."""
        crops = [np.asarray(center_crop(self.read_image(number), self.resolution)) for number in numbers]
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        for place in places:
            yield Block(torch.tensor(place), self.__getitems__(place).to(device).float() / 255)


@lru_cache(maxsize=4)
def split_folder(images: str | None, held_out: float, seed: int) -> tuple[list[Path], list[Path]]:
    """Finds the images of a folder; returns those that are held out from training, and the others.

    Raises:
        InputError: if there is no such folder, or one of the two parts would be empty.
    """
    if images is None or not Path(images).is_dir():
        raise InputError(f"data.images={images}: expected a folder of images.")
    files, ignored = find_images(Path(images))
    for reason in ignored:
        rank_zero_only(print)(f"Ignored: {printable(reason)}.")
    if len(files) < 2:
        raise InputError(f"data.images={images}: found {counted(len(files), 'image')}; expected at least 2.")
    in_folders = [file for file in files if file.parent != Path(images)]
    if in_folders and len(in_folders) < len(files):  # task=tokenize, too, takes those in class folders only
        rank_zero_only(print)(
            f"Ignored: {images}: {counted(len(files) - len(in_folders), 'image')} beside the folders of images."
        )
        files = in_folders
    numbers = split_numbers(len(files), held_out, seed)
    parts = {split: [files[number] for number in chosen] for split, chosen in numbers.items()}
    if not parts["held_out"]:
        raise InputError(
            f"data.held_out={held_out}: holds none of the {len(files)} images out; expected a larger share."
        )
    if not parts["train"]:
        raise InputError(f"data.held_out={held_out}: leaves no image to train on; expected a smaller share.")
    return parts["held_out"], parts["train"]


def listing_sha256(folder: Path, files: Sequence[Path]) -> str:
    """Returns a hash of the names of files below a folder, wherever it is, and of their content.

    Of more than `HASHED_BYTES` bytes together, reading all would take too long, so that their sizes are hashed instead.
    """
    sizes = [file.stat().st_size for file in files]
    facts = sizes if sum(sizes) > HASHED_BYTES else [sha256_if_readable(file) for file in files]
    listing = [(str(file.relative_to(folder)), fact) for file, fact in zip(files, facts, strict=True)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


@dataclass(kw_only=True, eq=False, repr=False)
class ImageDataModule(L.LightningDataModule):
    """Reads the images of a folder, of any sizes and with or without class folders.

    Args:
        images: the folder.
        crop: cuts training images out.
        batch_size: images of an optimiser step, over all devices and accumulated batches.
        seed: determines the order, the crops and which images are held out.
        held_out: share of the images that is not trained on, but reconstructed at each validation.
        at_most: so many held-out images are reconstructed at each validation.
        num_workers: processes on each rank that read ahead; 0 reads in the training process.

    Raises:
        InputError: if there is no such folder, it has too few images, or none of a split can be read.
    """

    images: str | None
    crop: RandomCrop
    batch_size: Annotated[int, Ge(1)]
    seed: int = 0
    held_out: Annotated[float, Ge(0), Lt(1)] = 0.05
    at_most: Annotated[int, Ge(1)] = 1000
    num_workers: Annotated[int, Ge(0)] = 0

    class_names = ()  # an attribute of every data module; images for a tokenizer have no classes

    def __post_init__(self) -> None:
        super().__init__()

    @cached_property
    def held_out_images(self) -> HeldOutImages:
        """The images that are reconstructed at each validation."""
        return HeldOutImages(self.images, self.held_out, self.seed, self.crop.side, self.at_most)

    def sha256(self) -> str:
        """Returns a hash of the images as they were when it was first asked for, wherever the folder is."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:  # each checkpoint has it, and hashing takes seconds
        held_out, train = split_folder(self.images, self.held_out, self.seed)
        return listing_sha256(Path(str(self.images)), [*held_out, *train])

    def setup(self, stage: str) -> None:
        train = self.held_out_images.training_files
        rank_zero_only(print)(
            f"{self.images}: {len(train):,} training images and {len(self.held_out_images.files):,} held out, cropped "
            f"to {self.crop.side} px."
        )

    def train_dataloader(self) -> DataLoader:
        """Starts the stream at the first batch that the trainer has not yet trained on."""
        stream = ImageStream(self.held_out_images.training_files, self.crop, self.seed)
        return training_loader(stream, self.batch_size, self.num_workers, self.trainer)

    def val_dataloader(self) -> DataLoader:
        """Reads the held-out images."""
        trainer: Any = self.trainer
        blocks = held_out_blocks(len(self.held_out_images), trainer.global_rank, trainer.world_size, 50)
        return DataLoader(self.held_out_images, batch_sampler=blocks, collate_fn=default_convert)  # type: ignore[arg-type]
