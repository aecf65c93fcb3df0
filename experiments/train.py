"""task=train: train, watch, evaluate."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from callbacks.generation_metrics import GenerationMetrics
from callbacks.sample_grid import SampleGrid
from enat.errors import InputError
from enat.metrics.evaluation import Evaluation, Scores
from enat.metrics.images import Images, TensorImages
from enat.metrics.processes import Processes
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from enat.weights import read_file
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
    read_file(checkpoint)  # or it would break in the midst of the start
    return checkpoint


def build_trainer(
    trainer: Callable[..., L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
) -> L.Trainer:
    """A Trainer with those callbacks and loggers that are not None.

    Raises:
        InputError: for settings that do not go together.
    """
    chosen = [callback for callback in callbacks.values() if callback is not None]
    loggers = [log for log in logger.values() if log is not None]
    if not loggers:
        chosen = [callback for callback in chosen if not isinstance(callback, LearningRateMonitor)]
    monitors = [callback.monitor for callback in chosen if isinstance(callback, ModelCheckpoint)]
    if "val/fid" in monitors and not any(isinstance(callback, GenerationMetrics) for callback in chosen):
        raise InputError(
            "callbacks.checkpoint.monitor=val/fid: there is no callbacks.generation_metrics to compute it; "
            "expected val/loss, say."
        )
    try:
        built = trainer(callbacks=chosen, logger=loggers or False)
    except (ValueError, TypeError) as error:
        raise InputError(f"trainer: {error}.") from error
    if isinstance(built.strategy, DDPStrategy) and "find_unused_parameters" not in built.strategy._ddp_kwargs:
        raise InputError(f"trainer.devices={built.num_devices}: expected trainer=ddp for several devices.")
    if isinstance(built.val_check_interval, int) and built.val_check_interval % built.accumulate_grad_batches:
        raise InputError(
            f"trainer.val_check_interval={built.val_check_interval}: expected a multiple of "
            f"trainer.accumulate_grad_batches={built.accumulate_grad_batches}, so that no checkpoint cuts a step."
        )
    return built


def score_all(
    fitter: L.Trainer,
    nets: Mapping[str, ENAT],
    tokenizer: Tokenizer,
    sampler: Sampler,
    evaluation: Evaluation,
    held_out: TensorImages | None,
) -> dict[str, Scores]:
    """Scores networks, and real images that were not trained on, on all ranks of a Trainer."""
    device, processes = fitter.strategy.root_device, Processes()
    context = fitter.precision_plugin.forward_context
    sets: dict[str, Images] = {
        name: evaluation.generated(net.to(device).eval(), sampler, tokenizer, context=context)
        for name, net in nets.items()
    }
    if held_out is not None:
        sets["real, held out"] = held_out
    results = {name: score(evaluation, images, f"scoring {name}", device, processes) for name, images in sets.items()}
    rows = {name: result.scores for name, result in results.items()}
    if fitter.is_global_zero:
        notes = [note for scores in rows.values() for note in evaluation.notes(scores)]
        print_scores(rows, notes, [reason for result in results.values() for reason in result.skipped])
    return rows


def train(
    module: MaskedTokenModule,
    data: L.LightningDataModule,
    tokenizer: Tokenizer,
    trainer: Callable[..., L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    sampler: Sampler,
    evaluation: Evaluation | None,
    held_out: TensorImages | None,
    resume: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains, and scores the averaged network beside two yardsticks.

    Args:
        trainer: makes the Trainer from callbacks and loggers.
        callbacks, logger: by name; None leaves one out.
        tokenizer, sampler, evaluation: of the scores after training; without an evaluation there are none.
        held_out: real images that were not trained on, scored like generated ones.
        resume: whether a run that is in `output` already goes on.
        output: the run's folder.
        settings: the whole configuration, for the loggers and the folder.

    Returns:
        The scores of the averaged network, those of the yardsticks, the checkpoint and the pictures.
    """
    folder = Path(output)
    tokenizer.check_sizes(module.net.codebook_size, module.net.num_tokens)
    checkpoint = resume_point(folder, settings) if resume else None
    fitter = build_trainer(trainer, callbacks, logger)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    untrained = deepcopy(module.net)
    for log in fitter.loggers:
        log.log_hyperparams(dict(settings))
    if checkpoint is not None:
        rank_zero_only(print)(f"Going on from {checkpoint}; resume=false starts anew.")
    fitter.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    last = folder / "checkpoints" / "last.ckpt"
    fitter.save_checkpoint(last)
    nets = {"this network": module.averaged_net, "untrained network": untrained}
    rows = score_all(fitter, nets, tokenizer, sampler, evaluation, held_out) if evaluation is not None else {}
    by_protocol = rows.pop("this network", {})
    scores = next(iter(by_protocol.values()), {})  # of the first protocol
    for log in fitter.loggers:
        log.log_metrics({f"final/{name}": value for name, value in scores.items()}, fitter.global_step)
        log.finalize("success")
        if isinstance(log, WandbLogger):
            log.experiment.finish()
    grids = [callback for callback in callbacks.values() if isinstance(callback, SampleGrid)]
    pictures = [str(path) for grid in grids for path in grid.pictures]
    rank_zero_only(print)(f"Checkpoint: {last}\nPictures: {', '.join(pictures) or 'none new'}")
    paths = {"checkpoint": str(last), "pictures": pictures}
    return {**scores, "scores": by_protocol, "yardsticks": rows, "steps": fitter.global_step, **paths}
