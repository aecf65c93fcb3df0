"""What scores need of a set of images, added up block by block; work that was interrupted goes on.

Shapes: `b` images of a block, `D` features.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from enat.errors import InputError
from enat.files import write_atomically
from enat.metrics.features import FeatureNetwork
from enat.metrics.images import Block, Images
from enat.metrics.processes import Processes
from enat.metrics.scores import InceptionScore
from enat.metrics.statistics import Moments, Statistics

Extra = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
Measured = list[tuple[dict[str, Tensor], Sequence[str]]] | str  # of blocks, and images skipped; or what is wrong
SAVING_SHARE = 0.05  # of the time, at most


class Summary(NamedTuple):
    """A set of images under one protocol."""

    pool: Statistics
    spatial: Statistics | None = None
    features: Tensor | None = None  # (n, D), of all images or some of them
    inception_score: tuple[float, float] | None = None  # mean and deviation over the splits
    extra: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Plan:
    """How sets of images are gone through.

    Args:
        block_size: images whose features are computed together, whatever the number of processes.
        splits: of the Inception Score; 0 for none.
        max_features: of so many images, spread evenly, the features themselves are kept, for KID and recall.
    """

    block_size: int
    splits: int = 0
    max_features: int = 0


class _Tally(nn.Module):
    """The sums over the blocks so far; a state dict of fixed size, and features in arrays beside it."""

    done: Tensor
    extra: Tensor

    def __init__(self, network: FeatureNetwork, extra: Extra, num_images: int, plan: Plan, folder: Path | None):
        super().__init__()
        self.names, self.folder, self.due = list(extra), folder, 0.0
        protocols = list(network.protocols)
        self.pool: Any = nn.ModuleDict({name: Moments(network.num_features) for name in protocols})
        self.spatial: Any = nn.ModuleDict(
            {name: Moments(network.num_spatial) for name in protocols if network.num_spatial}
        )
        self.inception_score: Any = nn.ModuleDict(
            {name: InceptionScore(num_images, network.num_logits, plan.splits) for name in protocols if plan.splits}
        )
        self.register_buffer("extra", torch.zeros(len(extra), dtype=torch.float64))
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))
        self.skipped: list[str] = []
        spread = np.linspace(0, num_images - 1, min(num_images, plan.max_features)).round().astype(np.int64)
        self.kept_numbers = np.unique(spread)
        self.kept: dict[str, np.ndarray] = {}
        resumed = self._restore()
        if plan.max_features:
            self.kept = {name: self._array(name, network.num_features, resumed) for name in protocols}

    def _array(self, protocol: str, width: int, resumed: bool) -> np.ndarray:
        shape = (len(self.kept_numbers), width)
        if self.folder is None:
            return np.full(shape, np.nan, dtype=np.float32)
        path = self.folder / f"{protocol}.npy"
        if resumed:
            return np.lib.format.open_memmap(path, "r+")
        array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        array[:] = np.nan
        return array

    def _restore(self) -> bool:
        if self.folder is None or not (self.folder / "state.safetensors").exists():
            return False
        self.load_state_dict(load_file(self.folder / "state.safetensors"))
        self.skipped = json.loads((self.folder / "skipped.json").read_text())
        return True

    def save(self, if_due: bool = False) -> None:
        """Keeps the sums in the folder, if there is one; at most so often that it takes a small share of the time."""
        begun = time.monotonic()
        if self.folder is None or (if_due and begun < self.due):
            return
        for array in self.kept.values():
            assert isinstance(array, np.memmap)
            array.flush()
        write_atomically(self.folder / "skipped.json", json.dumps(self.skipped).encode())
        state = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(self.folder / "state.safetensors", save(state))
        ended = time.monotonic()
        self.due = ended + (ended - begun) / SAVING_SHARE

    def add(self, measured: Mapping[str, Tensor], skipped: Sequence[str]) -> None:
        """Adds the next block."""
        numbers, device = measured["numbers"], self.done.device
        self.skipped += skipped
        self.done += 1
        if not len(numbers):
            return
        rows = np.searchsorted(self.kept_numbers, numbers.numpy())
        for protocol, moments in self.pool.items():
            moments.update(measured[f"{protocol}/pool"].to(device))
            if protocol in self.spatial:
                self.spatial[protocol].update(measured[f"{protocol}/spatial"].to(device))
            if protocol in self.inception_score:
                self.inception_score[protocol].update(numbers, measured[f"{protocol}/logits"].to(device))
            if protocol in self.kept:
                chosen = np.isin(numbers.numpy(), self.kept_numbers)
                self.kept[protocol][rows[chosen]] = measured[f"{protocol}/pool"].numpy()[chosen]
        if self.names:
            self.extra += torch.stack([measured[f"extra/{name}"].double().sum() for name in self.names]).to(device)

    def summaries(self) -> dict[str, Summary]:
        """Of all blocks, by protocol."""
        found = {}
        for protocol, moments in self.pool.items():
            pool = moments.compute()
            count = pool.num_images or 0
            if count < 2:
                raise InputError(f"images: {count} readable ones; expected at least 2.")
            kept = torch.from_numpy(self.kept[protocol]) if protocol in self.kept else None
            found[protocol] = Summary(
                pool,
                self.spatial[protocol].compute() if protocol in self.spatial else None,
                None if kept is None else kept[~kept[:, 0].isnan()],
                self.inception_score[protocol].compute() if protocol in self.inception_score else None,
                {name: float(total) / count for name, total in zip(self.names, self.extra, strict=True)},
            )
        return found


@dataclass
class Watcher:
    """Who hears of the work.

    Args:
        on_start: of the number of images, and of how many are done already.
        on_images: of every further number of images done, on rank 0.
        on_block: of every block, on the process that made it.
    """

    on_start: Callable[[int, int], None] = lambda total, done: None
    on_images: Callable[[int], None] = lambda count: None
    on_block: Callable[[Block], None] = lambda block: None
    skipped: list[str] = field(default_factory=list)  # the images that could not be read, in the end


def check_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Makes the folder of a piece of work, or sees that it holds the same work.

    Raises:
        InputError: naming what differs.
    """
    path, wanted = folder / "work.json", json.loads(json.dumps(identity))
    if path.exists():
        found = json.loads(path.read_text())
        changed = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if changed:
            raise InputError(
                f"{folder}: unfinished work with another {', '.join(changed)}; expected the same settings, another "
                "output=DIR, or resume=false for a new folder."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(wanted, indent=1).encode())


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
        folder: where the work is kept again and again, so that the next call goes on; None to keep nothing.
        watcher: hears of the progress.

    Returns:
        Summaries by protocol, on rank 0; nothing elsewhere.

    Raises:
        InputError: on all processes, for images that can't be scored.
    """
    extra, watcher = extra or {}, watcher or Watcher()
    count, size = images.num_images, plan.block_size
    tally: _Tally | None = None
    result: dict[str, Summary] = {}

    def start() -> int:
        nonlocal tally
        if folder is not None:
            network_is = {"sha256": network.sha256, "protocols": sorted(network.protocols)}
            check_folder(folder, {"num_images": count, "features": network_is, **asdict(plan), **images.identity})
        tally = _Tally(network, extra, count, plan, folder).to(device)
        return int(tally.done)

    def add(parts: list[Measured]) -> None:
        assert tally is not None
        for part in parts:
            if isinstance(part, str):
                raise InputError(part)
            for values, skipped in part:
                tally.add(values, skipped)
                watcher.on_images(len(values["numbers"]) + len(skipped))
        tally.save(if_due=True)

    def finish() -> None:
        assert tally is not None
        tally.save()
        watcher.skipped += tally.skipped
        result.update(tally.summaries())

    done = processes.on_first(start)
    watcher.on_start(count, min(done * size, count))
    places = [range(first, min(first + size, count)) for first in range(done * size, count, size)]
    for parts in _measured(images, places, network, extra, processes, device, watcher):
        processes.on_first(partial(add, parts))
    processes.on_first(finish)
    return result


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
                measured.append((_measure(block, network, extra), block.skipped))
        except InputError as error:
            problem = str(error)
        yield processes.gather(problem or measured)


def _measure(block: Block, network: FeatureNetwork, extra: Extra) -> dict[str, Tensor]:
    """What is kept of a block, on the CPU."""
    images, numbers = block.images, block.numbers
    measured = {"numbers": numbers}
    if not len(numbers):
        return measured
    broken = ~images.flatten(1).isfinite().all(1).cpu()
    if broken.any():
        raise InputError(
            f"images: {int(broken.sum())} of {len(images)} hold NaN or infinite values, the first of them image "
            f"{int(numbers[broken][0])}."
        )
    for protocol, features in network(images).items():
        measured |= {f"{protocol}/{name}": value for name, value in features._asdict().items() if value is not None}
    if extra and block.class_ids is not None:
        measured |= {f"extra/{name}": score(images, block.class_ids) for name, score in extra.items()}
    return {name: value.cpu() for name, value in measured.items()}
