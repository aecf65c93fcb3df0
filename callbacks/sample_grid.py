"""Pictures of samples: a grid by class, and the reveal step by step.

Shapes: `n` images, `L` tokens of an image, `T` steps.
"""

import math
from collections.abc import Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated

import lightning as L
from annotated_types import Ge, MinLen
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from enat.errors import InputError
from enat.files import write_atomically
from enat.generation import UNCONDITIONAL, sample_classes
from enat.images import reveal
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler

MIN_SIDE = 72  # pixels; smaller images are enlarged for the picture
MAX_NAME = 20  # letters of a row's name


def _save(images: Tensor, columns: int, row_names: list[str], column_names: list[str], path: Path) -> Path:
    """Saves a picture with `columns` images (n, channels, h, w) a row and a name for each row and column."""
    factor = math.ceil(MIN_SIDE / images.shape[3])
    images = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    height, width, gap = images.shape[2], images.shape[3], 4
    picture = make_grid(images, nrow=columns, padding=gap, pad_value=1.0).permute(1, 2, 0)
    row_names = [shortened(_drawable(name)) for name in row_names]
    left = 16 + 9 * max(3, *map(len, row_names))  # pixels; a letter has fewer than nine
    top = 30 if column_names else 0
    dpi = 100
    size = (picture.shape[1] + left, picture.shape[0] + top)
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi)
    axes = figure.add_axes((left / size[0], 0, picture.shape[1] / size[0], picture.shape[0] / size[1]))
    axes.imshow(picture.numpy(), interpolation="nearest")
    axes.set_xticks([gap + width / 2 + i * (width + gap) for i in range(len(column_names))], column_names)
    axes.set_yticks([gap + height / 2 + i * (height + gap) for i in range(len(row_names))], row_names, parse_math=False)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(figure.savefig, format="png"))
    return path


def shortened(name: str) -> str:
    """Leaves out the middle of a long name, for names often differ at their ends."""
    half = MAX_NAME // 2
    return name if len(name) <= MAX_NAME else f"{name[:half]}...{name[-half:]}"


def _drawable(name: str) -> str:
    """Replaces what is no text in a name, such as the bytes of a folder's name in another encoding."""
    return name.encode("utf-8", "replace").decode()


def save_grid(images: Tensor, names: list[str], path: Path, column_names: Sequence[str] = ()) -> Path:
    """Saves a grid with a named row per class; `images` (n, channels, h, w), a row's images next to each other."""
    return _save(images, len(images) // len(names), names, list(column_names), path)


def save_reveal(images: Tensor, steps: list[Tensor], mask_token_id: int, row_names: list[str], path: Path) -> Path:
    """Saves a row per image, a column per step, with the tokens that are still masked covered.

    A step shows the final image where it is revealed, since revealed tokens do not change without a correction.

    Args:
        images: the final images (n, channels, h, w), in [0, 1].
        steps: the token ids (n, L) that each step started from, of a square grid.
        mask_token_id: the id that marks masked tokens.
        row_names: the images' classes.
        path: of the PNG file.
    """
    frames = reveal(images, steps, mask_token_id)  # (n, T+1, 3, h, w)
    names = [f"{int((step[0] == mask_token_id).sum())} left" for step in steps] + ["done"]
    return _save(frames.flatten(0, 1), len(names), row_names, names, path)


def save_pictures(
    images: Tensor, steps: list[Tensor], net: ENAT, names: list[str], grid: Path, reveal: Path
) -> list[Path]:
    """Saves both pictures of what `sample_classes` made, with the names of the classes; returns their paths."""
    every = len(images) // len(names)
    return [
        save_grid(images, names, grid),
        save_reveal(images[::every], steps, net.mask_token_id, names, reveal),
    ]


class SampleGrid(L.Callback):
    """At each validation, draws samples of the averaged network: a grid, and the reveal of one image per class.

    The noise is the same each time, so that the pictures of a run show one set of images improving.

    Args:
        sampler: makes the token ids; the data module's tokenizer makes images of them.
        class_ids: the rows of the grid; None for the first ten classes.
        images_per_class: its columns.
        seed: of the noise.
        folder: where the PNG files go.
    """

    def __init__(
        self,
        sampler: Sampler,
        class_ids: Annotated[list[int], MinLen(1)] | None,
        images_per_class: Annotated[int, Ge(1)],
        seed: int,
        folder: str,
    ):
        self.sampler = sampler
        self.class_ids = class_ids
        self.images_per_class = images_per_class
        self.seed = seed
        self.folder = Path(folder)
        self.pictures: list[Path] = []  # the newest

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        limit = pl_module.net.num_classes - 1
        if not all(0 <= class_id <= limit for class_id in self.class_ids or []):
            expected = f"ids from 0 to {limit}" if limit >= 0 else "null, for the network has no classes"
            raise InputError(f"callbacks.sample_grid.class_ids={self.class_ids}: expected {expected}.")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MaskedTokenModule)
        net, tokenizer = pl_module.averaged_net, trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        sampler = copy(self.sampler)
        sampler.compile = False  # for a batch of its own, while other ranks wait
        class_ids = list(range(min(max(net.num_classes, 1), 10))) if self.class_ids is None else list(self.class_ids)
        all_names = [*trainer.datamodule.class_names, UNCONDITIONAL]  # type: ignore[attr-defined]
        names = [all_names[class_id] for class_id in class_ids]
        with trainer.precision_plugin.forward_context():
            images, steps = sample_classes(net, sampler, tokenizer, class_ids, self.images_per_class, self.seed)
        name = f"step_{trainer.global_step:07d}"
        grid, reveal = self.folder / f"{name}.png", self.folder / f"{name}_reveal.png"
        self.pictures = save_pictures(images, steps, net, names, grid, reveal)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                for title, path in zip(("samples", "reveal"), self.pictures, strict=True):
                    logger.log_image(title, [str(path)])  # each by itself: W&B warns of a list of unlike sizes
