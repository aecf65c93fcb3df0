"""task=train_tokenizer: trains a tokenizer on a folder of images, watches it, and measures its reconstructions."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.reconstructions import ReconstructedImages, ReconstructionGrid
from data.image_module import HeldOutImages, ImageDataModule
from enat.errors import counted
from enat.files import part_of, sha256_of, weights_file
from enat.images import blocks_of
from enat.metrics.evaluation import Evaluation, Scores
from enat.metrics.reconstruction import ReconstructionQuality
from enat.processes import Processes
from enat.tokenizers.base import Tokenizer
from enat.tokenizers.module import TokenizerModule
from experiments.reporting.scores import print_scores
from experiments.runtime.provenance import hardware
from experiments.runtime.resuming import Changeable, announce, finished_results, refuse_other_start, resume_point
from experiments.runtime.scoring import score
from experiments.runtime.training import (
    build_trainer,
    finish_logs,
    recorded,
    refuse_other_places,
    trained,
    with_own_callbacks,
)

BLOCK = 50  # images that are reconstructed at a time


def quality_of(tokenizer: Tokenizer, images: HeldOutImages, device: torch.device) -> dict[str, float]:
    """Returns PSNR, SSIM and the use of the codebook for all of some images."""
    quality = ReconstructionQuality(tokenizer.codebook_size).to(device)
    for block in images.read(blocks_of(images.num_images, BLOCK), device):
        quality.update(tokenizer, block.images)
    return {name: value for name, value in quality.compute().items() if name != "codes_used_of_possible"}


def score_reconstructions(fitter: L.Trainer, tokenizer: Tokenizer, images: HeldOutImages, by: Evaluation) -> Scores:
    """Scores the reconstructions of held-out images on all ranks of a Trainer, and prints the scores."""
    reconstructed = ReconstructedImages(images, tokenizer)
    result, _ = score(by, reconstructed, "scoring reconstructions", fitter.strategy.root_device, Processes())
    if fitter.is_global_zero:
        print_scores({"reconstructions": result.scores}, list(result.notes), result.skipped)
    return result.scores


def weights_at_start(
    start: tuple[Path, Mapping[str, Any]] | None, settings: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Returns what is known of the file that a tokenizer has started from; nothing if it started from random weights.

    Args:
        start: what `resume_point` returns.
        settings: the whole configuration.
        folder: of the run.

    Raises:
        InputError: if a run that goes on has started from other weights.
    """
    weights = part_of(settings, "tokenizer.weights")
    if start is not None and "started_from" in start[1]["settings"]:  # older versions do not say it
        return refuse_other_start(folder, weights, start[1]["settings"], "tokenizer.weights")
    return {} if weights is None else {"weights": weights, "sha256": sha256_of(weights_file(weights))}


def train_tokenizer(
    module: TokenizerModule,
    data: ImageDataModule,
    trainer: partial[L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    evaluation: Evaluation | None,
    resume: bool,
    changed_on_resume: list[Changeable],
    output: str,
    settings: Mapping[str, Any],
    composition: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains a tokenizer, then measures how well its average gives back images that it was not trained on.

    Args:
        module: the tokenizer with its loss; it starts from `tokenizer.weights` if they are given.
        data: the images.
        trainer, callbacks, logger, resume, changed_on_resume, output, settings, composition: see
            `experiments.train.train`.
        evaluation: scores reconstructions, such as by their FID; None for no such scores.

    Returns:
        PSNR, SSIM, the share of the codebook in use, its perplexity, the scores, the checkpoint and the pictures.
    """
    folder = Path(output)
    refuse_other_places(settings, folder)
    held_out = data.held_out_images  # first, for a folder that does not serve
    if evaluation is not None:
        evaluation.check_count(held_out.num_images, f"data.held_out={data.held_out}, data.at_most={data.at_most}")
    start = resume_point(folder / "checkpoints", settings, module, data, changed_on_resume, resume)
    settings = {**settings, "started_from": weights_at_start(start, settings, folder)}
    fitter = build_trainer(trainer, with_own_callbacks(callbacks, module, settings, changed_on_resume), logger)
    identity = {} if evaluation is None else evaluation.identity()
    if start is not None and (done := finished_results(folder, composition, start[1]["global_step"], identity)):
        return done
    if start is not None:
        announce(*start, fitter.world_size, settings)
    with recorded(fitter, settings, composition, folder), trained(fitter, module, data, start and start[0], folder):
        device = fitter.strategy.root_device
        tokenizer = module.averaged_net.to(device).eval()
        quality = quality_of(tokenizer, held_out, device)
        scores = {} if evaluation is None else score_reconstructions(fitter, tokenizer, held_out, evaluation)
        first = {f"reconstruction_{name}": value for name, value in next(iter(scores.values()), {}).items()}
        finish_logs(fitter.loggers, {**quality, **first}, fitter.global_step)
    last = folder / "checkpoints" / "last.ckpt"
    grids = (callback for callback in fitter.callbacks if isinstance(callback, ReconstructionGrid))  # type: ignore[attr-defined]
    pictures = [str(path) for grid in grids for path in grid.pictures]
    rank_zero_only(print)(
        f"{counted(held_out.num_images, 'held-out image')}: PSNR {quality['psnr']:.2f} dB, SSIM "
        f"{quality['ssim']:.3f}, {quality['codes_used']:.0%} of {tokenizer.codebook_size:,} codes in use, perplexity "
        f"{quality['perplexity']:.0f}.\nTokenizer: {last}\nPictures: {', '.join(pictures) or 'none new'}"
    )
    facts = {"steps": fitter.global_step, "checkpoint": str(last), "pictures": pictures, "evaluation": identity}
    return {**quality, "scores": scores, **facts, **hardware(device, fitter.world_size)}
