"""Turns images, or the official token cache, into shards; a killed run goes on where it stopped.

The order of the images is a fixed permutation, so that each pack is a mix of classes. A shard is the unit of work: it
is written atomically, ranks take shards in turns, and a restarted run skips the shards that are finished. The tokens
of a shard depend on its own images only, so the bytes are the same however often the work was interrupted and however
many ranks shared it.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Lt

from data.shards import Manifest, Shard, token_dtype, write_shard
from data.sources import Source
from enat.errors import InputError
from enat.files import refuse_other_work, write_atomically
from enat.tokenizers.base import Tokenizer


class ShardPlan(NamedTuple):
    """Describes a shard to be written: its split, its file name, and the numbers of its samples in the source."""

    split: str
    name: str
    numbers: np.ndarray


def plan_shards(size: int, held_out: float, shard_size: int, seed: int) -> list[ShardPlan]:
    """Permutes the numbers of `size` samples and cuts them into shards of at most `shard_size` samples.

    The share `held_out` of the samples goes to the split `held_out`, and the others to `train`.
    """
    order = np.random.default_rng(seed).permutation(size)
    num_held_out = round(size * held_out)
    return [
        ShardPlan(split, f"{split}-{number:05d}.tar", numbers[start : start + shard_size])
        for split, numbers in {"held_out": order[:num_held_out], "train": order[num_held_out:]}.items()
        for number, start in enumerate(range(0, len(numbers), shard_size))
    ]


def write_shards(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    held_out: Annotated[float, Ge(0), Lt(1)],
    shard_size: Annotated[int, Ge(1)],
    pack_size: Annotated[int, Ge(1)],
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    on_images: Callable[[int], None] = lambda count: None,
    tokenizer_settings: dict[str, Any] | None = None,
) -> Manifest | None:
    """Encodes the samples of a source and writes them to shards; skips shards that are already finished.

    Args:
        source, tokenizer: give the samples, and encode them.
        folder: folder of the shards. Its subfolder `work/` records which shards are finished.
        held_out, shard_size, seed: see `plan_shards`.
        pack_size: number of samples of a pack.
        rank, world_size: number of this process, and of processes that share the work.
        on_images: is called with the number of images that have been done since the last call.
        tokenizer_settings: options that make the tokenizer, for the manifest.

    Returns:
        The manifest, which is also saved; None if other ranks still have shards to write.

    Raises:
        InputError: if the folder has shards of other settings, no image can be read, or the disk is full.
    """
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
    _check_settings(folder, work / "settings.json", settings)
    plans = plan_shards(source.size, held_out, shard_size, seed)
    records = [work / f"{plan.name}.json" for plan in plans]
    for plan, record in list(zip(plans, records, strict=True))[rank::world_size]:
        content = source.content(plan.numbers)
        if record.exists() and (folder / plan.name).exists():
            earlier = json.loads(record.read_text()).get("content", content)
            if earlier == content:
                on_images(len(plan.numbers))
                continue
            print(f"{folder / plan.name}: its images have changed, so that they are encoded again.")
            (folder / "manifest.json").unlink(missing_ok=True)
        encoded = source.encode(plan.numbers, tokenizer, on_images)
        token_ids = encoded.token_ids.astype(token_dtype(tokenizer.codebook_size))
        shard = write_shard(folder / plan.name, token_ids, encoded.class_ids, encoded.sources, pack_size)
        write_atomically(
            record, json.dumps({"shard": asdict(shard), "skipped": encoded.skipped, "content": content}).encode()
        )
    if not all(record.exists() for record in records):
        return None
    contents = [json.loads(record.read_text()) for record in records]
    return _finish(source, tokenizer, folder, plans, contents, pack_size, tokenizer_settings)


def _check_settings(folder: Path, record: Path, settings: dict[str, Any]) -> None:
    """Records the settings of the shards in a folder; refuses to add shards of other settings to them."""
    if record.exists():
        earlier = json.loads(record.read_text())
        refuse_other_work(folder, earlier, settings, "shards made with other settings", "or another output=DIR")
    else:
        write_atomically(record, json.dumps(settings).encode())


def _finish(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    plans: list[ShardPlan],
    records: list[dict[str, Any]],
    pack_size: int,
    tokenizer_settings: dict[str, Any] | None,
) -> Manifest:
    """Saves the manifest, from the records of all shards, and removes temporary files of killed processes."""
    splits: dict[str, list[Shard]] = {"train": [], "held_out": []}
    for plan, record in zip(plans, records, strict=True):
        splits[plan.split].append(Shard(**record["shard"]))
    manifest = Manifest(
        tokenizer=type(tokenizer).__name__,
        tokenizer_sha256=tokenizer.fingerprint(),
        resolution=tokenizer.resolution,
        grid=list(tokenizer.grid),
        codebook_size=tokenizer.codebook_size,
        class_names=source.class_names,
        views=list(source.views),
        pack_size=pack_size,
        splits=splits,
        skipped=[image for record in records for image in record["skipped"]],
        tokenizer_settings=tokenizer_settings,
    )
    if not any(shard.samples for shard in manifest.all_shards()):
        raise InputError(f"output={folder}: none of the images could be read; {manifest.skipped[0]['reason']}")
    for left_over in folder.glob("*.tar.*.partial"):
        left_over.unlink(missing_ok=True)
    manifest.save(folder)
    return manifest
