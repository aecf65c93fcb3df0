"""Images in files, for scores: reading a folder of them, or shards as their tokenizer decodes them, and writing.

What reads is an `enat.images.Images`.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.images import SUFFIXES, center_crop, load_rgb
from data.shards import Manifest, ShardPacks, check_shards
from enat.errors import InputError
from enat.files import write_atomically
from enat.images import Block, to_bytes
from enat.tokenizers.base import Tokenizer


class _FileBlocks(Dataset[tuple[torch.Tensor, torch.Tensor, list[str], str | None]]):
    """Blocks of image files: numbers, images (b, 3, H, W), uint8, why others can't be read, and what is wrong."""

    def __init__(self, files: Sequence[Path], places: Sequence[range], resolution: int | None):
        self.files, self.places, self.resolution = files, places, resolution

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor, list[str], str | None]:
        numbers: list[int] = []
        images: list[Image.Image] = []
        skipped: list[str] = []
        for number in self.places[item]:
            try:
                image = load_rgb(self.files[number])
            except InputError as error:
                skipped.append(str(error))
                continue
            image = image if self.resolution is None else center_crop(image, self.resolution)
            if images and images[0].size != image.size:
                sizes = " and ".join(f"{width}x{height}" for width, height in (images[0].size, image.size))
                return torch.empty(0), torch.empty(0), skipped, f"{self.files[number]}: of another size ({sizes})"
            images.append(image)
            numbers.append(number)
        pixels = np.stack([np.asarray(image) for image in images]) if images else np.empty((0, 0, 0, 3), np.uint8)
        return torch.tensor(numbers, dtype=torch.int64), torch.from_numpy(pixels).permute(0, 3, 1, 2), skipped, None


class FolderImages:
    """All image files below a folder; broken ones are named and left out.

    Args:
        path: the folder.
        resolution: images are cropped to this side as for training; None takes them as they are.
        num_workers: processes that read, at most as many as there are cores.

    Raises:
        InputError: if there are fewer than two image files.
    """

    read_together = 1

    def __init__(self, path: str | None, resolution: int | None, num_workers: int):
        if path is None or not Path(path).is_dir():
            raise InputError(f"images={path}: expected a folder of images.")
        if num_workers < 0 or (resolution is not None and resolution < 1):
            raise InputError(f"resolution={resolution}, num_workers={num_workers}: expected at least 1 and 0.")
        below = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
        self.files = sorted(file for file in below if file.suffix.lower() in SUFFIXES)
        if len(self.files) < 2:
            raise InputError(f"images={path}: found {len(self.files)} images; expected at least 2.")
        self.num_images, self.resolution = len(self.files), resolution
        self.num_workers = min(num_workers, len(os.sched_getaffinity(0)))
        status = [file.stat() for file in self.files]
        listing = [
            (str(file.relative_to(path)), found.st_size, found.st_mtime_ns)
            for file, found in zip(self.files, status, strict=True)
        ]
        digest = hashlib.sha256(json.dumps(listing).encode()).hexdigest()
        self.identity: Mapping[str, Any] = {
            "kind": "folder of images",
            "path": path,
            "resolution": resolution,
            "listing_sha256": digest,  # of names, sizes and times
        }

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        blocks = _FileBlocks(self.files, places, self.resolution)
        for numbers, images, skipped, problem in DataLoader(blocks, batch_size=None, num_workers=self.num_workers):
            if problem is not None:
                raise InputError(f"{problem}; expected images of one size, or a resolution to crop them to.")
            yield Block(numbers, images.to(device).float() / 255, None, skipped)


class ShardImages:
    """The images of a set of shards, in their first view, as the tokenizer decodes them.

    Args:
        path: folder of the shards.
        tokenizer: the one that made them.
        split: `train` or `held_out`.
        num_images: of the split, whose order is mixed; None for all.

    Raises:
        InputError: for shards that are missing, altered, or made by another tokenizer.
    """

    read_together = 1

    def __init__(self, path: str | None, tokenizer: Tokenizer, split: str, num_images: int | None):
        if path is None:
            raise InputError("path=null: expected a folder of shards that task=tokenize wrote.")
        folder = Path(path)
        manifest = Manifest.load(folder)
        check_shards(folder, manifest)
        if manifest.tokenizer_sha256 != tokenizer.fingerprint():
            raise InputError(f"{path}: these shards were made by another tokenizer than the one configured.")
        self.packs, self.tokenizer = ShardPacks(folder, manifest, split), tokenizer
        self.starts = np.cumsum([0, *self.packs.sizes])
        total = int(self.starts[-1])
        if num_images is not None and not 2 <= num_images <= total:
            raise InputError(f"num_images={num_images}: expected 2 to {total}, the {split} images in {path}.")
        self.num_images = total if num_images is None else num_images
        shards = "".join(shard.sha256 for shard in manifest.splits[split])
        self.identity: Mapping[str, Any] = {
            "kind": "decoded shards",
            "path": path,
            "split": split,
            "shards_sha256": hashlib.sha256(shards.encode()).hexdigest(),
            "tokenizer_sha256": manifest.tokenizer_sha256,
        }

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        self.tokenizer.to(device)
        loaded = -1
        for place in places:
            token_ids, class_ids = [], []
            for number in place:
                pack = int(np.searchsorted(self.starts, number, side="right")) - 1
                if pack != loaded:
                    (tokens, classes), loaded = self.packs.read(pack), pack
                token_ids.append(tokens[number - self.starts[pack], 0])
                class_ids.append(classes[number - self.starts[pack]])
            ids = torch.from_numpy(np.stack(token_ids).astype(np.int64)).to(device)
            classes_of = torch.from_numpy(np.array(class_ids, dtype=np.int64)).to(device)
            yield Block(torch.tensor(place), self.tokenizer.decode(ids).float(), classes_of)


class ImageWriter:
    """Writes images as PNG files named by their numbers; many processes may write to the same folder.

    Args:
        folder: is made when needed.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.png"

    def write(self, block: Block) -> None:
        """Writes the images of a block."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pixels = to_bytes(block.images).permute(0, 2, 3, 1).cpu().numpy()
        for number, image in zip(block.numbers.tolist(), pixels, strict=True):
            Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(self._file(number))

    def _pack(self, target: IO[bytes], num_images: int) -> None:
        with zipfile.ZipFile(target, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
            for number in range(num_images):
                image = np.asarray(load_rgb(self._file(number)))
                if number == 0:
                    header = {"descr": "|u1", "fortran_order": False, "shape": (num_images, *image.shape)}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(image.tobytes())

    def clear(self) -> None:
        """Removes what an earlier run has written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".npz").unlink(missing_ok=True)

    def finish(self, num_images: int, npz: bool, keep: bool) -> str:
        """With `npz`, packs the images into an uncompressed FOLDER.npz with `arr_0`; removes the folder unless `keep`.

        Returns:
            The file or the folder.
        """
        if not npz:
            return str(self.folder)
        path = self.folder.with_suffix(".npz")
        write_atomically(path, lambda file: self._pack(file, num_images))
        if not keep:
            shutil.rmtree(self.folder)
        return str(path)
