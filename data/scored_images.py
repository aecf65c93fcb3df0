"""Reads images from files so that they can be scored, and writes generated images to files.

The readers implement `enat.images.Images`. Shapes: `b` images of a block, `H` and `W` height and width.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import numpy as np
import torch
from annotated_types import Ge
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.images import SUFFIXES, center_crop, load_rgb
from data.shards import Manifest, ShardPacks, check_shards
from enat.errors import InputError
from enat.files import write_atomically
from enat.images import Block, to_bytes
from enat.tokenizers.base import Tokenizer


class _ReadFiles(NamedTuple):
    """Holds the readable images of a block; or, if they differ in size, an error sentence."""

    numbers: Tensor  # (b,)
    images: Tensor  # (b, 3, H, W), uint8
    skipped: list[str]  # why other images could not be read
    error: str | None


class _FileBlocks(Dataset[_ReadFiles]):
    """Reads image files, a block for each range of file numbers."""

    def __init__(self, files: Sequence[Path], places: Sequence[range], resolution: int | None):
        self.files = files
        self.places = places
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> _ReadFiles:
        numbers: list[int] = []
        images: list[Image.Image] = []
        skipped: list[str] = []
        for number in self.places[item]:
            try:
                image = load_rgb(self.files[number])
            except InputError as error:
                skipped.append(str(error))
                continue
            if self.resolution is not None:
                image = center_crop(image, self.resolution)
            if images and images[0].size != image.size:
                sizes = " and ".join(f"{width}x{height}" for width, height in (images[0].size, image.size))
                error_sentence = f"{self.files[number]}: of another size ({sizes})"
                return _ReadFiles(torch.empty(0), torch.empty(0), skipped, error_sentence)
            images.append(image)
            numbers.append(number)
        pixels = np.stack([np.asarray(image) for image in images]) if images else np.empty((0, 0, 0, 3), np.uint8)
        return _ReadFiles(
            torch.tensor(numbers, dtype=torch.int64), torch.from_numpy(pixels).permute(0, 3, 1, 2), skipped, None
        )


class FolderImages:
    """Reads all image files below a folder. Unreadable files are left out and reported in `Block.skipped`.

    Args:
        path: the folder.
        resolution: side in pixels to which images are cropped, as for training; None leaves images as they are.
        num_workers: number of processes that read; the number of CPU cores is an upper limit.

    Raises:
        InputError: if there are fewer than two image files; from `read`, if the images have several sizes.
    """

    read_together = 1

    def __init__(self, path: str | None, resolution: Annotated[int, Ge(1)] | None, num_workers: Annotated[int, Ge(0)]):
        if path is None or not Path(path).is_dir():
            raise InputError(f"images={path}: expected a folder of images.")
        all_files = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
        self.files = sorted(file for file in all_files if file.suffix.lower() in SUFFIXES)
        if len(self.files) < 2:
            raise InputError(f"images={path}: found {len(self.files)} images; expected at least 2.")
        self.num_images = len(self.files)
        self.resolution = resolution
        self.num_workers = min(num_workers, len(os.sched_getaffinity(0)))
        names_sizes_and_times = []
        for file in self.files:
            status = file.stat()
            names_sizes_and_times.append((str(file.relative_to(path)), status.st_size, status.st_mtime_ns))
        self.identity: Mapping[str, Any] = {
            "kind": "folder of images",
            "path": path,
            "resolution": resolution,
            "listing_sha256": hashlib.sha256(json.dumps(names_sizes_and_times).encode()).hexdigest(),
        }

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        blocks = _FileBlocks(self.files, places, self.resolution)
        for numbers, images, skipped, error in DataLoader(blocks, batch_size=None, num_workers=self.num_workers):
            if error is not None:
                raise InputError(f"{error}; expected images of one size, or a resolution to crop them to.")
            yield Block(numbers, images.to(device).float() / 255, None, skipped)


class ShardImages:
    """Decodes the images of a set of shards with their tokenizer, each in its first view.

    Args:
        path: folder of the shards.
        tokenizer: made the shards.
        split: `train` or `held_out`.
        num_images: number of images from the start of the split, in which all classes are mixed; None reads all.

    Raises:
        InputError: for shards that are missing, altered, or made by another tokenizer; for more images than there are.
    """

    read_together = 1

    def __init__(self, path: str | None, tokenizer: Tokenizer, split: str, num_images: Annotated[int, Ge(2)] | None):
        if path is None:
            raise InputError("path=null: expected a folder of shards that task=tokenize wrote.")
        folder = Path(path)
        manifest = Manifest.load(folder)
        check_shards(folder, manifest)
        if manifest.tokenizer_sha256 != tokenizer.fingerprint():
            raise InputError(f"{path}: these shards were made by another tokenizer than the one configured.")
        self.packs = ShardPacks(folder, manifest, split)
        self.tokenizer = tokenizer
        self.starts = np.cumsum([0, *self.packs.sizes])  # number of the first image of each pack
        total = int(self.starts[-1])
        if num_images is not None and num_images > total:
            raise InputError(f"num_images={num_images}: expected 2 to {total}, the {split} images in {path}.")
        self.num_images = total if num_images is None else num_images
        sha256_of_shards = "".join(shard.sha256 for shard in manifest.splits[split])
        self.identity: Mapping[str, Any] = {
            "kind": "decoded shards",
            "path": path,
            "split": split,
            "shards_sha256": hashlib.sha256(sha256_of_shards.encode()).hexdigest(),
            "tokenizer_sha256": manifest.tokenizer_sha256,
        }

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        self.tokenizer.to(device)
        loaded_pack = -1
        for place in places:
            token_ids = []
            class_ids = []
            for number in place:
                pack = int(np.searchsorted(self.starts, number, side="right")) - 1
                if pack != loaded_pack:
                    pack_token_ids, pack_class_ids = self.packs.read(pack)
                    loaded_pack = pack
                token_ids.append(pack_token_ids[number - self.starts[pack], 0])
                class_ids.append(pack_class_ids[number - self.starts[pack]])
            images = self.tokenizer.decode(torch.from_numpy(np.stack(token_ids).astype(np.int64)).to(device))
            block_class_ids = torch.from_numpy(np.array(class_ids, dtype=np.int64)).to(device)
            yield Block(torch.tensor(place), images.float(), block_class_ids)


class ImageWriter:
    """Writes images as PNG files named by their numbers. Several processes may write to the same folder.

    Args:
        folder: folder of the files; it is made by the first `write`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.png"

    def write(self, block: Block) -> None:
        """Writes the images of a block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels = to_bytes(block.images).permute(0, 2, 3, 1).cpu().numpy()
        for number, image in zip(block.numbers.tolist(), pixels, strict=True):
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(self._path(number))

    def _pack(self, target: IO[bytes], num_images: int) -> None:
        """Writes an .npz archive image by image, so that not all images have to be in memory."""
        with zipfile.ZipFile(target, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number in range(num_images):
                image = np.asarray(load_rgb(self._path(number)))
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *image.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(image.tobytes())

    def clear(self) -> None:
        """Removes the images that an earlier run has written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".npz").unlink(missing_ok=True)

    def finish(self, num_images: int, npz: bool, keep: bool) -> str:
        """Finishes the output once all images have been written.

        Args:
            num_images: number of images in the folder.
            npz: pack the images into an uncompressed archive FOLDER.npz with the array `arr_0`, as ADM's suite reads.
            keep: keep the PNG files beside the archive.

        Returns:
            The path of the archive, or of the folder if there is no archive.
        """
        if not npz:
            return str(self.folder)
        path = self.folder.with_suffix(".npz")
        write_atomically(path, lambda file: self._pack(file, num_images))
        if not keep:
            shutil.rmtree(self.folder)
        return str(path)
