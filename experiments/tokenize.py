"""task=tokenize: a folder of images, or an official token cache, to shards."""

import time
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt
from rich.progress import Progress

from data.images import ImageList, Views
from data.shards import Manifest, check_shards
from data.sources import ImageSource, Source, TokenCacheSource
from data.tokenization import write_shards
from enat.errors import InputError
from enat.tokenizers.base import Tokenizer
from experiments.runtime.launch import device_for, processes
from experiments.runtime.progress import COLUMNS


def open_source(
    images: str | None, labels: str | None, num_classes: int, views: Views, batch_size: int, num_workers: int
) -> Source:
    """What is to be tokenised; arguments and errors as of `tokenize`."""
    if images is None:
        raise InputError("images=null: expected images=DIR, a folder with a folder of images per class.")
    if images.endswith(".npy"):
        return TokenCacheSource(Path(images), num_classes)
    listed = ImageList.find(Path(images), None if labels is None else Path(labels))
    return ImageSource(listed, views, batch_size, num_workers)


def tokenize(
    images: str | None,
    labels: str | None,
    num_classes: Annotated[int, Ge(1)],
    tokenizer: Tokenizer,
    views: Views,
    held_out: Annotated[float, Ge(0), Lt(1)],
    shard_size: Annotated[int, Ge(1)],
    pack_size: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    num_workers: Annotated[int, Ge(0)],
    seed: int,
    check: bool,
    output: str,
    accelerator: str,
) -> dict[str, Any]:
    """Writes shards, or, with `check`, looks whether those in `output` are whole.

    Args:
        images: a folder with a folder of images per class, a flat one with `labels`, or an official `train.npy`.
        labels: a CSV file with the columns file and class.
        num_classes: of a `train.npy`.
        tokenizer, views: make the token ids, and what they are made of, of each image.
        held_out, shard_size, pack_size, seed: see `data.tokenization.write_shards`.
        batch_size, num_workers: images that are encoded at a time, and processes that read them.
        check: verify every shard instead of writing any.
        output: folder of the shards.
        accelerator: where the tokenizer runs; under torchrun, each process takes its share of the shards.

    Returns:
        The numbers of samples by split, of shards and bytes, the tokenizer, and the images that were skipped.
    """
    folder = Path(output)
    if check:
        whole = Manifest.load(folder)
        check_shards(folder, whole, deep=True)
        return summary(whole)
    source = open_source(images, labels, num_classes, views, batch_size, num_workers)
    rank, world_size, _ = processes()
    tokenizer.to(device_for(accelerator))
    sizes = {"held_out": held_out, "shard_size": shard_size, "pack_size": pack_size, "seed": seed}
    with Progress(*COLUMNS, disable=rank > 0) as progress:
        bar = progress.add_task("tokenizing", total=source.size)
        manifest = write_shards(
            source,
            tokenizer,
            folder,
            **sizes,  # type: ignore[arg-type]
            rank=rank,
            world_size=world_size,
            on_images=lambda count: progress.advance(bar, count * world_size),
        )
    while manifest is None and rank == 0:  # it writes the results
        time.sleep(1)
        manifest = write_shards(source, tokenizer, folder, **sizes, rank=0, world_size=world_size)  # type: ignore[arg-type]
    if manifest is None:
        return {}  # other ranks still write their shards
    for image in manifest.skipped:
        print(f"Skipped {image['reason']}")
    return summary(manifest)


def summary(manifest: Manifest) -> dict[str, Any]:
    """What a set holds, in numbers."""
    shards = [shard for shards in manifest.splits.values() for shard in shards]
    return {
        "samples": {split: sum(shard.samples for shard in part) for split, part in manifest.splits.items()},
        "views": len(manifest.views),
        "classes": len(manifest.class_names),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "skipped": manifest.skipped,
    }
