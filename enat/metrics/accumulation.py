"""Goes through a set of images once and updates metrics with it, with the same bits on any number of processes.

Each process makes some blocks of images and their views; the processes exchange the views, and every process updates
the same metrics with the same blocks in the same order. So nothing is left to synchronise, whatever the metric is.
The metrics' state dict is what a killed evaluation goes on from.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from enat.checkpoints.pickles import load_pickle
from enat.errors import InputError
from enat.features.network import IMAGES, FeatureNetwork, Views
from enat.files import write_atomically
from enat.images import Block, Images, Progress, blocks_of, to_bytes
from enat.metrics.view import scores_in
from enat.processes import Processes

SAVING_SHARE = 0.05  # of the time is spent on saving the state, at most
STATE = "state.pt"

Metrics = Mapping[str, MetricCollection]  # the scores (`OnView`) of each protocol, by name
RESOLUTIONS = (  # an error says so; a command with other options says it in another way
    "scored.resolution=N and reference.resolution=N crop and scale images of a folder; with metrics.images=DIR, "
    "tokenizer.resolution=N does"
)


@dataclass
class Measured:
    """What the processes exchange of a block, on the CPU."""

    numbers: Tensor  # (b,), of the images
    skipped: Sequence[str]  # why images could not be read
    class_ids: Tensor | None = None  # (b,)
    views: Mapping[str, Views] = field(default_factory=dict)  # by protocol, those that a metric looks at
    size: Sequence[int] | None = None  # height and width
    sha256: str = ""  # of the images at 8 bits


@dataclass
class Record:
    """What is known of the images that metrics have seen."""

    num_blocks: int = 0
    num_images: int = 0  # without those that could not be read
    size: Sequence[int] | None = None  # height and width
    has_class_ids: bool = False
    sha256: str = "00" * 32  # of the images at 8 bits, chained block by block
    skipped: list[str] = field(default_factory=list)  # why images could not be read

    def add(self, block: Measured) -> None:
        """Adds a block.

        Raises:
            InputError: for images of another size than those before.
        """
        self.num_blocks += 1
        self.skipped += block.skipped
        if block.size is None:
            return
        if self.size is not None and self.size != block.size:
            sizes = " and ".join(f"{width}x{height}" for height, width in (self.size, block.size))
            raise InputError(
                f"images: of different sizes ({sizes}, from image {int(block.numbers[0])} on); expected one size, or "
                "a resolution to crop them to."
            )
        self.size = block.size
        self.num_images += len(block.numbers)
        self.has_class_ids = block.class_ids is not None
        self.sha256 = hashlib.sha256(bytes.fromhex(self.sha256 + block.sha256)).hexdigest()


def refuse_other_size(size: Sequence[int] | None, of_reference: Sequence[int] | None) -> None:
    """Raises InputError for images of another height or width than those of the reference, where both are known."""
    if size and of_reference and list(size) != list(of_reference):
        ours, theirs = (f"{width}x{height}" for height, width in (size, of_reference))
        raise InputError(
            f"the images are {ours}, those of the reference {theirs}; expected the same size. {RESOLUTIONS}. "
            "Statistics have to be computed again."
        )


@torch.no_grad()
def accumulate(
    metrics: Metrics,
    images: Images,
    real: bool,
    network: FeatureNetwork,
    block_size: int,
    processes: Processes,
    device: torch.device,
    folder: Path | None = None,
    progress: Progress | None = None,
    expected_size: Sequence[int] | None = None,
) -> Record:
    """Updates metrics with a set of images, on every process; every one has to call.

    Args:
        metrics: scores by protocol, which move to `device`.
        images: the set.
        real: whether it is what generated images are compared with.
        network: makes the views of `block_size` images at a time, on `device`.
        processes: share the blocks.
        folder: where the state is saved again and again, so that the next call with the same images and metrics goes
            on from there; None saves nothing.
        progress: is told of the blocks.
        expected_size: height and width of the images; None for any.

    Raises:
        InputError: on every process, for images that can't be scored, or a metric that refuses them.
    """
    progress = progress or Progress()
    record = _restore(metrics, folder, processes, device)
    count, done = images.num_images, record.num_blocks * block_size
    progress.on_start(count, min(done, count))
    places = blocks_of(count, block_size, done)
    groups = [places[i : i + images.read_together] for i in range(0, len(places), images.read_together)]
    mine = groups[processes.rank :: processes.size]
    blocks = images.read([place for group in mine for place in group], device)
    num_turns = math.ceil(len(groups) / processes.size)
    due = 0.0
    for turn in range(num_turns):
        num_blocks = len(mine[turn]) if turn < len(mine) else 0
        for part in processes.gather(_measure(blocks, num_blocks, metrics, network, progress)):
            if isinstance(part, str):
                raise InputError(part)
            for block in part:
                record.add(block)
                refuse_other_size(record.size, expected_size)
                _update(metrics, block, real, count, device)
                if processes.rank == 0:
                    progress.on_images(min(block_size, count - (record.num_blocks - 1) * block_size))
        if folder is not None:
            # Rank 0 alone looks at the clock. A restart makes the last blocks of generated images again, so that each
            # metric sees some of them before it computes.
            is_wanted = real if turn + 1 == num_turns else None
            due = processes.on_first(partial(_save, metrics, record, folder, due, is_wanted))
    return record


def _measure(
    blocks: Iterator[Block], num_blocks: int, metrics: Metrics, network: FeatureNetwork, progress: Progress
) -> list[Measured] | str:
    """Computes the views of the next blocks, or returns the sentence that says why they can't be scored."""
    measured = []
    try:
        for _ in range(num_blocks):
            block = next(blocks)
            progress.on_block(block)
            measured.append(_views(block, metrics, network))
    except InputError as error:
        return str(error)
    return measured


def refuse_no_numbers(block: Block) -> None:
    """Raises InputError for images with NaN or infinite values."""
    is_broken = ~block.images.flatten(1).isfinite().all(1).cpu()
    if is_broken.any():
        raise InputError(
            f"images: {int(is_broken.sum())} of {len(block.images)} hold NaN or infinite values, the first of them "
            f"image {int(block.numbers[is_broken][0])}."
        )


def _views(block: Block, metrics: Metrics, network: FeatureNetwork) -> Measured:
    images = block.images
    if not len(images):
        return Measured(block.numbers, block.skipped)
    refuse_no_numbers(block)
    views: dict[str, Views] = {}
    for protocol, given in network(images).items():
        wanted = {score.view for score in scores_in(metrics[protocol]).values()}
        views[protocol] = {name: (images if name == IMAGES else given[name]).cpu() for name in wanted}
    class_ids = None if block.class_ids is None else block.class_ids.cpu()
    digest = hashlib.sha256(to_bytes(images).cpu().numpy().tobytes()).hexdigest()
    return Measured(block.numbers, block.skipped, class_ids, views, list(images.shape[2:]), digest)


def _update(metrics: Metrics, block: Measured, real: bool, num_images: int, device: torch.device) -> None:
    context: dict[str, Any] = {"real": real, "image_numbers": block.numbers, "num_images": num_images}
    if block.class_ids is not None:
        context["class_ids"] = block.class_ids.to(device)
    for protocol, of_protocol in block.views.items():
        views = {name: view.to(device) for name, view in of_protocol.items()}
        for score in scores_in(metrics[protocol]).values():
            score.update(views, context)


def _save(metrics: Metrics, record: Record, folder: Path, due: float, is_wanted: bool | None) -> float:
    """Saves the state if that is wanted or, with None, if it is due; returns when it is due again."""
    begun = time.monotonic()
    if not (begun > due if is_wanted is None else is_wanted):
        return due
    states = {protocol: collection.state_dict() for protocol, collection in metrics.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / STATE, lambda file: torch.save({"record": asdict(record), **states}, file))
    ended = time.monotonic()
    return ended + (ended - begun) / SAVING_SHARE


def _restore(metrics: Metrics, folder: Path | None, processes: Processes, device: torch.device) -> Record:
    """Moves the metrics to the device, with the state that rank 0 finds in the folder, if there is one."""

    def read() -> Any:
        path = folder / STATE if folder else None
        if path is None or not path.exists():
            return {}
        try:
            return load_pickle(path)
        except InputError as error:
            raise InputError(f"{path}: the unfinished scores in it are damaged; delete it to score anew.") from error

    content = processes.on_first(read)
    for protocol, collection in metrics.items():
        if content:
            collection.load_state_dict(content[protocol])
        collection.to(device)
    return Record(**content["record"]) if content else Record()
