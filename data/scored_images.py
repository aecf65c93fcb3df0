"""Reads images from files so that they can be scored, and writes generated images to files.

The readers implement `enat.images.Images`. Shapes: `b` images of a block, `H` and `W` height and width.
"""

import hashlib
import json
import os
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from PIL import Image
from torch.utils.data import DataLoader

from data.images import ImageFiles, ImageList, find_images, load_rgb
from data.manifest import Manifest
from data.shards import ShardPacks, check_shards, write_array
from data.tokenization import split_numbers
from enat.errors import InputError, counted
from enat.files import MARK, make_own_folder, remove_own_folder, write_atomically
from enat.images import Block, center_crop, to_pil
from enat.tokenizers.base import Tokenizer


def num_cores() -> int:
    """Returns how many CPU cores this process may use, or on systems that don't say so, such as macOS, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FolderImages:
    """Reads all image files below a folder. Unreadable files, and files that are no images, are in `Block.skipped`.

    Args:
        path: the folder.
        resolution: side in pixels to which images are cropped, as for training; None leaves images as they are.
        num_workers: number of processes that read; the number of CPU cores is an upper limit.

    Raises:
        InputError: if there are fewer than two image files; from `read`, if the images have several sizes.
    """

    read_together = 1
    by = "scored.path=DIR or, as a reference, by reference.path=DIR"  # how a command names the folder
    for_archive = ", or scored=npz (for a reference, reference=npz) beside this path"

    def __init__(self, path: str | None, resolution: Annotated[int, Ge(1)] | None, num_workers: Annotated[int, Ge(0)]):
        if path is None:
            raise InputError(f"path=null: expected a folder of images, by {self.by}.")
        if path.endswith(".npz") and Path(path).is_file():
            raise InputError(f"path={path}: this is a file; expected a folder of images{self.for_archive}.")
        if not Path(path).is_dir():
            raise InputError(f"path={path}: there is no such folder; expected one of images.")
        self.files, self.ignored = find_images(Path(path))
        if len(self.files) < 2:
            reason = f" ({'; '.join(self.ignored)})" if self.ignored else ""
            raise InputError(f"{path}: found {counted(len(self.files), 'image')}{reason}; expected at least 2.")
        self.num_images = len(self.files)
        self.resolution = resolution
        self.num_workers = min(num_workers, num_cores())
        statuses = [file.stat() for file in self.files]
        listing = [
            (str(file.relative_to(path)), status.st_size, status.st_mtime_ns)
            for file, status in zip(self.files, statuses, strict=True)
        ]
        self.identity: Mapping[str, Any] = {
            "kind": "folder of images",
            "path": path,
            "resolution": resolution,
            "listing_sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
        }

    def _crop(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image if self.resolution is None else center_crop(image, self.resolution))

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        files = ImageFiles(Path(), self.files, self._crop)
        loader: Any = DataLoader(files, batch_sampler=places, num_workers=self.num_workers, collate_fn=list)  # type: ignore[arg-type]
        for place, read in zip(places, loader, strict=True):
            readable = {number: image for number, image in zip(place, read, strict=True) if not isinstance(image, str)}
            pixels = np.empty((0, 0, 0, 3), np.uint8)
            if readable:
                self._check_sizes(readable)
                pixels = np.stack(list(readable.values()))
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255
            skipped = [image for image in read if isinstance(image, str)] + (self.ignored if place.start == 0 else [])
            yield Block(torch.tensor(list(readable), dtype=torch.int64), images, None, skipped)

    def _check_sizes(self, images: Mapping[int, np.ndarray]) -> None:
        """Raises InputError for the first image that has another size than the one before it."""
        for (_, before), (number, image) in pairwise(images.items()):
            if before.shape != image.shape:
                sizes = " and ".join(f"{width}x{height}" for height, width, _ in (before.shape, image.shape))
                raise InputError(
                    f"{self.files[number]}: of another size ({sizes}); expected images of one size, or a resolution "
                    "to crop them to."
                )


class ClassFolderImages(FolderImages):
    """Reads one part of the images of class folders, with their classes.

    Args:
        path: has a folder of images for each class.
        part: `train` or `held_out`, as task=tokenize splits the images with the same share and seed.
        held_out: the share of the images that is held out.
        seed: decides which.
        resolution, num_workers: see `FolderImages`.

    Raises:
        InputError: if there are no class folders, or fewer than two images in the part.
    """

    by = "metrics.images=DIR"
    for_archive = ""

    def __init__(
        self,
        path: str | None,
        part: Literal["train", "held_out"],
        held_out: Annotated[float, Ge(0), Lt(1)],
        seed: int,
        resolution: Annotated[int, Ge(1)] | None,
        num_workers: Annotated[int, Ge(0)],
    ):
        super().__init__(path, resolution, num_workers)
        listed = ImageList.find(Path(str(path)))
        numbers = split_numbers(len(listed.files), held_out, seed)[part].tolist()
        self.files = [listed.folder / listed.files[number] for number in numbers]
        self.class_ids = torch.from_numpy(listed.class_ids[numbers].astype(np.int64))
        self.class_names = list(listed.class_names)
        self.class_counts = torch.bincount(self.class_ids, minlength=len(listed.class_names)).tolist()
        self.part = part
        self.numbers = numbers  # among all images of the folder
        self.num_images = len(self.files)
        self.identity = {**self.identity, "part": part, "held_out": held_out, "seed": seed}
        if len(self.files) < 2:
            raise InputError(f"{path}: {counted(len(self.files), 'image')} of the part {part}; expected at least 2.")

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        for block in super().read(places, device):
            yield block._replace(class_ids=self.class_ids[block.numbers].to(device))


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
        if tokenizer.has_other_codes(vars(manifest)):
            raise InputError(f"{path}: these shards were made by another tokenizer than the one configured.")
        self.packs = ShardPacks(folder, manifest, split)
        self.tokenizer = tokenizer
        self.class_names = manifest.class_names
        self.ends = np.cumsum(self.packs.sizes).tolist()  # for each pack, the number after its last image
        total = self.ends[-1]
        if num_images is not None and num_images > total:
            raise InputError(f"num_images={num_images}: expected 2 to {total}, the {split} images in {path}.")
        self.num_images = total if num_images is None else num_images
        self.identity: Mapping[str, Any] = {
            "kind": "decoded shards",
            "path": path,
            "split": split,
            "num_images": num_images,
            "shards_sha256": manifest.split_sha256(split),
            "tokenizer_sha256": tokenizer.fingerprint(),
        }

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        self.tokenizer.to(device)
        read_pack = lru_cache(maxsize=1)(self.packs.read)
        for place in places:
            samples = []
            for number in place:
                pack = bisect_right(self.ends, number)
                token_ids, class_ids = read_pack(pack)
                row = number - self.ends[pack]  # a negative number: it counts from the end of the pack
                samples.append((token_ids[row, 0], class_ids[row]))
            block_token_ids, block_class_ids = (
                torch.from_numpy(np.array(values).astype(np.int64)).to(device) for values in zip(*samples, strict=True)
            )
            yield Block(torch.tensor(place), self.tokenizer.decode(block_token_ids).float(), block_class_ids)


class ImageWriter:
    """Writes images as PNG files, named by their numbers, to a folder. Several processes may write to the same one."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.png"

    def write(self, block: Block) -> None:
        """Writes the images of a block."""
        for number, image in zip(block.numbers.tolist(), to_pil(block.images), strict=True):
            write_atomically(self._path(number), partial(image.save, format="PNG"))

    def _pack(self, target: IO[bytes], num_images: int) -> None:
        """Writes an .npz archive image by image, so that not all images have to be in memory."""
        shape = np.asarray(load_rgb(self._path(0))).shape
        images = (np.asarray(load_rgb(self._path(number))) for number in range(num_images))
        with zipfile.ZipFile(target, "w") as archive, archive.open("arr_0.npy", "w", force_zip64=True) as file:
            write_array(file, np.uint8, (num_images, *shape), images)

    def prepare(self, anew: bool) -> None:
        """Makes the folder; `anew` removes what an earlier run has written.

        Raises:
            InputError: if the folder holds other files.
        """
        if anew:
            archive = self.folder.with_suffix(".npz")
            is_ours = (self.folder / MARK).exists() or (self.folder.parent / "results.json").exists()
            if archive.exists() and not is_ours:
                raise InputError(f"{archive}: this exists already; expected another output=DIR.")
            archive.unlink(missing_ok=True)
            remove_own_folder(self.folder)
        make_own_folder(self.folder)

    def finish(self, num_images: int, npz: bool, keep: bool) -> str:
        """Finishes the output once all images have been written; returns the path of the archive or else the folder.

        With `npz`, it packs the images into an uncompressed archive FOLDER.npz with the array `arr_0`, as ADM's suite
        reads, and removes the PNG files unless `keep` is set.
        """
        if not npz:
            return str(self.folder)
        path = self.folder.with_suffix(".npz")
        if not path.exists():  # or it was written, and the process was killed as it removed the images
            write_atomically(path, lambda file: self._pack(file, num_images))
        if not keep:
            remove_own_folder(self.folder)
        return str(path)
