"""Goes through a set of images, on any number of processes, with the same sums to the bit."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from enat.errors import InputError
from enat.metrics.features import FeatureNetwork
from enat.metrics.images import Block, Images
from enat.metrics.processes import Processes
from enat.metrics.tally import Extra, Plan, Summary, Tally, measure

Measured = list[tuple[dict[str, Tensor], Sequence[str]]] | str  # of blocks, and images skipped; or what is wrong


@dataclass
class Watcher:
    """Hears of the work, and, in the end and on rank 0, what became of it.

    Args:
        on_start: of the number of images, and of how many are done already.
        on_images: of every further number of images done, on rank 0.
        on_block: of every block, on the process that made it.
    """

    on_start: Callable[[int, int], None] = lambda total, done: None
    on_images: Callable[[int], None] = lambda count: None
    on_block: Callable[[Block], None] = lambda block: None
    skipped: list[str] = field(default_factory=list)  # why images could not be read
    sha256: str = ""  # of the images at 8 bits, block by block


@torch.no_grad()
def summarize(
    images: Images,
    network: FeatureNetwork,
    plan: Plan,
    processes: Processes,
    device: torch.device,
    extra: Extra | None = None,
    folder: Path | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Summary]:
    """Goes through a set of images; the sums are the same bits for any number of processes and interruptions.

    Args:
        images: the set.
        network: on `device`, in evaluation mode.
        plan: see `Plan`.
        processes: share the blocks; all of them have to call.
        device: where images and features are computed.
        extra: by name, further values (b,) of images and class ids, whose mean is taken.
        folder: where the work is kept again and again, so that the next call goes on, if it is about the same images
            and the same plan; None to keep nothing.
        watcher: hears of the progress.

    Returns:
        Summaries by protocol, on rank 0; nothing elsewhere.

    Raises:
        InputError: on all processes, for images that can't be scored.
    """
    extra, watcher = extra or {}, watcher or Watcher()
    count, size = images.num_images, plan.block_size
    tally: Tally | None = None
    result: dict[str, Summary] = {}

    def start() -> int:
        nonlocal tally
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        tally = Tally(network, extra, count, plan, folder).to(device)
        return int(tally.done)

    def finish() -> None:
        assert tally is not None
        tally.save()
        watcher.skipped += tally.skipped
        result.update(tally.summaries())
        watcher.sha256 = next(iter(result.values())).sha256 or ""

    done = processes.on_first(start)
    watcher.on_start(count, min(done * size, count))
    places = [range(first, min(first + size, count)) for first in range(done * size, count, size)]
    for parts in _measured(images, places, network, extra, processes, device, watcher):
        processes.on_first(partial(_add, tally, parts, watcher))
    processes.on_first(finish)
    return result


def _add(tally: Tally | None, parts: list[Measured], watcher: Watcher) -> None:
    """Adds what the processes have measured, on rank 0, which has a tally."""
    assert tally is not None
    for part in parts:
        if isinstance(part, str):
            raise InputError(part)
        for values, skipped in part:
            tally.add(values, skipped)
            watcher.on_images(len(values["numbers"]) + len(skipped))
    tally.save(if_due=True)


def _measured(
    images: Images,
    places: Sequence[range],
    network: FeatureNetwork,
    extra: Extra,
    processes: Processes,
    device: torch.device,
    watcher: Watcher,
) -> Iterator[list[Measured]]:
    """Reads and measures blocks on all processes; on rank 0, gives them in order."""
    together = [places[i : i + images.read_together] for i in range(0, len(places), images.read_together)]
    mine = together[processes.rank :: processes.size]
    blocks = images.read([place for part in mine for place in part], device)
    for turn in range(math.ceil(len(together) / processes.size)):
        measured: list[tuple[dict[str, Tensor], Sequence[str]]] = []
        problem = None
        try:
            for _ in mine[turn] if turn < len(mine) else []:
                block = next(blocks)
                watcher.on_block(block)
                measured.append((measure(block, network, extra), block.skipped))
        except InputError as error:
            problem = str(error)
        yield processes.gather(problem or measured)
