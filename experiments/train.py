"""task=train: trains a network, watches the training, and scores the averaged network."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from callbacks.generation_metrics import GenerationMetrics
from callbacks.sample_grid import SampleGrid
from enat.checkpoints.names import split_blocks
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.files import refuse_other_work
from enat.generation import GeneratedImages
from enat.images import Images
from enat.metrics.evaluation import Evaluation, Scores
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.processes import Processes
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmarking.workload import sampling_cost
from experiments.reporting.scores import notes_on, print_scores
from experiments.runtime.launch import (
    cluster_plugins,
    devices_of_launcher,
    refuse_in_multirun,
    sets_find_unused_parameters,
)
from experiments.runtime.provenance import commit, hardware, sampler_settings
from experiments.runtime.scoring import score

FIXED = ("seed", "module", "data", "tokenizer")  # options that may not change when a run goes on
SPEED = ("compile", "attention")  # but for these of them, which change how fast a network computes, and not what


def fixed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that must be the same when a run goes on."""
    return {name: without_speed(settings.get(name)) for name in FIXED}


def without_speed(options: Any) -> Any:
    """Returns options without those that only change how fast a network computes."""
    if not isinstance(options, Mapping):
        return options
    return {name: without_speed(value) for name, value in options.items() if name not in SPEED}


def resume_point(
    folder: Path, settings: Mapping[str, Any], module: MaskedTokenModule
) -> tuple[Path, dict[str, Any]] | None:
    """Finds the newest readable checkpoint in a folder; returns its path and facts of its run, or None for a new run.

    Raises:
        InputError: if no checkpoint can be read, or the run had other settings or another network.
    """
    files = {path.stat().st_ino: path for path in sorted(folder.glob("*.ckpt"), reverse=True)}  # links count once
    for path in sorted(files.values(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            content = read_file(path)
        except InputError as error:
            rank_zero_only(print)(f"{error} Taking the checkpoint before it.")
            continue
        earlier = fixed_settings(content.get("settings", {}))
        refuse_other_work(folder.parent, earlier, fixed_settings(settings), "another run")
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        weights = split_blocks(content["state_dict"], module.net.encoder_depth)
        if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
            raise InputError(f"{path}: its weights do not fit this network; the code has changed since.")
        return path, {name: content.get(name) for name in ("global_step", "world_size", "settings")}
    if files:
        raise InputError(f"output={folder.parent}: none of its checkpoints can be read; resume=false starts anew.")
    return None


def finished_results(folder: Path, composition: Mapping[str, Any], step: int) -> dict[str, Any] | None:
    """Returns the results of a run that has done all its steps and has these scores already; None for other runs."""
    path = folder / "results.json"
    if not path.exists() or step < composition["trainer"]["max_steps"]:
        return None
    earlier = yaml.safe_load((folder / "config.yaml").read_text())
    if any(earlier.get(name) != composition[name] for name in ("metrics", "sampler", "scores", "protocols")):
        return None  # it is scored again, in another way
    rank_zero_only(print)(
        f"{folder} is finished: {step} steps. trainer.max_steps=N trains on; resume=false starts anew."
    )
    return dict(json.loads(path.read_text()))


@rank_zero_only
def announce(path: Path, content: Mapping[str, Any], world_size: int) -> None:
    """Prints from where a run goes on, and whether it gives the same bits as an uninterrupted run."""
    print(f"Going on from {path}, step {content['global_step']}; resume=false starts anew.")
    before = content["world_size"]
    if before not in (None, world_size):
        if content["settings"]["module"]["mask_groups"] is None:
            masks = "but masks and dropout are drawn by process (module.mask_groups=null), so the results will differ."
        else:
            masks = "and so do the masks; only the order of sums differs, so results may differ in the last bits."
        print(f"Note: {world_size} processes instead of {before}: the data go on in the same order, {masks}")


def build_trainer(
    trainer: partial[L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
) -> L.Trainer:
    """Builds a Trainer with the callbacks and loggers that are not None.

    Raises:
        InputError: for settings that do not fit together.
    """
    chosen = [callback for callback in callbacks.values() if callback is not None]
    loggers = [log for log in logger.values() if log is not None]
    monitors = [callback.monitor for callback in chosen if isinstance(callback, Checkpoints)]
    scorers = [callback for callback in chosen if isinstance(callback, GenerationMetrics) and callback.evaluation]
    if "val/fid" in monitors and not scorers:
        raise InputError(
            "callbacks.checkpoint.monitor=val/fid: there is no callbacks.generation_metrics to compute it; "
            "expected another value, such as auto."
        )
    try:
        plugins: list[Any] = [AtomicCheckpointIO(), *cluster_plugins()]
        built = trainer(callbacks=chosen, logger=loggers or False, plugins=plugins, **devices_of_launcher(trainer))
    except (ValueError, TypeError) as error:
        raise InputError(f"trainer: {error}.") from error
    if isinstance(built.strategy, DDPStrategy) and not sets_find_unused_parameters(built.strategy):
        raise InputError(f"trainer.devices={built.num_devices}: expected trainer=ddp for several devices.")
    if built.world_size > 1:
        refuse_in_multirun(built.strategy, built.num_devices)
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
    held_out: Images | None,
) -> dict[str, Scores]:
    """Scores networks, and real images that were not trained on, on all ranks of a Trainer."""
    device, processes = fitter.strategy.root_device, Processes()
    context = fitter.precision_plugin.forward_context
    sizes = (evaluation.num_images, evaluation.seed, evaluation.block_size, evaluation.batch_size)
    sets: dict[str, Images] = {
        name: GeneratedImages(net.to(device).eval(), sampler, tokenizer, *sizes, context) for name, net in nets.items()
    }
    if held_out is not None:
        sets["real, held out"] = held_out
    results = {
        name: score(evaluation, images, f"scoring {name}", device, processes)[0] for name, images in sets.items()
    }
    rows = {name: result.scores for name, result in results.items()}
    if fitter.is_global_zero:
        width = evaluation.features.widths["pool"]
        notes = [note for result in results.values() for note in notes_on(result, width)]
        print_scores(rows, notes, [reason for result in results.values() for reason in result.skipped])
    return rows


def finish_logs(loggers: Sequence[Logger], scores: Mapping[str, float], step: int) -> None:
    """Logs the scores after training, and closes the loggers."""
    for log in loggers:
        log.log_metrics({f"final/{name}": value for name, value in scores.items()}, step)
        log.finalize("success")
        if isinstance(log, WandbLogger):
            log.experiment.finish()


def record_settings(
    fitter: L.Trainer, settings: Mapping[str, Any], composition: Mapping[str, Any], folder: Path
) -> None:
    """Gives the settings to the checkpoints and the loggers, and writes the configuration into the run's folder."""
    if isinstance(fitter.checkpoint_callback, Checkpoints):
        fitter.checkpoint_callback.settings = dict(settings)
    if fitter.is_global_zero:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(composition), sort_keys=False))
    for log in fitter.loggers:
        log.log_hyperparams({**settings, "commit": commit()})


def train(
    module: MaskedTokenModule,
    data: L.LightningDataModule,
    tokenizer: Tokenizer,
    trainer: partial[L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    sampler: Sampler,
    evaluation: Evaluation | None,
    held_out: Images | None,
    untrained: bool,
    resume: bool,
    output: str,
    settings: Mapping[str, Any],
    composition: Mapping[str, Any],
) -> dict[str, Any]:
    """Trains a network, then scores the averaged network and, for comparison, what `untrained` and `held_out` ask for.

    Args:
        trainer: makes the Trainer from callbacks and loggers.
        callbacks, logger: by name; None leaves one out.
        tokenizer, sampler, evaluation: for the scores after training; there are none without an evaluation.
        held_out: real images that were not trained on, scored like generated ones.
        untrained: whether the network before training is scored too.
        resume: whether a run that is in `output` already goes on.
        output: the run's folder.
        settings: the whole configuration, for the checkpoints and the loggers.
        composition: the same with its references, such as `${seed}`, for the folder.

    Returns:
        The scores of the averaged network and of what it is compared with, the checkpoint and the pictures.
    """
    folder = Path(output)
    last = folder / "checkpoints" / "last.ckpt"
    tokenizer.check_sizes(module.net.codebook_size, module.net.num_tokens)
    start = resume_point(folder / "checkpoints", settings, module) if resume else None
    fitter = build_trainer(trainer, callbacks, logger)
    if start is not None and (finished := finished_results(folder, composition, start[1]["global_step"])):
        return finished
    record_settings(fitter, settings, composition, folder)
    untrained_nets = {"untrained network": deepcopy(module.net)} if untrained else {}
    if start is not None:
        announce(*start, fitter.world_size)
    fitter.fit(module, datamodule=data, ckpt_path=start and start[0], weights_only=True)
    if not isinstance(fitter.checkpoint_callback, Checkpoints):
        fitter.save_checkpoint(last)
    nets = {"this network": module.averaged_net, **untrained_nets}
    rows = score_all(fitter, nets, tokenizer, sampler, evaluation, held_out) if evaluation is not None else {}
    by_protocol = rows.pop("this network", {})
    scores = next(iter(by_protocol.values()), {})  # of the first protocol
    finish_logs(fitter.loggers, scores, fitter.global_step)
    grids = (callback for callback in callbacks.values() if isinstance(callback, SampleGrid))
    pictures = [str(path) for grid in grids for path in grid.pictures]
    rank_zero_only(print)(f"Checkpoint: {last}\nPictures: {', '.join(pictures) or 'none new'}")
    facts = {"steps": fitter.global_step, "checkpoint": str(last), "pictures": pictures}
    facts |= {"sampler": sampler_settings(settings), **hardware(fitter.strategy.root_device, fitter.world_size)}
    batch_size = evaluation.block_size if evaluation else 1
    cost = sampling_cost(module.averaged_net.eval(), sampler, batch_size, fitter.precision_plugin.forward_context)
    return {**scores, "scores": by_protocol, "compared_with": rows, "cost": cost, **facts}
