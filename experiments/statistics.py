"""task=statistics: reference statistics of real images."""

from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from torch import nn

from enat.errors import InputError
from enat.files import write_atomically
from enat.metrics.images import Images
from enat.metrics.processes import Processes
from enat.metrics.summary import summarize
from enat.metrics.tally import Plan
from experiments.evaluate import Unfinished
from experiments.runtime.progress import ImageProgress


def statistics(
    images: Images,
    features: nn.Module,
    block_size: int,
    max_features: int,
    fabric: Fabric,
    output: str,
) -> dict[str, Any]:
    """Computes mean and covariance of the features of a set of images, under each protocol.

    Args:
        images: the set.
        features: feature network, an `enat.metrics.features.FeatureNetwork`.
        block_size: images whose features are computed together.
        max_features: of so many images, spread evenly, the features are kept for KID, precision and recall.
        fabric: the processes, launched.
        output: folder of `statistics.npz`, and of unfinished work, so that the same command goes on. The first
            protocol has the keys of ADM's files: `mu`, `sigma`, `mu_s`, `sigma_s`; others are `PROTOCOL/mu` and so on.

    Returns:
        The file, the number of images, the protocols, and the images that could not be read.

    Raises:
        InputError: if there are fewer than two readable images; others are named and left out.
    """
    if block_size < 1 or max_features < 0:
        raise InputError(f"block_size={block_size}, max_features={max_features}: expected at least 1 and 0.")
    processes = Processes()
    network: Any = features.to(fabric.device).eval()
    identity = {"images": dict(images.identity), "features_sha256": network.sha256, "protocols": [*network.protocols]}
    work = Unfinished(output, {**identity, "block_size": block_size, "max_features": max_features}, processes).folder
    with ImageProgress(processes.rank) as progress:
        watcher = progress.watcher("features")
        plan = Plan(block_size, 0, max_features)
        summaries = summarize(images, network, plan, processes, fabric.device, None, work / "images", watcher)
    if processes.rank > 0:
        return {}
    for reason in watcher.skipped:
        print(f"Skipped {reason}")
    main = next(iter(summaries))
    count = summaries[main].pool.num_images
    content: dict[str, Any] = {"features_sha256": network.sha256, "protocol": main, "num_images": count}
    for protocol, summary in summaries.items():
        prefix = "" if protocol == main else f"{protocol}/"
        content |= {f"{prefix}mu": summary.pool.mu, f"{prefix}sigma": summary.pool.sigma}
        if summary.spatial is not None:
            content |= {f"{prefix}mu_s": summary.spatial.mu, f"{prefix}sigma_s": summary.spatial.sigma}
        if summary.features is not None:
            content[f"{prefix}features"] = summary.features
    path = Path(output) / "statistics.npz"
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in content.items()}
    write_atomically(path, lambda file: np.savez(file, **arrays))
    return {
        "statistics": str(path),
        "num_images": count,
        "protocols": list(summaries),
        "features_sha256": network.sha256,
        "images": {**images.identity, "sha256": summaries[main].sha256},
        "skipped": watcher.skipped,
    }
