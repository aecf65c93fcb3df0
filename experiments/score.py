"""task=score: score images that are there already, or what a tokenizer makes of real ones."""

from collections.abc import Mapping
from typing import Any

from lightning.fabric import Fabric

from enat.images import Images
from enat.metrics.evaluation import Evaluation
from enat.processes import Processes
from experiments.reporting.scores import notes_on, print_scores
from experiments.runtime.provenance import hardware
from experiments.runtime.scoring import Unfinished
from experiments.runtime.scoring import score as score_with_progress


def score(
    images: Images, evaluation: Evaluation, fabric: Fabric, output: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Scores a set of images; with decoded shards, the FID is the reconstruction FID.

    Args:
        images: a folder, an `.npz` with `arr_0`, or shards.
        evaluation: scores them.
        fabric: the processes, launched.
        output: where unfinished work is kept, so that the same command goes on.
        settings: the whole configuration.

    Returns:
        The first protocol's scores; `scores` by protocol, and all that they depend on.
    """
    processes = Processes()
    identity = {**evaluation.identity(), "scores": settings["scores"], "images": dict(images.identity)}
    unfinished = Unfinished(output, identity, processes)
    result, _ = score_with_progress(evaluation, images, "images", fabric.device, processes, unfinished)
    if processes.rank > 0:
        return {}
    scores = result.scores
    notes = notes_on(result, evaluation.features.widths["pool"])
    print_scores({str(images.identity["kind"]): scores}, notes, result.skipped)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "images": {**images.identity, "sha256": result.sha256},
        "skipped": result.skipped,
        "settings": identity,
        "reference": result.reference,
        **hardware(fabric.device, processes.size),
    }
