"""task=train: trains a network, watches the training, and scores the averaged network."""

from collections.abc import Collection, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from callbacks.generation_metrics import GenerationMetrics
from callbacks.sample_grid import SampleGrid
from data.module import TokenDataModule
from data.scored_images import ClassFolderImages
from enat.checkpoints.warm_start import warm_start
from enat.errors import InputError, printable
from enat.files import weights_file
from enat.generation import GeneratedImages
from enat.images import Images
from enat.metrics.evaluation import Evaluation, Scores
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.processes import Processes
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.unicode import composed
from experiments.benchmarking.workload import sampling_cost
from experiments.reporting.scores import notes_on, print_scores
from experiments.runtime.provenance import hardware, sampler_settings
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


def score_all(
    fitter: L.Trainer,
    nets: Mapping[str, ENAT],
    tokenizer: Tokenizer,
    sampler: Sampler,
    evaluation: Evaluation,
    held_out: Images | None,
) -> dict[str, Scores]:
    """Scores networks, and real images that were not trained on, on all ranks of a Trainer.

    What the first network is compared with has no row if it can't be scored, such as too few held-out images; a note
    says so.
    """
    device, processes = fitter.strategy.root_device, Processes()
    context = fitter.precision_plugin.forward_context
    sizes = (evaluation.num_images, evaluation.seed, evaluation.block_size, evaluation.batch_size)
    options = (*sizes, evaluation.class_counts, context)
    sets: dict[str, Images] = {
        name: GeneratedImages(net.to(device).eval(), sampler, tokenizer, *options) for name, net in nets.items()
    }
    if held_out is not None:
        sets["real, held out"] = held_out
    results = {}
    left_out = []
    for name, images in sets.items():
        try:
            results[name], _ = score(evaluation, images, f"scoring {name}", device, processes)
        except InputError as error:
            if not results:
                raise
            left_out.append(f"No scores of {name}: {error}")
    rows = {name: result.scores for name, result in results.items()}
    if fitter.is_global_zero:
        width = evaluation.features.widths["pool"]
        notes = [*(note for result in results.values() for note in notes_on(result, width)), *left_out]
        print_scores(rows, notes, [reason for result in results.values() for reason in result.skipped])
    return rows


@rank_zero_only
def print_start(started_from: Mapping[str, Any], data: TokenDataModule) -> None:
    """Prints which weights a new run starts from, and what is changed of them."""
    print(printable(f"Training starts from {started_from['weights']} ({started_from['kind']} weights)."))
    for change in [*started_from["changes"], *started_from["notes"]]:
        print(printable(change))
    before, now = started_from["class_names"], data.known_class_names()
    if not before or not now or len(before) != len(now):
        return
    changes = [f"{old} becomes {new}" for old, new in zip(before, now, strict=True) if composed(old) != composed(new)]
    if changes:
        print(printable(f"The embedding of classes is kept, though the classes have other names: {changes[0]}."))


def find_start(
    module: MaskedTokenModule,
    data: TokenDataModule,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    folder: Path,
    weights: str | None,
    resume: bool,
    changed_on_resume: Collection[str],
) -> tuple[tuple[Path, dict[str, Any]] | None, dict[str, Any]]:
    """Finds the checkpoint that a run goes on from, or gives the network the weights that a new run starts from.

    Returns:
        What `resume_point` returns, and what is known of the weights that the run started from, if it did from any.
    """
    start = resume_point(folder / "checkpoints", settings, module, data, changed_on_resume, resume)
    if start is not None:
        return start, refuse_other_start(folder, weights, start[1]["settings"])
    return None, {} if weights is None else warm_start(module.net, weights, tokenizer)


def untrained_net(
    net: ENAT, weights: str | None, tokenizer: Tokenizer, earlier: Mapping[str, Any] | None
) -> dict[str, ENAT]:
    """Returns the network as it was before training, by its name in the scores; nothing if its weights are gone.

    Args:
        net: as a new run starts with it or, in a run that goes on, as it was initialised.
        weights, tokenizer: see `warm_start`.
        earlier: what is known of the weights that a run that goes on has started from; None for a new run.
    """
    copy = deepcopy(net)
    if earlier:
        if weights is None or not weights_file(weights).is_file():
            rank_zero_only(print)(
                printable(
                    f"Note: the untrained network is not scored (metrics.untrained), for the run started from "
                    f"{earlier['weights']}, and weights=FILE names no such file now."
                )
            )
            return {}
        warm_start(copy, weights, tokenizer)
    return {"untrained network": copy}


def check_references(
    evaluation: Evaluation | None,
    callbacks: Mapping[str, L.Callback | None],
    tokenizer: Tokenizer,
    net: ENAT,
    data: TokenDataModule,
) -> None:
    """Raises InputError if what images are compared with has another size, other classes, or another split."""
    while_training = [part.evaluation for part in callbacks.values() if isinstance(part, GenerationMetrics)]
    for one in (evaluation, *while_training):
        if one is not None:
            one.check_reference(tokenizer.resolution)
            one.check_classes(net.num_classes, data.known_class_names())
            refuse_other_split(data, one.reference)


def refuse_other_split(data: TokenDataModule, reference: Any) -> None:
    """Refuses real images that are split into training and held-out ones in another way than the shards.

    Raises:
        InputError: if the network trains on other images than those that its samples are compared with.
    """
    if not isinstance(reference, ClassFolderImages) or reference.part != "train":
        return
    numbers = {split: data.numbers(split) for split in ("train", "held_out")}
    if numbers["train"] is None or numbers["held_out"] is None:
        return
    others = np.setdiff1d(numbers["train"], reference.numbers)
    if len(others) or len(np.intersect1d(numbers["held_out"], reference.numbers)):
        raise InputError(
            "metrics.images: their split into training and held-out images is not that of data.shards; expected the "
            "images as they were tokenised, metrics.held_out_share as held_out of task=tokenize, and "
            "metrics.split_seed as its seed."
        )


def facts_of(
    fitter: L.Trainer, module: MaskedTokenModule, sampler: Sampler, evaluation: Evaluation | None, folder: Path
) -> dict[str, Any]:
    """Says what a run has done and left in its folder, and what sampling from its network costs; prints the paths."""
    last = folder / "checkpoints" / "last.ckpt"
    grids = (callback for callback in fitter.callbacks if isinstance(callback, SampleGrid))  # type: ignore[attr-defined]
    pictures = [str(path) for grid in grids for path in grid.pictures]
    rank_zero_only(print)(f"Checkpoint: {last}\nPictures: {', '.join(pictures) or 'none new'}")
    batch_size = evaluation.block_size if evaluation else 1
    context = fitter.precision_plugin.forward_context
    return {
        "cost": sampling_cost(module.averaged_net.eval(), sampler, batch_size, context),
        "steps": fitter.global_step,
        "checkpoint": str(last),
        "pictures": pictures,
        **hardware(fitter.strategy.root_device, fitter.world_size),
    }


def train(
    module: MaskedTokenModule,
    data: TokenDataModule,
    tokenizer: Tokenizer,
    trainer: partial[L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
    sampler: Sampler,
    evaluation: Evaluation | None,
    held_out: Images | None,
    untrained: bool,
    resume: bool,
    weights: str | None,
    changed_on_resume: list[Changeable],
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
        weights: a file whose weights training starts from; None starts from random ones.
        changed_on_resume: options of the optimiser that may differ from those in the checkpoint of a run that goes on.
        resume, output: whether a run that is in the folder `output` already goes on.
        settings: the whole configuration, for the checkpoints and the loggers.
        composition: the same with its references, such as `${seed}`, for the folder.

    Returns:
        The scores of the averaged network and of what it is compared with, the checkpoint and the pictures.
    """
    folder = Path(output)
    refuse_other_places(settings, folder)
    data.check_source()
    tokenizer.check_sizes(module.net.codebook_size, module.net.num_tokens)
    check_references(evaluation, callbacks, tokenizer, module.net, data)
    start, started_from = find_start(module, data, tokenizer, settings, folder, weights, resume, changed_on_resume)
    settings = {**settings, "started_from": started_from}
    fitter = build_trainer(trainer, with_own_callbacks(callbacks, module, settings, changed_on_resume), logger)
    identity = {} if evaluation is None else evaluation.identity()
    if start is not None and (done := finished_results(folder, composition, start[1]["global_step"], identity)):
        return done
    nets = untrained_net(module.net, weights, tokenizer, start and started_from) if untrained else {}
    if start is not None:
        announce(*start, fitter.world_size, settings)
    elif started_from:
        print_start(started_from, data)
    with recorded(fitter, settings, composition, folder), trained(fitter, module, data, start and start[0], folder):
        nets = {"this network": module.averaged_net, **nets}
        rows = score_all(fitter, nets, tokenizer, sampler, evaluation, held_out) if evaluation is not None else {}
        by_protocol = rows.pop("this network", {})
        scores = next(iter(by_protocol.values()), {})  # of the first protocol
        finish_logs(fitter.loggers, scores, fitter.global_step)
        facts = facts_of(fitter, module, sampler, evaluation, folder)
    origin = {"sampler": sampler_settings(settings), "started_from": started_from or None, "evaluation": identity}
    return {**scores, "scores": by_protocol, "compared_with": rows, **facts, **origin}
