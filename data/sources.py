"""Reads what can be tokenised: image files, or an official token cache.

Shapes: `n` samples, `V` views of a sample, `L` tokens of a view, `S` height and width of a view in pixels.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import numpy as np
import torch
from annotated_types import Ge
from torch.utils.data import DataLoader

from data.arrays import map_npy
from data.images import ImageFiles, ImageList, Views
from enat.errors import InputError
from enat.files import sha256_if_readable
from enat.tokenizers.base import Tokenizer


class Encoded(NamedTuple):
    """Holds the samples of a shard, and the images that could not be read."""

    token_ids: np.ndarray  # (n, V, L), of any integer type
    class_ids: np.ndarray  # (n,)
    sources: np.ndarray  # (n,), numbers of the samples in the source
    skipped: list[dict[str, str]]  # `file` and `reason` of each


class Source(Protocol):
    """Encodes samples that are chosen by number."""

    size: int  # number of samples
    class_names: list[str]  # a class id is an index of this list
    views: list[str]  # names of the views of a sample
    digest: str  # sha256 that differs between two sources with different samples, as far as names and sizes say

    def content(self, numbers: np.ndarray) -> str:
        """Returns a sha256 of the content of the samples with these numbers."""

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """Encodes the samples with these numbers; calls `on_images` with the count of each batch that is done."""


class ImageSource:
    """Encodes image files: worker processes read and crop them, the tokenizer encodes them in batches on its device.

    Args:
        images: lists the files and their classes.
        views: cuts the views out of each image.
        batch_size: number of images that are encoded at a time.
        num_workers: number of processes that read images; 0 reads in this process.
    """

    def __init__(
        self, images: ImageList, views: Views, batch_size: Annotated[int, Ge(1)], num_workers: Annotated[int, Ge(0)]
    ):
        self.images = images
        self.files = ImageFiles(images.folder, images.files, views)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.size = len(images.files)
        self.class_names = images.class_names
        self.views = views.names
        file_sizes = [(images.folder / file).stat().st_size for file in images.files]
        listing = json.dumps([views.side, views.names, images.files, file_sizes, images.class_ids.tolist()])
        self.digest = hashlib.sha256(listing.encode()).hexdigest()

    def content(self, numbers: np.ndarray) -> str:
        paths = [self.images.folder / self.images.files[number] for number in numbers]
        with ThreadPoolExecutor() as pool:  # reading and hashing leave Python's lock
            return hashlib.sha256("".join(pool.map(sha256_if_readable, paths)).encode()).hexdigest()

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """See `Source`."""
        batches = [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]
        loader: Any = DataLoader(self.files, batch_sampler=batches, num_workers=self.num_workers, collate_fn=list)  # type: ignore[arg-type]
        no_tokens = np.empty((0, len(self.views), tokenizer.grid[0] * tokenizer.grid[1]), dtype=np.int64)
        token_ids = [no_tokens]  # so that a shard without a readable image has an array too
        reasons: list[str] = []  # why an image is unreadable; empty for a readable image
        for batch in loader:
            if readable := [views for views in batch if not isinstance(views, str)]:
                token_ids.append(_encode_views(np.stack(readable), tokenizer))
            reasons += [views if isinstance(views, str) else "" for views in batch]
            on_images(len(batch))
        sources = numbers[[not reason for reason in reasons]]
        skipped = [
            {"file": self.images.files[number], "reason": reason}
            for number, reason in zip(numbers, reasons, strict=True)
            if reason
        ]
        return Encoded(np.concatenate(token_ids), self.images.class_ids[sources], sources, skipped)


def _encode_views(views: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Encodes views (n, V, S, S, 3), uint8, to token ids (n, V, L), int64."""
    device = next((tensor.device for tensor in tokenizer.state_dict().values()), torch.device("cpu"))
    pixels = torch.from_numpy(views).to(device).flatten(0, 1)  # (n * V, S, S, 3)
    token_ids = tokenizer.encode(pixels.permute(0, 3, 1, 2).float() / 255)
    return token_ids.unflatten(0, views.shape[:2]).cpu().numpy()


class TokenCacheSource:
    """Reads the official token cache `train.npy`: a row for each view, its class id and then its `L` token ids.

    The file is mapped into memory, not loaded; class ids must be below `num_classes`. See docs/method.md, Data.

    Raises:
        InputError: if the file is missing, or not a two-dimensional .npy array of whole numbers.
    """

    views = ["row"]  # noqa: RUF012

    def __init__(self, path: Path, num_classes: Annotated[int, Ge(1)]):
        self.path = path
        try:
            self.rows = map_npy(path)
        except OSError as error:
            raise InputError(f"images={path}: can't be read: {error.strerror}.") from error
        except ValueError as error:
            raise InputError(f"images={path}: truncated, or no .npy file.") from error
        if self.rows.ndim != 2 or not np.issubdtype(self.rows.dtype, np.integer):
            raise InputError(f"images={path}: {self.rows.dtype} {self.rows.shape}; expected rows of whole numbers.")
        if not len(self.rows):
            raise InputError(f"images={path}: the file has no rows.")
        self.size = len(self.rows)
        self.class_names = [str(class_id) for class_id in range(num_classes)]
        digest = hashlib.sha256(f"{self.rows.shape} {self.rows.dtype} {num_classes}".encode())
        every = max(len(self.rows) // 1000, 1)  # about 1,000 rows tell one cache from another; all would take minutes
        digest.update(np.ascontiguousarray(self.rows[::every]).tobytes())
        self.digest = digest.hexdigest()

    def content(self, numbers: np.ndarray) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.rows[np.sort(numbers)]).tobytes()).hexdigest()

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """See `Source`.

        Raises:
            InputError: if the rows have another number of tokens than the tokenizer, or naming a row with an id that
                is out of range.
        """
        num_tokens = tokenizer.grid[0] * tokenizer.grid[1]
        if self.rows.shape[1] != num_tokens + 1:
            raise InputError(f"images={self.path}: {self.rows.shape[1] - 1} tokens a row; expected {num_tokens}.")
        in_file_order = np.sort(numbers)  # a disk reads in this order much faster
        rows = np.asarray(self.rows[in_file_order])[np.searchsorted(in_file_order, numbers)]
        limits = np.array([len(self.class_names)] + [tokenizer.codebook_size] * num_tokens)
        is_wrong = ((rows < 0) | (rows >= limits)).any(axis=1)
        if is_wrong.any():
            row = int(numbers[is_wrong][0])
            raise InputError(
                f"images={self.path}: row {row} has class {int(self.rows[row, 0])} or a token out of range; expected "
                f"classes below {len(self.class_names)} and tokens below {tokenizer.codebook_size}."
            )
        on_images(len(numbers))
        return Encoded(token_ids=rows[:, None, 1:], class_ids=rows[:, 0], sources=numbers, skipped=[])
