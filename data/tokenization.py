"""Turns images, or the official token cache, into shards; a killed run goes on where it stopped.

The order of the images is a fixed permutation, so that each pack is a mix of classes. A shard is the unit of work: it
is written atomically, ranks take shards in turns, and a restarted run skips the shards that are finished. The tokens
of a shard depend on its own images only, so the bytes are the same however often the work was interrupted and however
many ranks shared it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from annotated_types import Ge, Lt
from typing_extensions import TypedDict  # of typing, pydantic needs that of Python 3.12

from data.manifest import Manifest, Shard
from data.shards import token_dtype, write_shard
from data.sources import Source
from enat.checkpoints.description import check_description
from enat.errors import InputError
from enat.files import read_record, refuse_other_work, sha256_of, write_atomically
from enat.tokenizers.base import Tokenizer

NAMES = "images"  # a hash of their names and sizes, or of some rows, in the record of a folder's settings


class ShardRecord(TypedDict):
    """What the record of a finished shard says."""

    shard: Shard
    skipped: list[dict[str, str]]


class ShardPlan(NamedTuple):
    """Describes a shard to be written: its split, its file name, and the numbers of its samples in the source."""

    split: str
    name: str
    numbers: np.ndarray


def split_numbers(size: int, held_out: float, seed: int) -> dict[str, np.ndarray]:
    """Permutes the numbers of `size` samples; a share goes to the split `held_out`, and the others to `train`."""
    order = np.random.default_rng(seed).permutation(size)
    num_held_out = round(size * held_out)
    return {"held_out": order[:num_held_out], "train": order[num_held_out:]}


def none_readable(split: str, reasons: Sequence[str], option: str) -> str:
    """Says that no image of a split can be read, and what to do.

    Args:
        split: of the images, `train` or `held_out`.
        reasons: why each of them can't be read.
        option: the name of the option that says which share is held out.
    """
    kind, other = {
        "train": ("training", f"a smaller {option} trains on more"),
        "held_out": ("held-out", f"a larger {option} holds out more"),
    }[split]
    one, more = f"the only {kind} image can't be read", f"none of the {len(reasons):,} {kind} images can be read"
    return f"{one if len(reasons) == 1 else more}; {reasons[0]} Repair or remove what can't be read; {other}."


def plan_shards(size: int, held_out: float, shard_size: int, seed: int) -> list[ShardPlan]:
    """Permutes the numbers of `size` samples and cuts them into shards of at most `shard_size` samples.

    The share `held_out` of the samples goes to the split `held_out`, and the others to `train`.
    """
    return [
        ShardPlan(split, f"{split}-{number:05d}.tar", numbers[start : start + shard_size])
        for split, numbers in split_numbers(size, held_out, seed).items()
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
    tokenizer_settings: dict[str, Any] | None = None,
    rank: int = 0,
    world_size: int = 1,
    on_images: Callable[[int], None] = lambda count: None,
) -> Manifest | None:
    """Encodes the samples of a source and writes them to shards; skips shards that are already finished.

    Args:
        source, tokenizer: give the samples, and encode them.
        folder: folder of the shards. Its subfolder `work/` records which shards are finished.
        held_out, shard_size, seed: see `plan_shards`.
        pack_size: number of samples of a pack.
        tokenizer_settings: options that make the tokenizer, for the manifest.
        rank, world_size: number of this process, and of processes that share the work.
        on_images: is called with the number of images that have been done since the last call.

    Returns:
        The manifest, which is also saved; None if other ranks still have shards to write.

    Raises:
        InputError: if the folder has shards of other settings, no image of a split can be read, or the disk is full.
    """
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    settings = {
        NAMES: source.digest,
        "tokenizer": tokenizer.fingerprint(),
        "held_out": held_out,
        "shard_size": shard_size,
        "pack_size": pack_size,
        "seed": seed,
    }
    _check_settings(folder, work / "settings.json", settings)
    for plan in plan_shards(source.size, held_out, shard_size, seed)[rank::world_size]:
        _write_shard(source, tokenizer, folder, plan, pack_size, on_images)
    return collect_shards(source, tokenizer, folder, held_out, shard_size, pack_size, seed, tokenizer_settings)


def _write_shard(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    plan: ShardPlan,
    pack_size: int,
    on_images: Callable[[int], None],
) -> None:
    """Encodes and writes a shard, unless it is finished, its samples are still the same, and it was not altered."""
    path, record = folder / plan.name, _record(folder, plan)
    content = source.content(plan.numbers)
    if record.exists() and path.exists():
        facts = read_record(record)
        check_description(facts, ShardRecord, f"{record}:")
        has_same_images = facts.get("content", content) == content
        if has_same_images and _is_intact(path, Shard(**facts["shard"])):
            on_images(len(plan.numbers))
            return
        altered = "the shard was altered, so that its images"
        changed = "its images have changed, so that they"
        print(f"{path}: {altered if has_same_images else changed} are encoded again.")
        record.unlink()
        (folder / "manifest.json").unlink(missing_ok=True)
    encoded = source.encode(plan.numbers, tokenizer, on_images)
    token_ids = encoded.token_ids.astype(token_dtype(tokenizer.codebook_size))
    shard = write_shard(path, token_ids, encoded.class_ids, encoded.sources, pack_size)
    facts = {"shard": asdict(shard), "skipped": encoded.skipped, "content": content}
    write_atomically(record, json.dumps(facts).encode())


def _is_intact(path: Path, shard: Shard) -> bool:
    """Says whether a file has the size and the sha256 of a shard."""
    return path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256


def _record(folder: Path, plan: ShardPlan) -> Path:
    """Returns the file that says that a shard is finished."""
    return folder / "work" / f"{plan.name}.json"


def _check_settings(folder: Path, record: Path, settings: dict[str, Any]) -> None:
    """Records the settings of the shards in a folder; refuses to add shards of other settings to those there are.

    Raises:
        InputError: if the settings differ, or those of the shards that are there are not known.
    """
    has_shards = any(path != record for path in record.parent.glob("*.json"))
    if not record.exists() and (has_shards or (folder / "manifest.json").exists()):  # as of shards that were copied
        raise InputError(
            f"{folder}: the folder holds shards, and {record}, the record of their settings, is missing; expected it, "
            "or another output=DIR."
        )
    if record.exists() and has_shards:
        earlier = read_record(record)
        earlier = {NAMES if name == "source" else name: value for name, value in earlier.items()}  # of older versions
        refuse_other_work(folder, earlier, settings, "shards made with other settings", "or another output=DIR")
    else:
        write_atomically(record, json.dumps(settings).encode())


def collect_shards(
    source: Source,
    tokenizer: Tokenizer,
    folder: Path,
    held_out: float,
    shard_size: int,
    pack_size: int,
    seed: int,
    tokenizer_settings: dict[str, Any] | None = None,
) -> Manifest | None:
    """Saves the manifest, if all ranks have written their shards; removes temporary files of killed processes.

    Its arguments and what it returns are described at `write_shards`.

    Raises:
        InputError: if no image of a split could be read.
    """
    plans = plan_shards(source.size, held_out, shard_size, seed)
    paths = [_record(folder, plan) for plan in plans]
    if not all(path.exists() for path in paths):
        return None
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        check_description(record, ShardRecord, f"{path}:")
    splits: dict[str, list[Shard]] = {"train": [], "held_out": []}
    skipped: dict[str, list[dict[str, str]]] = {"train": [], "held_out": []}
    for plan, record in zip(plans, records, strict=True):
        splits[plan.split].append(Shard(**record["shard"]))
        skipped[plan.split] += record["skipped"]
    manifest = Manifest(
        tokenizer=type(tokenizer).__name__,
        tokenizer_sha256=tokenizer.fingerprint(),
        codes_sha256=tokenizer.codes_fingerprint(),
        resolution=tokenizer.resolution,
        grid=list(tokenizer.grid),
        codebook_size=tokenizer.codebook_size,
        class_names=source.class_names,
        views=list(source.views),
        pack_size=pack_size,
        splits=splits,
        skipped=skipped["held_out"] + skipped["train"],
        tokenizer_settings=tokenizer_settings,
    )
    if not any(shard.samples for shard in manifest.all_shards()):
        raise InputError(f"output={folder}: none of the images could be read; {manifest.skipped[0]['reason']}")
    for split, shards in splits.items():
        if shards and not any(shard.samples for shard in shards):
            reasons = [image["reason"] for image in skipped[split]]
            raise InputError(f"output={folder}: {none_readable(split, reasons, 'held_out')}")
    for left_over in folder.glob("*.tar.*.partial"):
        left_over.unlink(missing_ok=True)
    manifest.save(folder)
    return manifest
