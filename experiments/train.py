"""task=train: train, watch, evaluate."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from callbacks.generation_metrics import GenerationMetrics
from callbacks.sample_grid import SampleGrid
from enat.checkpoints.names import split_blocks
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.metrics.evaluation import Evaluation, Scores
from enat.metrics.images import Images, TensorImages
from enat.metrics.processes import Processes
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmarking.workload import sampling_cost
from experiments.evaluate import print_scores, score
from experiments.runtime.launch import check_multirun
from experiments.runtime.provenance import commit

SETTLED = ("seed", "module", "data", "tokenizer")  # options that a run can't change when it goes on


def without_speed(options: Any) -> Any:
    """Options without those that change how fast a network computes, not what: a run may go on with others."""
    if not isinstance(options, Mapping):
        return options
    return {name: without_speed(value) for name, value in options.items() if name not in ("compile", "attention")}


def resume_point(
    folder: Path, config: Mapping[str, Any], module: MaskedTokenModule
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in a folder that can be read, and what it says of its run; None for a new run.

    Raises:
        InputError: if no checkpoint can be read, or it is of a run with other settings or another network.
    """
    found = {path.stat().st_ino: path for path in sorted(folder.glob("*.ckpt"), reverse=True)}  # links count once
    for path in sorted(found.values(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            content = read_file(path)
        except InputError as error:
            rank_zero_only(print)(f"{error} Taking the one before.")
            continue
        earlier = content.get("settings", {})
        changed = [name for name in SETTLED if without_speed(earlier.get(name)) != without_speed(config[name])]
        if changed:
            raise InputError(
                f"output={folder.parent}: the folder holds a run with other settings of {', '.join(changed)}; "
                "expected the same settings, another output=DIR, or resume=false for a new folder."
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        weights = split_blocks(content["state_dict"], module.net.encoder_depth)
        if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
            raise InputError(f"{path}: its weights are not those of this network; the code has changed since.")
        return path, {name: content.get(name) for name in ("global_step", "world_size", "settings")}
    if found:
        raise InputError(f"output={folder.parent}: none of its checkpoints can be read; resume=false starts anew.")
    return None


@rank_zero_only
def announce(path: Path, content: Mapping[str, Any], world_size: int) -> None:
    """Says from where a run goes on, and whether it is bit for bit the run that would have been."""
    print(f"Going on from {path}, step {content['global_step']}; resume=false starts anew.")
    before = content["world_size"]
    if before not in (None, world_size):
        if content["settings"]["module"]["mask_groups"] is None:
            masks = "masks and dropout are drawn by process (module.mask_groups=null), so that this is another run now."
        else:
            masks = "and so do the masks; only sums are in another order, and not the same to the last bit."
        print(f"Note: {world_size} processes instead of {before}: the data go on in the same order, {masks}")


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
    monitors = [callback.monitor for callback in chosen if isinstance(callback, Checkpoints)]
    if "val/fid" in monitors and not any(isinstance(callback, GenerationMetrics) for callback in chosen):
        raise InputError(
            "callbacks.checkpoint.monitor=val/fid: there is no callbacks.generation_metrics to compute it; "
            "expected val/loss, say."
        )
    try:
        plugins: list[Any] = [AtomicCheckpointIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():  # torchrun runs inside of SLURM, too
            plugins.append(SLURMEnvironment(auto_requeue=False))  # `LeaveOnSignal` does it
        built = trainer(callbacks=chosen, logger=loggers or False, plugins=plugins)
    except (ValueError, TypeError) as error:
        raise InputError(f"trainer: {error}.") from error
    if isinstance(built.strategy, DDPStrategy) and "find_unused_parameters" not in built.strategy._ddp_kwargs:
        raise InputError(f"trainer.devices={built.num_devices}: expected trainer=ddp for several devices.")
    if built.world_size > 1:
        check_multirun(built.strategy, built.num_devices)
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


def finish_logs(loggers: Sequence[Logger], scores: Mapping[str, float], step: int) -> None:
    """Logs the scores after training, and ends the runs of the loggers."""
    for log in loggers:
        log.log_metrics({f"final/{name}": value for name, value in scores.items()}, step)
        log.finalize("success")
        if isinstance(log, WandbLogger):
            log.experiment.finish()


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
    untrained: bool,
    resume: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains, and scores the averaged network beside the yardsticks that are asked for.

    Args:
        trainer: makes the Trainer from callbacks and loggers.
        callbacks, logger: by name; None leaves one out.
        tokenizer, sampler, evaluation: of the scores after training; without an evaluation there are none.
        held_out: real images that were not trained on, scored like generated ones.
        untrained: whether the network before training is scored too.
        resume: whether a run that is in `output` already goes on.
        output: the run's folder.
        settings: the whole configuration, for the loggers and the folder.

    Returns:
        The scores of the averaged network, those of the yardsticks, the checkpoint and the pictures.
    """
    folder, last = Path(output), Path(output) / "checkpoints" / "last.ckpt"
    tokenizer.check_sizes(module.net.codebook_size, module.net.num_tokens)
    found = resume_point(folder / "checkpoints", settings, module) if resume else None
    fitter = build_trainer(trainer, callbacks, logger)
    checkpoints = fitter.checkpoint_callback
    if isinstance(checkpoints, Checkpoints):
        checkpoints.settings = dict(settings)
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings), sort_keys=False))
    yardstick = {"untrained network": deepcopy(module.net)} if untrained else {}
    for log in fitter.loggers:
        log.log_hyperparams({**settings, "commit": commit()})
    if found is not None:
        announce(*found, fitter.world_size)
    fitter.fit(module, datamodule=data, ckpt_path=found and found[0], weights_only=True)
    if not isinstance(checkpoints, Checkpoints):
        fitter.save_checkpoint(last)
    nets = {"this network": module.averaged_net, **yardstick}
    rows = score_all(fitter, nets, tokenizer, sampler, evaluation, held_out) if evaluation is not None else {}
    by_protocol = rows.pop("this network", {})
    scores = next(iter(by_protocol.values()), {})  # of the first protocol
    finish_logs(fitter.loggers, scores, fitter.global_step)
    grids = (callback for callback in callbacks.values() if isinstance(callback, SampleGrid))
    pictures = [str(path) for grid in grids for path in grid.pictures]
    rank_zero_only(print)(f"Checkpoint: {last}\nPictures: {', '.join(pictures) or 'none new'}")
    facts = {"steps": fitter.global_step, "checkpoint": str(last), "pictures": pictures}
    block, context = evaluation.block_size if evaluation else 1, fitter.precision_plugin.forward_context
    cost = sampling_cost(module.averaged_net.eval(), sampler, block, context)
    return {**scores, "scores": by_protocol, "yardsticks": rows, "cost": cost, **facts}
