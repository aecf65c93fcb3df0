"""task=score: score images that are there already, or what a tokenizer makes of real ones."""

import shutil
from pathlib import Path
from typing import Any

from enat.metrics.evaluation import Evaluation
from enat.metrics.images import Images
from enat.metrics.processes import Processes
from experiments.device import launch
from experiments.evaluate import print_scores
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
    processes, work = Processes(), Path(output) / "unfinished"
    scores, skipped = score_with_progress(evaluation, images, "images", fabric.device, processes, work)
    if processes.rank > 0:
        return {}
    for reason in skipped:
        print(f"Skipped {reason}")
    notes = evaluation.notes(scores)
    print_scores({str(images.identity["kind"]): scores}, notes)
    shutil.rmtree(work)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "settings": evaluation.identity(images),
        "skipped": skipped,
        **provenance(fabric.device, processes.size),
    }
