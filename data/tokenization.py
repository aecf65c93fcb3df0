"""Turns images, or the official token cache, into shards; can be killed and started again.

The order of the images is a fixed permutation, so that each pack is a mix of classes. A shard is a unit of work: it
is written at once, ranks take turns, and a second start leaves finished ones alone. A shard's tokens depend on its own
images only, so that the result is the same bytes however often the work was interrupted, and by how many ranks done.

Shapes: `n` samples, `V` views of a sample, `L` tokens of a view.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.images import ImageList, Views, load_rgb
from data.shards import Manifest, Shard, token_dtype, write_atomically, write_shard
from enat.errors import InputError
from enat.tokenizers.base import Tokenizer


class Encoded(NamedTuple):
    """The samples of a shard, and the images that could not be read."""

    token_ids: np.ndarray  # (n, V, L)
    class_ids: np.ndarray  # (n,)
    sources: np.ndarray  # (n,)
    skipped: list[dict[str, str]]


class Source(Protocol):
    """Samples that can be encoded by their numbers."""

    size: int
    class_names: list[str]
    views: list[str]
    digest: str  # tells one source from another

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """Encodes the samples of these numbers; `on_images` hears how many are done."""


class _ImageViews(Dataset[np.ndarray | str]):
    """The views of some images, or the reason why an image can't be read."""

    def __init__(self, images: ImageList, numbers: np.ndarray, views: Views):
        self.images, self.numbers, self.views = images, numbers, views

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> np.ndarray | str:
        try:
            return self.views(load_rgb(self.images.folder / self.images.files[self.numbers[item]]))
        except InputError as error:
            return str(error)


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


class ImageSource:
    """Images, read and cropped by worker processes, encoded in batches on the tokenizer's device.

    Args:
        images: which.
        views: what is made of each.
        batch_size: images that are encoded at a time.
        num_workers: processes that read.
    """

    def __init__(self, images: ImageList, views: Views, batch_size: int, num_workers: int):
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"batch_size={batch_size}, num_workers={num_workers}: expected at least 1 image and 0 workers."
            )
        self.images, self.make_views, self.batch_size, self.num_workers = images, views, batch_size, num_workers
        self.size, self.class_names, self.views = len(images.files), images.class_names, views.names
        sizes = [(images.folder / file).stat().st_size for file in images.files]
        listing = json.dumps([views.side, views.names, images.files, sizes, images.class_ids.tolist()])
        self.digest = hashlib.sha256(listing.encode()).hexdigest()

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """See `Source`."""
        device = next((tensor.device for tensor in tokenizer.state_dict().values()), torch.device("cpu"))
        loader = DataLoader(
            _ImageViews(self.images, numbers, self.make_views),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_as_list,
        )
        dtype = token_dtype(tokenizer.codebook_size)
        token_ids, kept, skipped, done = [], [], [], 0
        for batch in loader:
            for number, views in zip(numbers[done : done + len(batch)], batch, strict=True):
                if isinstance(views, str):
                    skipped.append({"file": self.images.files[number], "reason": views})
                else:
                    kept.append(number)
            readable = [views for views in batch if not isinstance(views, str)]
            if readable:
                pixels = torch.from_numpy(np.stack(readable)).to(device)  # (n, V, S, S, 3), uint8
                pixels = pixels.flatten(0, 1).permute(0, 3, 1, 2).float() / 255
                token_ids.append(tokenizer.encode(pixels).unflatten(0, (len(readable), -1)).cpu().numpy().astype(dtype))
            done += len(batch)
            on_images(len(batch))
        shape = (0, len(self.views), tokenizer.grid[0] * tokenizer.grid[1])
        sources = np.array(kept, dtype=np.int64)
        return Encoded(
            np.concatenate([np.empty(shape, dtype=dtype), *token_ids]),
            self.images.class_ids[sources],
            sources,
            skipped,
        )


class TokenCacheSource:
    """The official `train.npy` (SPEC 7), memory-mapped: one row per view, the class id and then `L` token ids.

    Args:
        path: of the file.
        num_classes: class ids must be below it.

    Raises:
        InputError: if the file is no such cache.
    """

    views = ["row"]  # noqa: RUF012

    def __init__(self, path: Path, num_classes: int):
        self.path = path
        try:
            self.rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise InputError(f"images={path}: missing, truncated, or no .npy file.") from error
        if self.rows.ndim != 2 or not np.issubdtype(self.rows.dtype, np.integer):
            raise InputError(f"images={path}: {self.rows.dtype} {self.rows.shape}; expected rows of whole numbers.")
        self.size, self.class_names = len(self.rows), [str(number) for number in range(num_classes)]
        digest = hashlib.sha256(f"{self.rows.shape} {self.rows.dtype} {num_classes}".encode())
        digest.update(np.ascontiguousarray(self.rows[:: max(len(self.rows) // 1000, 1)]).tobytes())
        self.digest = digest.hexdigest()

    def encode(self, numbers: np.ndarray, tokenizer: Tokenizer, on_images: Callable[[int], None]) -> Encoded:
        """See `Source`.

        Raises:
            InputError: naming a row with another number of tokens, or ids out of range.
        """
        num_tokens = tokenizer.grid[0] * tokenizer.grid[1]
        if self.rows.shape[1] != num_tokens + 1:
            raise InputError(f"images={self.path}: {self.rows.shape[1] - 1} tokens a row; expected {num_tokens}.")
        in_file_order = np.sort(numbers)
        rows = np.asarray(self.rows[in_file_order])[np.searchsorted(in_file_order, numbers)]
        limits = np.array([len(self.class_names)] + [tokenizer.codebook_size] * num_tokens)
        wrong = ((rows < 0) | (rows >= limits)).any(axis=1)
        if wrong.any():
            row = int(numbers[wrong][0])
            raise InputError(
                f"images={self.path}: row {row} has class {int(self.rows[row, 0])} or a token out of range; expected "
                f"classes below {len(self.class_names)} and tokens below {tokenizer.codebook_size}."
            )
        on_images(len(numbers))
        return Encoded(rows[:, None, 1:], rows[:, 0], numbers, [])


class Plan(NamedTuple):
    """A shard to be made: its split, its name, and the numbers of its samples."""

    split: str
    name: str
    numbers: np.ndarray


def plan_shards(size: int, held_out: float, shard_size: int, seed: int) -> list[Plan]:
    """Cuts a permutation of `size` samples into shards of at most `shard_size`, a share `held_out` of them apart."""
    order = np.random.default_rng(seed).permutation(size)
    first = round(size * held_out)
    return [
        Plan(split, f"{split}-{number:05d}.tar", part[start : start + shard_size])
        for split, part in {"held_out": order[:first], "train": order[first:]}.items()
        for number, start in enumerate(range(0, len(part), shard_size))
    ]


def _claim(work: Path, settings: dict[str, Any]) -> None:
    """Writes down what the shards of a folder are made of, or checks that it is the same."""
    record = work / "settings.json"
    if not record.exists():
        write_atomically(record, json.dumps(settings).encode())
        return
    earlier = json.loads(record.read_text())
    changed = [name for name in settings if earlier.get(name) != settings[name]]
    if changed:
        folder = work.parent
        raise InputError(f"output={folder}: holds shards of another {' and '.join(changed)}; choose a new folder.")


def write_shards(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    held_out: float,
    shard_size: int,
    pack_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    on_images: Callable[[int], None] = lambda count: None,
) -> Manifest | None:
    """Encodes all samples of a source that are not yet in a folder.

    Args:
        source, tokenizer: of the tokens.
        folder: of the shards; `work/` in it notes what is done.
        held_out, shard_size, seed: see `plan_shards`.
        pack_size: samples of a pack.
        rank, world_size: which of how many processes that share the work.
        on_images: hears how many more are done.

    Returns:
        The manifest, which is also written; None if other ranks still have shards to write.

    Raises:
        InputError: for numbers out of range, a folder that holds shards of something else, or want of space.
    """
    if not 0 <= held_out < 1 or min(shard_size, pack_size) < 1:
        given = f"held_out={held_out}, shard_size={shard_size}, pack_size={pack_size}"
        raise InputError(f"{given}: expected a share below 1 and sizes of at least 1.")
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    settings = {
        "source": source.digest,
        "tokenizer": tokenizer.fingerprint(),
        "held_out": held_out,
        "shard_size": shard_size,
        "pack_size": pack_size,
        "seed": seed,
    }
    _claim(work, settings)
    plans = plan_shards(source.size, held_out, shard_size, seed)
    dtype = token_dtype(tokenizer.codebook_size)
    for plan in plans[rank::world_size]:
        note = work / f"{plan.name}.json"
        if note.exists() and (folder / plan.name).exists():
            on_images(len(plan.numbers))
            continue
        encoded = source.encode(plan.numbers, tokenizer, on_images)
        shard = write_shard(
            folder / plan.name, encoded.token_ids.astype(dtype), encoded.class_ids, encoded.sources, pack_size
        )
        write_atomically(note, json.dumps({"shard": asdict(shard), "skipped": encoded.skipped}).encode())
    notes = [work / f"{plan.name}.json" for plan in plans]
    if not all(note.exists() for note in notes):
        return None
    manifest = _collect(source, tokenizer, plans, [json.loads(note.read_text()) for note in notes], pack_size)
    _finish(folder, manifest)
    return manifest


def _finish(folder: Path, manifest: Manifest) -> None:
    """Saves the manifest of a whole set, and clears away what killed processes left."""
    if not any(shard.samples for shards in manifest.splits.values() for shard in shards):
        raise InputError(f"output={folder}: none of the images could be read; {manifest.skipped[0]['reason']}")
    for left_over in folder.glob("*.tar.*.partial"):
        left_over.unlink(missing_ok=True)
    manifest.save(folder)


def _collect(
    source: Source, tokenizer: Tokenizer, plans: list[Plan], notes: list[dict[str, Any]], pack_size: int
) -> Manifest:
    def shards(split: str) -> Iterator[Shard]:
        for plan, note in zip(plans, notes, strict=True):
            if plan.split == split:
                yield Shard(**note["shard"])

    return Manifest(
        tokenizer=type(tokenizer).__name__,
        tokenizer_sha256=tokenizer.fingerprint(),
        resolution=tokenizer.resolution,
        grid=list(tokenizer.grid),
        codebook_size=tokenizer.codebook_size,
        class_names=source.class_names,
        views=list(source.views),
        pack_size=pack_size,
        splits={split: list(shards(split)) for split in ("train", "held_out")},
        skipped=[image for note in notes for image in note["skipped"]],
    )
