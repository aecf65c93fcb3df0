"""task=train: train, watch, evaluate."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from enat.errors import InputError
from enat.metrics.evaluation import Evaluation
from enat.module import MaskedTokenModule
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from experiments.evaluate import print_scores, score

SETTLED = ("seed", "module", "data", "tokenizer")  # options that a run can't change when it goes on


def resume_point(output: Path, config: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a run in this folder goes on from; None for a new run.

    Raises:
        InputError: if the folder holds a run with other settings.
    """
    checkpoint, record = output / "checkpoints" / "last.ckpt", output / "config.yaml"
    if not checkpoint.exists():
        return None
    earlier = yaml.safe_load(record.read_text()) if record.exists() else {}
    changed = [name for name in SETTLED if earlier.get(name) != config[name]]
    if changed:
        raise InputError(
            f"output={output}: the folder holds a run with other settings of {', '.join(changed)}; "
            "expected the same settings, another output=DIR, or resume=false for a new folder."
        )
    return checkpoint


def score_real(
    held_out: Mapping[str, torch.Tensor], evaluation: Evaluation, device: torch.device, rank: int, world_size: int
) -> dict[str, float]:
    """Scores real images and their classes, shared by the ranks, like generated ones."""
    images, class_ids = (held_out[name][rank::world_size].to(device) for name in ("images", "class_ids"))
    batches = DataLoader(TensorDataset(images, class_ids), batch_size=evaluation.block_size)
    return evaluation.score_images(batches, device, rank, world_size)


def train(
    module: MaskedTokenModule,
    data: L.LightningDataModule,
    tokenizer: Tokenizer,
    trainer: Callable[..., L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    sampler: Sampler,
    evaluation: Evaluation | None,
    held_out: Mapping[str, torch.Tensor] | None,
    resume: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains, and scores the averaged network beside two yardsticks.

    Args:
        trainer: makes the Trainer from callbacks and loggers.
        callbacks, logger: by name; None leaves one out.
        tokenizer, sampler, evaluation: of the scores after training.
        held_out: `images` and `class_ids` of real images that were not trained on, scored like generated ones.
        resume: whether a run that is in `output` already goes on.
        output: the run's folder.
        settings: the whole configuration, for the loggers and the folder.

    Returns:
        The scores of the averaged network, those of the yardsticks, the checkpoint and the pictures.
    """
    folder = Path(output)
    checkpoint = resume_point(folder, settings) if resume else None
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    untrained = deepcopy(module.net)
    fitter = trainer(
        callbacks=[callback for callback in callbacks.values() if callback is not None],
        logger=[log for log in logger.values() if log is not None] or False,
    )
    for log in fitter.loggers:
        log.log_hyperparams(dict(settings))
    if checkpoint is not None:
        rank_zero_only(print)(f"Going on from {checkpoint}; resume=false starts anew.")
    fitter.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    last = folder / "checkpoints" / "last.ckpt"
    fitter.save_checkpoint(last)
    rows: dict[str, dict[str, float]] = {}
    if evaluation is not None:
        scorer = partial(
            score,
            sampler=sampler,
            tokenizer=tokenizer,
            evaluation=evaluation,
            rank=fitter.global_rank,
            world_size=fitter.world_size,
        )
        device = module.averaged_net.head_bias.device
        rows["this network"] = scorer(module.averaged_net, title="scoring")
        rows["untrained network"] = scorer(untrained.to(device), title="scoring an untrained one")
        if held_out is not None:
            rows["real, held out"] = score_real(held_out, evaluation, device, fitter.global_rank, fitter.world_size)
    pictures = sorted(str(path) for path in folder.glob("samples/*.png"))[-2:]
    if fitter.is_global_zero:
        if rows:
            print_scores(rows)
        print(f"Checkpoint: {last}\nPictures: {', '.join(pictures)}")
    for log in fitter.loggers:
        log.log_metrics(
            {f"final/{name}": value for name, value in rows.get("this network", {}).items()}, fitter.global_step
        )
        log.finalize("success")
        if isinstance(log, WandbLogger):
            log.experiment.finish()
    return {
        **rows.pop("this network", {}),
        "yardsticks": rows,
        "steps": fitter.global_step,
        "checkpoint": str(last),
        "pictures": pictures,
    }
