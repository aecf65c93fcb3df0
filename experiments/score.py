"""task=score: score images that are there already, or what a tokenizer makes of real ones."""

from typing import Any

from lightning.fabric import Fabric

from enat.metrics.evaluation import Evaluation
from enat.metrics.images import Images
from enat.metrics.processes import Processes
from experiments.evaluate import Unfinished, print_scores
from experiments.evaluate import score as score_with_progress
from experiments.runtime.provenance import provenance


def score(
    images: Images,
    evaluation: Evaluation,
    fabric: Fabric,
    output: str,
) -> dict[str, Any]:
    """Scores a set of images; of decoded shards, the FID is that of reconstruction.

    Args:
        images: a folder, an `.npz` with `arr_0`, or shards.
        evaluation: scores them.
        fabric: the processes, launched.
        output: where unfinished work is kept, so that the same command goes on.

    Returns:
        The first protocol's scores; `scores` by protocol, and all that they depend on.
    """
    processes = Processes()
    unfinished = Unfinished(output, {**evaluation.identity(), "images": dict(images.identity)}, processes)
    result = score_with_progress(evaluation, images, "images", fabric.device, processes, unfinished)
    if processes.rank > 0:
        return {}
    scores = result.scores
    print_scores({str(images.identity["kind"]): scores}, result.notes, result.skipped)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": result.notes,
        "images": {**images.identity, "sha256": result.sha256},
        "skipped": result.skipped,
        "settings": evaluation.identity(),
        "reference": result.reference,
        **provenance(fabric.device, processes.size),
    }
