"""The LightningDataModule of token ids, whatever they come from."""

from abc import ABC, abstractmethod

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from data.stream import Packs, StreamPositions, TokenStream, per_device_batch
from enat.tokenizer import Tokenizer


class HeldOut(Dataset[tuple[Tensor, Tensor]]):
    """Every `world_size`-th held-out sample in order, in its first view: token ids (L,) and class id."""

    def __init__(self, packs: Packs, rank: int, world_size: int):
        self.packs = packs
        parts = [packs.read(pack) for pack in range(len(packs.sizes))]
        self.token_ids = torch.cat([torch.from_numpy(tokens[:, 0].astype("int64")) for tokens, _ in parts])
        self.class_ids = torch.cat([torch.from_numpy(classes.astype("int64")) for _, classes in parts])
        self.index = range(rank, len(self.class_ids), world_size)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        return self.token_ids[self.index[item]], self.class_ids[self.index[item]]


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

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Classes of the data; the id of the null class."""

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
        return DataLoader(
            stream,
            batch_sampler=positions,
            collate_fn=default_convert,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        held_out = HeldOut(self.packs("held_out"), trainer.global_rank, trainer.world_size)
        return DataLoader(held_out, batch_size=128)
