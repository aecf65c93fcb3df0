"""What scores need of a set of images, added up block by block, and kept so that work goes on.

Shapes: `b` images of a block, `D` features.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from enat.errors import InputError
from enat.files import write_atomically
from enat.metrics.features import FeatureNetwork
from enat.metrics.images import Block, to_bytes
from enat.metrics.scores import InceptionScore
from enat.metrics.statistics import Moments, Statistics

Extra = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
SAVING_SHARE = 0.05  # of the time, at most


class Summary(NamedTuple):
    """A set of images under one protocol."""

    pool: Statistics
    spatial: Statistics | None = None
    features: Tensor | None = None  # (n, D), of all images or some of them
    inception_score: tuple[float, float] | None = None  # mean and deviation over the splits
    extra: Mapping[str, float] | None = None
    size: tuple[int, int] | None = None  # height and width of the images, where they were seen
    sha256: str | None = None  # of the images at 8 bits, block by block


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


def measure(block: Block, network: FeatureNetwork, extra: Extra) -> dict[str, Tensor]:
    """What is kept of a block, on the CPU.

    Raises:
        InputError: for images that hold NaN.
    """
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
    measured["size"] = torch.tensor(images.shape[2:])
    digest = hashlib.sha256(to_bytes(images).cpu().numpy().tobytes()).digest()
    measured["digest"] = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    return {name: value.cpu() for name, value in measured.items()}


class Tally(nn.Module):
    """The sums over the blocks so far; a state dict of fixed size, and features in arrays beside it."""

    done: Tensor
    extra: Tensor
    size: Tensor
    digest: Tensor

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
        self.register_buffer("size", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("digest", torch.zeros(32, dtype=torch.uint8))
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
        with safe_open(self.folder / "state.safetensors", "pt") as file:
            self.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            self.skipped = json.loads(file.metadata()["skipped"])
        return True

    def save(self, if_due: bool = False) -> None:
        """Keeps the sums in the folder, if there is one; at most so often that it takes a small share of the time."""
        begun = time.monotonic()
        if self.folder is None or (if_due and begun < self.due):
            return
        for array in self.kept.values():
            assert isinstance(array, np.memmap)
            array.flush()
        state = {name: tensor.cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(self.folder / "state.safetensors", save(state, {"skipped": json.dumps(self.skipped)}))
        ended = time.monotonic()
        self.due = ended + (ended - begun) / SAVING_SHARE

    def add(self, measured: Mapping[str, Tensor], skipped: Sequence[str]) -> None:
        """Adds the next block."""
        numbers, device = measured["numbers"], self.done.device
        self.skipped += skipped
        self.done += 1
        if not len(numbers):
            return
        if self.size.any() and not torch.equal(self.size.cpu(), measured["size"]):
            sizes = " and ".join(
                f"{width}x{height}" for height, width in (self.size.tolist(), measured["size"].tolist())
            )
            raise InputError(
                f"images: of different sizes ({sizes}, from image {int(numbers[0])} on); expected one size, or a "
                "resolution to crop them to."
            )
        self.size.copy_(measured["size"])
        so_far = bytes(self.digest.tolist()) + bytes(measured["digest"].tolist())
        self.digest.copy_(torch.frombuffer(bytearray(hashlib.sha256(so_far).digest()), dtype=torch.uint8))
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
        """Of all blocks, by protocol.

        Raises:
            InputError: if too few images could be read.
        """
        found = {}
        height, width = self.size.tolist()
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
                (height, width),
                bytes(self.digest.tolist()).hex(),
            )
        return found
