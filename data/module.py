"""Feeds training with token ids: the LightningDataModule, and the one that reads shards.

Shapes: `B` samples of a batch, `L` tokens of a sample.
"""

import atexit
import hashlib
import multiprocessing
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
from annotated_types import Ge, Le, Lt
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_convert

from data.credentials import without_credentials
from data.fetch import fetch, local_folder
from data.manifest import Manifest
from data.shards import MappedPacks, ShardPacks, check_shards
from data.stream import Packs, StreamPositions, TokenStream, per_device_batch
from enat.errors import InputError, counted
from enat.images import blocks_of
from enat.tokenizers.base import Tokenizer


def _ignore_signals(worker: int) -> None:
    """Makes a data worker ignore signals: the training process handles them and ends its workers itself."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _kill_workers() -> None:
    """Kills the data workers at exit. Python would wait for them forever, because they ignore its SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


def held_out_blocks(num_samples: int, rank: int, world_size: int, block_size: int = 16) -> list[range]:
    """Returns the blocks of held-out samples that a rank validates.

    Ranks take blocks in turns. A rank for which there is no block repeats an earlier one, because a rank without
    batches would let the others wait forever.
    """
    blocks = blocks_of(num_samples, block_size)
    return [blocks[number % len(blocks)] for number in range(rank, max(len(blocks), world_size), world_size)]


class TimedLoader(DataLoader):
    """Measures how long training waits for its batches.

    If a worker raises InputError, so does the loader, with the worker's message without its traceback.
    """

    waited_s = 0.0  # seconds waited so far

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)  # training data have no end
            except InputError as error:
                raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
            self.waited_s += time.perf_counter() - started
            yield batch


def training_loader(stream: Dataset[Any], batch_size: int, num_workers: int, trainer: Any) -> TimedLoader:
    """Reads an endless stream, whose samples are read by their positions, from the first batch not yet trained on.

    Args:
        stream: the samples.
        batch_size: of an optimiser step, over all devices and accumulated batches.
        num_workers: processes that read ahead; 0 reads in this process.
        trainer: knows the devices, the accumulated batches and the steps that are done.
    """
    accumulate = trainer.accumulate_grad_batches
    positions = StreamPositions(
        per_device_batch(batch_size, trainer.world_size, accumulate),
        trainer.global_rank,
        trainer.world_size,
        first_batch=trainer.global_step * accumulate,
    )
    atexit.register(_kill_workers)
    return TimedLoader(
        stream,
        batch_sampler=positions,  # type: ignore[arg-type]  # ranges serve as lists
        collate_fn=default_convert,
        num_workers=num_workers,
        worker_init_fn=_ignore_signals,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
    )


@dataclass(kw_only=True, eq=False, repr=False)
class TokenDataModule(L.LightningDataModule, ABC):
    """Feeds training with the stream of `data.stream`; a subclass says where the samples are stored.

    Raises:
        InputError: in `setup`, if the network has other classes than the data; one with 0 trains without classes.
    """

    tokenizer: Tokenizer  # made the token ids
    batch_size: Annotated[int, Ge(1)]  # of an optimiser step, over all devices and accumulated batches
    seed: int = 0  # determines the order, the views and the class dropout
    class_dropout: Annotated[float, Ge(0), Lt(1)] = 0.15  # share of null class ids (docs/method.md, Recipe)
    class_balance: Annotated[float, Ge(0), Le(1)] | None = None  # see `data.stream.TokenStream`; None is 0
    num_workers: Annotated[int, Ge(0)] = 0  # processes on each rank that read ahead; 0 reads in the training process
    num_classes: int = field(init=False)  # also the id of the null class; 0 to train without classes
    class_names: Sequence[str] = field(init=False)  # one for each class id

    def __post_init__(self) -> None:
        super().__init__()

    def check_source(self) -> None:
        """Checks, before anything is read, that the options say where the samples are.

        Raises:
            InputError: if one that is needed for that is not given.
        """

    def setup(self, stage: str) -> None:
        trainer: Any = self.trainer
        if trainer is None:
            return
        num_classes = trainer.lightning_module.net.num_classes
        if num_classes == 0:
            self.num_classes = 0
            self.class_names = ()
        if num_classes != self.num_classes:
            raise InputError(
                f"module.net.num_classes={num_classes}: the data have {self.num_classes}; expected as many, or 0 to "
                "train without classes."
            )

    @abstractmethod
    def packs(self, split: str) -> Packs:
        """Opens the samples of the split `train` or `held_out`."""

    def known_class_names(self) -> Sequence[str] | None:
        """Returns the names of the classes before training; None where they are not known yet."""
        return getattr(self, "class_names", None)

    def numbers(self, split: str) -> np.ndarray | None:
        """Returns the numbers (n,) of the images of a split in their folder; None where they are not known."""
        return None

    def sha256(self) -> str | None:
        """Returns a hash of the samples, wherever they are stored; None where there is nothing to compare."""
        return None

    def train_dataloader(self) -> DataLoader:
        """Starts the stream at the first batch that the trainer has not yet trained on."""
        class_dropout = self.class_dropout if self.num_classes else 1.0
        stream = TokenStream(
            self.packs("train"), self.num_classes, class_dropout, self.seed, class_balance=self.class_balance or 0.0
        )
        return training_loader(stream, self.batch_size, self.num_workers, self.trainer)

    def val_dataloader(self) -> DataLoader:
        """Reads the held-out samples into memory, each in its first view."""
        trainer: Any = self.trainer
        packs = self.packs("held_out")
        if not packs.sizes.sum():
            raise InputError("data: no held-out image could be read; task=tokenize with a larger held_out makes more.")
        samples = [packs.read(pack) for pack in range(len(packs.sizes))]
        token_ids = torch.cat([torch.from_numpy(token_ids[:, 0].astype("int64")) for token_ids, _ in samples])
        class_ids = torch.cat([torch.from_numpy(class_ids.astype("int64")) for _, class_ids in samples])
        class_ids = class_ids.clamp(max=self.num_classes)  # without classes, all are the null class
        blocks = held_out_blocks(len(class_ids), trainer.global_rank, trainer.world_size)
        return DataLoader(TensorDataset(token_ids, class_ids), batch_sampler=blocks)  # type: ignore[arg-type]


@dataclass(kw_only=True, eq=False, repr=False)
class ShardsDataModule(TokenDataModule):
    """Reads the shards that `task=tokenize` wrote.

    Args:
        shards: a folder, or an http(s) or other fsspec URL, from which the shards are first copied to `cache`.
        reader: opens the packs of a split: `data.shards.ShardPacks` reads one pack at a time, `data.shards.map_packs`
            maps all into memory that the processes of a machine share.
        cache: folder for copies of remote shards.

    Raises:
        InputError: for shards that are missing, altered, made by another tokenizer, or do not fit the network.
    """

    shards: str | None
    reader: Callable[[Path, Manifest, str], Packs]
    cache: str = "assets/shards"

    def check_source(self) -> None:
        if self.shards is None:
            raise InputError("data.shards=null: expected data.shards=DIR, a folder that task=tokenize wrote.")

    def prepare_data(self) -> None:
        """Fetches remote shards and checks every shard; Lightning calls it in one process of each machine."""
        assert self.shards is not None
        folder = fetch(self.shards, Path(self.cache))
        manifest = Manifest.load(folder)
        check_shards(folder, manifest)
        for split, shards in manifest.splits.items():
            if shards:
                packs = self.reader(folder, manifest, split)  # `map_packs` unpacks the shards here, in a single process
                if isinstance(packs, MappedPacks):
                    packs.check()

    def setup(self, stage: str) -> None:
        assert self.shards is not None
        self.folder = local_folder(self.shards, Path(self.cache))
        self.manifest = Manifest.load(self.folder)
        self.class_names = self.manifest.class_names
        self.num_classes = len(self.class_names)
        super().setup(stage)
        if self.tokenizer.has_other_codes(vars(self.manifest)):
            raise InputError(f"data.shards={self.shards}: made by another tokenizer than the one configured.")
        if self.trainer is not None:
            net = self.trainer.lightning_module.net
            for name in ("codebook_size", "num_tokens"):
                size = getattr(self.manifest, name)
                if getattr(net, name) != size:
                    raise InputError(f"module.net.{name}={getattr(net, name)}: the shards have {size}.")
            if not self.manifest.splits.get("train"):  # on every rank: one that went on alone would wait for the others
                raise InputError(
                    f"{self.shards}: there are no train shards; task=tokenize with a smaller held_out makes some."
                )
            self.describe()

    def known_class_names(self) -> Sequence[str] | None:
        folder = local_folder(str(self.shards), Path(self.cache))
        return Manifest.load(folder).class_names if (folder / "manifest.json").exists() else None

    def numbers(self, split: str) -> np.ndarray | None:
        folder = local_folder(str(self.shards), Path(self.cache))
        if not (folder / "manifest.json").exists():
            return None  # it is fetched later
        manifest = Manifest.load(folder)
        if not manifest.splits.get(split):
            return np.empty(0, np.int64)
        return ShardPacks(folder, manifest, split).read_sources()

    def sha256(self) -> str | None:
        folder = local_folder(str(self.shards), Path(self.cache))
        if not (folder / "manifest.json").exists():
            return None  # it is fetched later
        manifest = Manifest.load(folder)
        samples = [manifest.split_sha256(split) for split in sorted(manifest.splits)]
        return hashlib.sha256(" ".join([manifest.tokenizer_sha256, *samples]).encode()).hexdigest()

    @rank_zero_only
    def describe(self) -> None:
        """Prints how many samples there are, and how often a step sees each if a batch is larger than the set."""
        samples = {split: sum(shard.samples for shard in shards) for split, shards in self.manifest.splits.items()}
        train, held_out = samples["train"], samples.get("held_out", 0)
        print(
            f"{without_credentials(self.shards)}: {train:,} training images and {held_out:,} held out, "
            f"{counted(self.num_classes, 'class', 'classes')}, {self.manifest.num_tokens} tokens of "
            f"{self.manifest.resolution} px."
        )
        if self.batch_size > train:
            print(
                f"data.batch_size={self.batch_size}: more than the {train} training images, so that a step trains on "
                f"some of them several times; a smaller one fits better."
            )

    def packs(self, split: str) -> Packs:
        return self.reader(self.folder, self.manifest, split)
