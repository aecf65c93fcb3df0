"""task=data_benchmark: measures speed, size and completeness of the stream of shards, on synthetic tokens."""

import hashlib
import resource
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import webdataset
from annotated_types import Ge, Gt
from rich.progress import track
from torch.utils.data import DataLoader, default_convert

from data.manifest import Manifest, Shard
from data.shards import ShardPacks, check_shards, write_shard
from data.stream import StreamPositions, TokenStream
from enat.errors import InputError
from enat.files import make_own_folder

CODEBOOK_SIZE = 1024
SYNTHETIC = hashlib.sha256(b"synthetic").hexdigest()  # in a manifest, in place of a tokenizer's
VIEWS = 2


def synthetic_shards(
    folder: Path, samples: int, side: int, shard_size: int = 32_000, pack_size: int = 1000
) -> Manifest:
    """Writes shards of random tokens of a grid of `side` x `side`.

    The class id of a sample is its number, so that `full_pass` can count how often it comes.
    """
    rng = np.random.default_rng(0)
    shards: list[Shard] = []
    for start in track(range(0, samples, shard_size), description="writing shards"):
        numbers = np.arange(start, min(start + shard_size, samples))
        tokens = rng.integers(CODEBOOK_SIZE, size=(len(numbers), VIEWS, side**2), dtype=np.uint16)
        shards.append(write_shard(folder / f"train-{len(shards):05d}.tar", tokens, numbers, numbers, pack_size))
    manifest = Manifest(
        tokenizer="none",
        tokenizer_sha256=SYNTHETIC,
        resolution=16 * side,
        grid=[side, side],
        codebook_size=CODEBOOK_SIZE,
        class_names=[],
        views=["plain", "flipped"],
        pack_size=pack_size,
        splits={"train": shards},
    )
    manifest.save(folder)
    return manifest


def own_folder(output: Path) -> Path:
    """Makes the folder of the synthetic shards, in which there are no files of anybody else.

    Raises:
        InputError: if the output folder holds shards of images, or the folder in it is of another program.
    """
    if (output / "manifest.json").exists() and Manifest.load(output).tokenizer_sha256 != SYNTHETIC:
        raise InputError(f"output={output}: the folder holds shards of images; expected another output=DIR.")
    folder = output / "shards"
    make_own_folder(folder)
    return folder


def batches(packs: ShardPacks, batch_size: int, rank: int, ranks: int, workers: int) -> Iterator[Any]:
    """Reads the endless batches of one rank, as training does."""
    stream = TokenStream(packs, null_class_id=0, class_dropout=0.0, seed=0)
    positions = StreamPositions(batch_size, rank, ranks, 0)
    return iter(
        DataLoader(
            stream,
            batch_sampler=positions,  # type: ignore[arg-type]
            collate_fn=default_convert,
            num_workers=workers,
        )
    )


def reading_rate(packs: ShardPacks, batch_size: int, seconds: float) -> float:
    """Measures how many samples per second one worker reads."""
    reader = batches(packs, batch_size, 0, 1, workers=1)
    read = 0
    next(reader)  # the worker has started
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        read += len(next(reader)[1])
    return read / (time.perf_counter() - start)  # its worker ends here, and is counted in `worker_mb`


def stream_rate(side: int, batch_size: int, seconds: float) -> float:
    """Measures how many samples per second one worker reads from temporary shards of a grid of `side` x `side`."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = synthetic_shards(Path(folder), 32_000, side)
        return reading_rate(ShardPacks(Path(folder), manifest, "train"), batch_size, seconds)


def one_per_key(folder: Path, samples: int, side: int) -> float:
    """Measures how many samples per second one worker reads by plain webdataset, which has a file for each sample."""
    path = folder / "one_per_key.tar"
    rng = np.random.default_rng(0)
    with webdataset.TarWriter(str(path), mtime=0) as tar:
        for number in range(samples):
            tokens = rng.integers(CODEBOOK_SIZE, size=side**2, dtype=np.uint16)
            tar.write({"__key__": f"{number:08d}", "npy": tokens, "cls": number})
    plain = webdataset.WebDataset(str(path), shardshuffle=False).decode().to_tuple("npy", "cls")
    loader = iter(DataLoader(plain, batch_size=None, num_workers=1))
    next(loader)
    start = time.perf_counter()
    read = sum(1 for _ in loader)
    return read / (time.perf_counter() - start)


def full_pass(packs: ShardPacks, batch_size: int, ranks: int, workers: int) -> np.ndarray:
    """Counts how often each sample comes in the first epoch, over all ranks."""
    samples = int(packs.sizes.sum())
    counts = np.zeros(samples, dtype=np.int64)
    steps = -(-samples // (batch_size * ranks))
    for rank in range(ranks):
        reader = islice(batches(packs, batch_size, rank, ranks, workers), steps)
        for step, (_, numbers) in enumerate(track(reader, total=steps, description=f"full pass, rank {rank}")):
            left = samples - (step * ranks + rank) * batch_size  # the rest belongs to the next epoch
            np.add.at(counts, numbers[: max(left, 0)].numpy(), 1)
    return counts


def data_benchmark(
    samples: Annotated[int, Ge(2)],
    side: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    seconds: Annotated[float, Gt(0)],
    ranks: Annotated[int, Ge(1)],
    workers: Annotated[int, Ge(1)],
    output: str,
) -> dict[str, Any]:
    """Writes synthetic shards, and measures how a training run would read them.

    Args:
        samples: the number of images, of two views each; ImageNet has 1,281,167.
        side: the side of the token grid.
        batch_size: the batch of a rank.
        seconds: how long the speed is measured.
        ranks, workers: the ranks, and the workers of each, that read all samples once.
        output: has a folder `shards/` of the shards, which are left there.

    Returns:
        `bytes` on disk, `samples_per_second` of one worker and of plain webdataset with their ratio, `worker_mb`, the
        largest resident memory of a worker, and `each_sample_once`, whether each sample came once.
    """
    folder = own_folder(Path(output))
    manifest = synthetic_shards(folder, samples, side)
    start = time.perf_counter()
    check_shards(folder, manifest)
    check_s = time.perf_counter() - start
    packs = ShardPacks(folder, manifest, "train")
    plain = one_per_key(folder, min(samples, 20_000), side)
    rate = reading_rate(packs, batch_size, seconds)
    counts = full_pass(packs, batch_size, ranks, workers)
    return {
        "samples": samples,
        "bytes": sum(shard.bytes for shard in manifest.splits["train"]),
        "check_s": check_s,
        "samples_per_second": rate,
        "plain_samples_per_second": plain,
        "ratio": rate / plain,
        "worker_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "each_sample_once": bool((counts == 1).all()),
    }
