"""Pictures and scores of reconstructions, while a tokenizer is trained. Shapes: `n` images."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from annotated_types import Ge
from lightning.pytorch.loggers import WandbLogger

from callbacks.generation_metrics import ImageMetrics
from callbacks.sample_grid import save_grid
from enat.images import Block, Images
from enat.metrics.evaluation import Evaluation
from enat.tokenizers.base import Tokenizer

COLUMNS = 10  # of a picture


class ReconstructedImages:
    """Images that a tokenizer has encoded and decoded; implements `enat.images.Images`."""

    def __init__(self, images: Images, tokenizer: Tokenizer):
        self.images = images
        self.tokenizer = tokenizer
        self.num_images = images.num_images
        self.read_together = images.read_together
        self.identity: Mapping[str, Any] = {"reconstructed": dict(images.identity)}

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `enat.images.Images`."""
        for block in self.images.read(places, device):
            yield block._replace(images=self.tokenizer.decode(self.tokenizer.encode(block.images)))


class ReconstructionMetrics(ImageMetrics):
    """Scores reconstructions of the held-out images at each validation: their FID is the reconstruction FID.

    Args:
        evaluation: compares them, usually with the held-out images; None to score nothing.
        leave_out: names of scores that are only computed after training.
    """

    def __init__(self, evaluation: Evaluation | None, leave_out: Sequence[str] = ()):
        super().__init__(evaluation, leave_out)

    def images(self, trainer: L.Trainer, pl_module: Any) -> Images:
        held_out = trainer.datamodule.held_out_images  # type: ignore[attr-defined]
        return ReconstructedImages(held_out, pl_module.averaged_net)


class ReconstructionGrid(L.Callback):
    """Saves held-out images above their reconstructions at each validation.

    Args:
        num_images: how many images are shown.
        folder: where the PNG files go.
    """

    def __init__(self, num_images: Annotated[int, Ge(1)], folder: str):
        self.num_images = num_images
        self.folder = Path(folder)
        self.pictures: list[Path] = []  # the newest

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        held_out = trainer.datamodule.held_out_images  # type: ignore[attr-defined]
        columns = min(COLUMNS, self.num_images, held_out.num_images)
        count = min(self.num_images, held_out.num_images) // columns * columns
        (block,) = held_out.read([range(count)], pl_module.device)
        net = pl_module.averaged_net
        decoded = net.decode(net.encode(block.images)).float()
        rows = torch.stack([block.images.unflatten(0, (-1, columns)), decoded.unflatten(0, (-1, columns))], 1)
        names = ["image", "decoded"] * (count // columns)
        path = save_grid(rows.flatten(0, 2), names, self.folder / f"step_{trainer.global_step:07d}.png")
        self.pictures = [path]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("reconstructions", [str(path)])
