"""task=evaluate: generate images with a checkpoint and score them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge

from data.scored_images import ImageWriter
from enat.errors import InputError
from enat.metrics.evaluation import Evaluation, Result
from enat.sampler import Sampler
from experiments.benchmarking.workload import sampling_cost
from experiments.reporting.scores import notes_on, over_seeds, print_scores
from experiments.runtime.checkpoint import Checkpoint
from experiments.runtime.provenance import hardware, sampler_settings
from experiments.runtime.scoring import Unfinished, score


def uneven_classes(num_images: int, num_classes: int) -> list[str]:
    """Returns a note where some classes have one image more than others."""
    rest = num_images % max(num_classes, 1)
    note = (
        f"{num_images} images of {num_classes} classes: the first {rest} classes have one image more than the others."
    )
    return [note] if rest else []


def score_seeds(
    checkpoint: Checkpoint,
    sampler: Sampler,
    evaluation: Evaluation,
    seeds: Sequence[int],
    png: bool,
    npz: bool,
    unfinished: Unfinished,
) -> tuple[list[Result], list[str]]:
    """Scores the images of each seed; returns the results, and the files that the images were written to."""
    finish = partial(ImageWriter.finish, num_images=evaluation.num_images, npz=npz, keep=png)
    results = []
    files = []
    for seed in seeds:
        images = checkpoint.images(evaluation, sampler, seed)
        writer = ImageWriter(unfinished.folder.parent / f"images_seed_{seed}") if png or npz else None
        title = f"seed {seed}"
        result, written = score(
            evaluation, images, title, checkpoint.device, checkpoint.processes, unfinished, writer, finish
        )
        results.append(result)
        files += written
    return results, files


def evaluate(
    checkpoint: Checkpoint,
    sampler: Sampler,
    evaluation: Evaluation,
    seeds: Sequence[Annotated[int, Ge(0)]],
    png: bool,
    npz: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores a checkpoint's images.

    Args:
        checkpoint, sampler, evaluation: make the images, and score them.
        seeds: each gives a set of images; with several, scores are means with deviations.
        png: also writes each image as a PNG file below `output`.
        npz: also writes them as ADM's suite reads them, `arr_0`, uint8 (n, H, W, 3).
        output: where unfinished work is kept, so that the same command goes on.
        settings: the whole configuration.

    Returns:
        The first protocol's scores; `scores` by protocol, `by_seed`, and all that they depend on.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={list(seeds)}: expected different integers of at least 0.")
    evaluation.check_reference(checkpoint.tokenizer.resolution)
    evaluation.check_classes(checkpoint.net.num_classes, checkpoint.class_names)
    processes = checkpoint.processes
    identity = {
        **evaluation.identity(),
        **{name: value for name, value in checkpoint.facts.items() if name not in ("weights", "kind")},
        "sampler": sampler_settings(settings),
        "scores": settings["scores"],
    }
    unfinished = Unfinished(output, {**identity, "png": png, "npz": npz}, processes)
    results, files = score_seeds(checkpoint, sampler, evaluation, seeds, png, npz, unfinished)
    if processes.rank > 0:
        return {}
    scores = over_seeds([result.scores for result in results])
    notes = notes_on(results[0], evaluation.features.widths["pool"])
    if evaluation.class_counts is None:
        notes += uneven_classes(evaluation.num_images, checkpoint.net.num_classes)
    print_scores({f"{checkpoint.source['kind']} weights": scores}, notes, results[0].skipped)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "skipped": results[0].skipped,
        "seeds": list(seeds),
        "by_seed": {str(seed): result.scores for seed, result in zip(seeds, results, strict=True)},
        "images_sha256": [result.sha256 for result in results],
        "images": files,
        "cost": sampling_cost(checkpoint.net, sampler, evaluation.block_size, checkpoint.context),
        "settings": identity,
        "reference": results[0].reference,
        **checkpoint.facts,
        **hardware(checkpoint.device, processes.size),
    }
