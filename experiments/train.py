"""task=train: train, watch, evaluate."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import Logger
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


def train(
    module: MaskedTokenModule,
    data: L.LightningDataModule,
    tokenizer: Tokenizer,
    trainer: Callable[..., L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    sampler: Sampler,
    evaluation: Evaluation,
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
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    untrained = deepcopy(module.net)
    fitter = trainer(
        callbacks=[callback for callback in callbacks.values() if callback is not None],
        logger=[log for log in logger.values() if log is not None] or False,
    )
    for log in fitter.loggers:
        log.log_hyperparams(dict(settings))
    fitter.fit(module, datamodule=data, ckpt_path=checkpoint)
    last = folder / "checkpoints" / "last.ckpt"
    fitter.save_checkpoint(last)
    if not fitter.is_global_zero:
        return {}

    device = module.averaged_net.head_bias.device
    rows = {"this network": score(module.averaged_net, sampler, tokenizer, evaluation, "scoring")}
    rows["untrained network"] = score(untrained.to(device), sampler, tokenizer, evaluation, "scoring an untrained one")
    if held_out is not None:
        real = TensorDataset(held_out["images"].to(device), held_out["class_ids"].to(device))
        rows["real, held out"] = evaluation.score_images(DataLoader(real, batch_size=evaluation.block_size), device)
    print_scores(rows)
    pictures = sorted(str(path) for path in folder.glob("samples/*.png"))[-2:]
    return {
        **rows["this network"],
        "num_images": evaluation.num_images,
        "yardsticks": {name: scores for name, scores in rows.items() if name != "this network"},
        "steps": fitter.global_step,
        "checkpoint": str(last),
        "pictures": pictures,
    }
