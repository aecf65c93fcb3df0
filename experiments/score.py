"""task=score: score images that are there already, or what a tokenizer makes of real ones."""

from typing import Any

from enat.metrics.evaluation import Evaluation
from enat.metrics.images import Images
from enat.metrics.processes import Processes
from experiments.device import launch
from experiments.evaluate import Unfinished, print_scores
from experiments.evaluate import score as score_with_progress
from experiments.provenance import provenance


def score(
    images: Images,
    evaluation: Evaluation,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    output: str,
) -> dict[str, Any]:
    """Scores a set of images; of decoded shards, the FID is that of reconstruction.

    Args:
        images: a folder, an `.npz` with `arr_0`, or shards.
        evaluation: scores them.
        accelerator, devices, num_nodes: as of Lightning's Trainer.
        output: where unfinished work is kept, so that the same command goes on.

    Returns:
        The first protocol's scores; `scores` by protocol, and all that they depend on.
    """
    fabric = launch(accelerator, devices, num_nodes, "32-true")
    processes = Processes()
    unfinished = Unfinished(output, {**evaluation.identity(), "images": dict(images.identity)}, processes)
    scores, skipped, _, sha256 = score_with_progress(evaluation, images, "images", fabric.device, processes, unfinished)
    if processes.rank > 0:
        return {}
    notes = evaluation.notes(scores)
    print_scores({str(images.identity["kind"]): scores}, notes, skipped)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "images": {**images.identity, "sha256": sha256},
        "skipped": skipped,
        "settings": evaluation.identity(),
        "reference": evaluation.facts(),
        **provenance(fabric.device, processes.size),
    }
