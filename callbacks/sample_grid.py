"""Pictures of samples: a grid by class, and the reveal step by step.

Shapes: `n` images, `L` tokens of an image, `T` steps.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from torch import Tensor

from enat.errors import InputError
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler

MASKED_COLOUR = (0.16, 0.22, 0.42)


def _show(axes: Any, image: Tensor) -> None:
    """Draws an image (channels, h, w) in [0, 1]; grey if it has one channel."""
    axes.imshow(image.permute(1, 2, 0).squeeze(2).cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(0.7 * columns + 0.6, 0.7 * rows + 0.5), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
    return figure, axes


def _label(axes: Any, class_ids: list[int]) -> None:
    for row, class_id in zip(axes, class_ids, strict=True):
        row[0].set_ylabel(str(class_id), rotation=0, ha="right", va="center", fontsize=11)


def save_grid(images: Tensor, class_ids: list[int], path: Path) -> Path:
    """Saves a grid with a row per class id; `images` (n, channels, h, w), a row's images next to each other."""
    columns = len(images) // len(class_ids)
    figure, axes = _panels(len(class_ids), columns)
    for ax, image in zip(axes.flat, images, strict=True):
        _show(ax, image)
    _label(axes, class_ids)
    return _save(figure, path)


def save_reveal(images: Tensor, steps: list[Tensor], mask_token_id: int, class_ids: list[int], path: Path) -> Path:
    """Saves a row per image, a column per step, with the tokens that are still masked covered.

    Revealed tokens never change, so that a step shows the final image where it is revealed.

    Args:
        images: the final images (n, channels, h, w).
        steps: the token ids (n, L) that each step started from.
        mask_token_id: the id that marks masked tokens.
        class_ids: of the images.
    """
    figure, axes = _panels(len(images), len(steps) + 1)
    side = round(steps[0].shape[1] ** 0.5)
    for column, tokens in enumerate([*steps, torch.zeros_like(steps[0])]):
        is_masked = (tokens == mask_token_id).view(len(images), 1, side, side)
        patches = (images.shape[2] // side, images.shape[3] // side)
        covered = is_masked.repeat_interleave(patches[0], 2).repeat_interleave(patches[1], 3)
        colour = images.new_tensor(MASKED_COLOUR).view(3, 1, 1)
        for ax, image in zip(axes[:, column], torch.where(covered, colour, images), strict=True):
            _show(ax, image)
        axes[0, column].set_title(f"{is_masked[0].sum()} masked" if column < len(steps) else "done", fontsize=7)
    _label(axes, class_ids)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


@torch.no_grad()
def sample_classes(
    net: ENAT, sampler: Sampler, tokenizer: Any, class_ids: list[int], images_per_class: int, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """Samples class by class, each with random numbers of its own: a class's images do not depend on the others.

    Returns:
        Images (classes * images_per_class, channels, h, w), and, for the first image of each class, the token
        ids (classes, L) that each of the T steps started from.
    """
    device = net.head_bias.device
    tokenizer.to(device)
    images, first = [], []
    for class_id in class_ids:
        class_seed = int(np.random.default_rng([seed, class_id]).integers(2**63))
        steps: list[Tensor] = []
        labels = torch.full((images_per_class,), class_id, device=device)
        token_ids = sampler(net, labels, torch.Generator(device).manual_seed(class_seed), steps)
        images.append(tokenizer.decode(token_ids).float())
        first.append(torch.stack([ids[0] for ids in steps]))  # (T, L)
    return torch.cat(images), list(torch.stack(first, dim=1))


def save_pictures(
    images: Tensor, steps: list[Tensor], net: ENAT, class_ids: list[int], grid: Path, reveal: Path
) -> list[Path]:
    """Saves both pictures of what `sample_classes` made; returns their paths."""
    every = len(images) // len(class_ids)
    return [
        save_grid(images, class_ids, grid),
        save_reveal(images[::every], steps, net.mask_token_id, class_ids, reveal),
    ]


class SampleGrid(L.Callback):
    """At each validation, draws samples of the averaged network: a grid, and the reveal of one image per class.

    The noise is the same each time, so that the pictures of a run show one set of images improving.

    Args:
        sampler: makes the token ids; the data module's tokenizer makes images of them.
        class_ids: the rows of the grid.
        images_per_class: its columns.
        seed: of the noise.
        folder: where the PNG files go.
    """

    def __init__(self, sampler: Sampler, class_ids: list[int], images_per_class: int, seed: int, folder: str):
        if images_per_class < 1 or not class_ids:
            raise InputError(
                f"callbacks.sample_grid: class_ids={class_ids}, images_per_class={images_per_class}: "
                "expected at least one of each."
            )
        self.sampler, self.class_ids, self.images_per_class = sampler, list(class_ids), images_per_class
        self.seed, self.folder = seed, Path(folder)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, MaskedTokenModule)
        net, tokenizer = pl_module.averaged_net, trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        with trainer.precision_plugin.forward_context():
            images, steps = sample_classes(
                net, self.sampler, tokenizer, self.class_ids, self.images_per_class, self.seed
            )
        name = f"step_{trainer.global_step:07d}"
        grid, reveal = self.folder / f"{name}.png", self.folder / f"{name}_reveal.png"
        pictures = save_pictures(images, steps, net, self.class_ids, grid, reveal)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [str(path) for path in pictures], caption=["samples", "reveal"])
