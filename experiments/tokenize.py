"""task=tokenize: turns a folder of images, or an official token cache, into shards."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Interval
from rich.progress import Progress

from data.images import ImageList, Views
from data.manifest import Manifest
from data.shards import check_shards
from data.sources import ImageSource, Source, TokenCacheSource
from data.tokenization import collect_shards, split_numbers, write_shards
from data.tokenizer_split import note_on_split
from enat.errors import InputError, counted, printable
from enat.tokenizers.base import Tokenizer
from experiments.runtime.launch import Accelerator, device_for
from experiments.runtime.progress import COLUMNS
from experiments.runtime.ranks import processes

GREY = (
    "tokenizer=pixels: it makes tokens of grey images, and images are read in colour; expected tokenizer.weights=FILE, "
    "which experiment=tokenizer trains, or tokenizer=vqgan."
)


def open_source(
    images: str | None,
    labels: str | None,
    classes: str | None,
    num_classes: int,
    views: Views,
    batch_size: int,
    num_workers: int,
    is_grey: bool,
) -> Source:
    """Opens the images or the token cache; arguments as of `tokenize`; `is_grey` tokenizers can't encode images.

    Raises:
        InputError: if no images are named, or they can't be read; for labels or classes beside a token cache.
    """
    if images is None:
        raise InputError("images=null: expected images=DIR, a folder with a folder of images per class.")
    if images.endswith(".npy"):
        for option, value in {"labels": labels, "classes": classes}.items():
            if value is not None:
                raise InputError(
                    f"{option}={value}: a token cache such as {images} has its class ids in it, and no names; expected "
                    f"the command without {option}."
                )
        return TokenCacheSource(Path(images), num_classes)
    if is_grey:
        raise InputError(GREY)
    listed = ImageList.find(Path(images), *(None if path is None else Path(path) for path in (labels, classes)))
    return ImageSource(listed, views, batch_size, num_workers)


def tokenize(
    images: str | None,
    labels: str | None,
    classes: str | None,
    num_classes: Annotated[int, Ge(1)],
    tokenizer: Tokenizer,
    views: Views,
    held_out: Annotated[float, Interval(ge=0, lt=1)],
    shard_size: Annotated[int, Ge(1)],
    pack_size: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    num_workers: Annotated[int, Ge(0)],
    seed: int,
    check: bool,
    output: str,
    accelerator: Accelerator,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes shards or, with `check`, verifies the shards in `output`.

    Args:
        images: a folder with a folder of images per class, a flat one with `labels`, or an official `train.npy`.
        labels: a CSV file with the columns file and class.
        classes: a text file with a class name on each line, in the order of the ids.
        num_classes: the number of classes of a `train.npy`.
        tokenizer, views: make views of each image, such as its mirror image, and token ids of each view.
        held_out, shard_size, pack_size, seed: see `data.tokenization.write_shards`.
        batch_size, num_workers: images that are encoded at a time, and processes that read images.
        check: verify every shard instead of writing any.
        output: the folder of the shards.
        accelerator: where the tokenizer runs; under torchrun, each process takes its share of the shards.
        settings: the whole configuration; the manifest keeps the tokenizer's.

    Returns:
        The number of samples of each split, of shards and bytes, the tokenizer, and the images that were skipped.
    """
    folder = Path(output)
    if check:
        manifest_there = Manifest.load(folder)
        check_shards(folder, manifest_there, deep=True)
        print(f"{folder}: {counted(len(manifest_there.all_shards()), 'shard')} and no fault: all shards are intact.")
        return summary(manifest_there)
    source = open_source(images, labels, classes, num_classes, views, batch_size, num_workers, tokenizer.channels == 1)
    rank, world_size, _ = processes()
    tokenizer.to(device_for(accelerator))
    if rank == 0:
        print_plan(source, views.side, held_out, seed, settings["tokenizer"].get("weights"))
    plan = (source, tokenizer, folder, held_out, shard_size, pack_size, seed, settings["tokenizer"])
    with Progress(*COLUMNS, disable=rank > 0) as progress:
        bar = progress.add_task("tokenizing", total=source.size)
        manifest = write_shards(*plan, rank, world_size, lambda count: progress.advance(bar, count * world_size))
    while manifest is None and rank == 0:  # which writes the results and so waits for the other ranks
        time.sleep(1)
        manifest = collect_shards(*plan)
    if manifest is None:
        return {}  # other ranks still write their shards
    if rank == 0:
        report_skipped(manifest, source)
    return summary(manifest)


def report_skipped(manifest: Manifest, source: Source) -> None:
    """Prints the images that could not be read, and the classes that have no other image."""
    for image in manifest.skipped:
        print(f"Skipped {printable(image['reason'])}")
    if isinstance(source, ImageSource):
        unreadable = {image["file"] for image in manifest.skipped}
        class_ids = source.images.class_ids.tolist()
        left = {one for file, one in zip(source.images.files, class_ids, strict=True) if file not in unreadable}
        for class_id in sorted(set(class_ids) - left):
            print(f"The class {source.class_names[class_id]} has no image that can be read.")


def print_plan(source: Source, side: int, held_out: float, seed: int, weights: str | None) -> None:
    """Prints before the work what will become of the images, and how many of those held out the tokenizer has seen."""
    print(printable(describe(source, side, held_out)))
    if isinstance(source, ImageSource):
        numbers = split_numbers(source.size, held_out, seed)["held_out"].tolist()
        if note := note_on_split(weights, source.images, numbers):
            print(note)


def describe(source: Source, side: int, held_out: float) -> str:
    """Says before the work what will become of the images: their number and size, and how many are held out."""
    num_held_out = round(source.size * held_out)
    share = (
        f"{num_held_out} of them {'is' if num_held_out == 1 else 'are'} held out from training (held_out={held_out})"
    )
    if not num_held_out:
        share = f"held_out={held_out} holds none of them out to watch the training; a larger share would"
    lines = [f"{counted(source.size, 'image')} in {counted(len(source.class_names), 'class', 'classes')}; {share}."]
    if isinstance(source, ImageSource):
        smallest, largest, num_images, num_altered, are_square = source.images.look()
        sides = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
        is_fit = smallest == largest == side and are_square
        change = "as the tokenizer wants them" if is_fit else f"cropped and scaled to {side}"
        named = [f"{class_id} {name}" for class_id, name in enumerate(source.class_names)]
        lines.append(f"Class ids: {', '.join(named[:10])}{', ...' if len(named) > 10 else ''}.")
        empty = sorted(set(range(len(named))) - set(source.images.class_ids.tolist()))
        if empty:
            lines.append(f"Classes without images: {', '.join(named[class_id] for class_id in empty[:20])}.")
        lines += [f"Ignored: {reason}." for reason in source.images.ignored]
        lines.append(f"Their short sides have {sides} pixels; they are {change} (tokenizer.resolution={side}).")
        if num_altered:
            lines.append(
                f"Images with an alpha channel or an EXIF orientation, which are ignored: {num_altered} of the "
                f"{num_images} looked at (docs/data.md, Tokenising)."
            )
    return "\n".join(lines)


def summary(manifest: Manifest) -> dict[str, Any]:
    """Summarises a set of shards in numbers."""
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
