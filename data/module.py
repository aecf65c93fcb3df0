"""The LightningDataModule of token ids, whatever they come from."""

import atexit
import multiprocessing
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from data.fetch import fetch, local_folder
from data.shards import Manifest, check_shards
from data.stream import Packs, StreamPositions, TokenStream, per_device_batch
from enat.errors import InputError
from enat.tokenizers.base import Tokenizer


def _ignore_signals(worker: int) -> None:
    """A signal to all processes is the matter of the one that trains, which also ends its workers."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Ends workers that an interrupted start has left: Python would wait for them, and they ignore its SIGTERM."""
    for process in multiprocessing.active_children():
        process.kill()


class HeldOut(Dataset[tuple[Tensor, Tensor]]):
    """The held-out samples in order, in their first view: token ids (L,) and class id."""

    def __init__(self, packs: Packs):
        parts = [packs.read(pack) for pack in range(len(packs.sizes))]
        self.token_ids = torch.cat([torch.from_numpy(tokens[:, 0].astype("int64")) for tokens, _ in parts])
        self.class_ids = torch.cat([torch.from_numpy(classes.astype("int64")) for _, classes in parts])

    def __len__(self) -> int:
        return len(self.class_ids)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return self.token_ids[item], self.class_ids[item]

    def blocks(self, rank: int, world_size: int) -> list[range]:
        """Blocks of 16 samples, dealt out to the ranks; of fewer blocks than ranks, some see one again: none waits."""
        starts = range(0, len(self), 16)
        mine = range(rank, max(len(starts), world_size), world_size)
        return [range(len(self))[start : start + 16] for start in (starts[block % len(starts)] for block in mine)]


class TimedLoader(DataLoader):
    """A DataLoader that adds up for how long its batches were waited for, in seconds.

    Raises:
        InputError: as its worker raised it, without the worker's traceback.
    """

    waited_s = 0.0

    def __iter__(self) -> Any:
        batches = super().__iter__()
        while True:
            begun = time.perf_counter()
            try:
                batch = next(batches)  # training data have no end
            except InputError as error:
                raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
            self.waited_s += time.perf_counter() - begun
            yield batch


class TokenDataModule(L.LightningDataModule, ABC):
    """Feeds training from packs of token ids, by the stream of `data.stream`; a subclass says which packs.

    Args:
        tokenizer: the one that made the token ids.
        batch_size: the global batch, over all devices and accumulated batches.
        seed: of the order, the views and the class dropout.
        class_dropout: share of classes replaced by the null class (SPEC 4).
        num_workers: processes that read ahead, on each rank.
    """

    def __init__(
        self, tokenizer: Tokenizer, batch_size: int, seed: int = 0, class_dropout: float = 0.15, num_workers: int = 0
    ):
        super().__init__()
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self.class_dropout, self.num_workers = class_dropout, num_workers

    num_classes: int  # of the data; the id of the null class

    @abstractmethod
    def packs(self, split: str) -> Packs:
        """The samples of the split `train` or `held_out`."""

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        accumulate = trainer.accumulate_grad_batches
        positions = StreamPositions(
            per_device_batch(self.batch_size, trainer.world_size, accumulate),
            trainer.global_rank,
            trainer.world_size,
            first_batch=trainer.global_step * accumulate,
        )
        stream = TokenStream(self.packs("train"), self.num_classes, self.class_dropout, self.seed)
        atexit.register(_end_workers)
        return TimedLoader(
            stream,
            batch_sampler=positions,  # type: ignore[arg-type]  # ranges serve as lists
            collate_fn=default_convert,
            num_workers=self.num_workers,
            worker_init_fn=_ignore_signals,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        held_out = HeldOut(self.packs("held_out"))
        return DataLoader(held_out, batch_sampler=held_out.blocks(trainer.global_rank, trainer.world_size))  # type: ignore[arg-type]


class ShardsDataModule(TokenDataModule):
    """Reads the shards that `task=tokenize` wrote.

    Args:
        shards: the folder, or its http(s) or other fsspec URL, whose files are then copied to `cache` first.
        reader: what reads a split's packs: `data.shards.ShardPacks` one at a time, or `data.shards.map_packs` all
            as memory that the processes of a machine share.
        cache: folder for copies of remote shards.
        options: of `TokenDataModule`.

    Raises:
        InputError: for shards that are missing, altered, or made by another tokenizer.
    """

    def __init__(
        self,
        shards: str | None,
        reader: Callable[[Path, Manifest, str], Packs],
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int = 0,
        class_dropout: float = 0.15,
        num_workers: int = 0,
        cache: str = "assets/shards",
    ):
        super().__init__(tokenizer, batch_size, seed, class_dropout, num_workers)
        self.shards, self.reader, self.cache = shards, reader, Path(cache)

    def prepare_data(self) -> None:
        """Once on each machine: fetches what is remote, and checks every shard."""
        if self.shards is None:
            raise InputError("data.shards=null: expected data.shards=DIR, a folder that task=tokenize wrote.")
        folder = fetch(self.shards, self.cache)
        manifest = Manifest.load(folder)
        check_shards(folder, manifest)
        for split, shards in manifest.splits.items():
            if shards:
                self.reader(folder, manifest, split)  # a mapped set is unpacked here, by one process

    def setup(self, stage: str) -> None:
        assert self.shards is not None
        self.folder = local_folder(self.shards, self.cache)
        self.manifest = Manifest.load(self.folder)
        self.num_classes = len(self.manifest.class_names)
        if self.manifest.tokenizer_sha256 != self.tokenizer.fingerprint():
            raise InputError(f"data.shards={self.shards}: made by another tokenizer than the one configured.")
        net = self.trainer.lightning_module.net if self.trainer is not None else None
        sizes = {
            "num_classes": self.num_classes,
            "codebook_size": self.manifest.codebook_size,
            "num_tokens": self.manifest.num_tokens,
        }
        for name, size in sizes.items():
            if net is not None and getattr(net, name) != size:
                raise InputError(f"module.net.{name}={getattr(net, name)}: the shards have {size}.")

    def packs(self, split: str) -> Packs:
        return self.reader(self.folder, self.manifest, split)
