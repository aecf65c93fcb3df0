"""task=statistics: reference statistics of real images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from lightning.fabric import Fabric
from torch import nn
from torchmetrics import MetricCollection

from data.references import SUFFIXES
from enat.errors import InputError, printable
from enat.features.network import FeatureNetwork, is_wide
from enat.files import write_atomically
from enat.images import Images
from enat.metrics.accumulation import Record, accumulate
from enat.metrics.scores import FrechetDistance, KeptFeatures
from enat.metrics.view import OnView, scores_in
from enat.processes import Processes
from experiments.runtime.progress import ImageProgress
from experiments.runtime.scoring import Unfinished


def statistics(
    images: Images,
    features: nn.Module,
    block_size: Annotated[int, Ge(1)],
    max_features: Literal[0] | Annotated[int, Ge(2)],
    sfid: bool | None,
    fabric: Fabric,
    output: str,
) -> dict[str, Any]:
    """Computes the mean and the covariance of the features of a set of images, under each protocol.

    Args:
        images: the set.
        features: feature network, an `enat.features.network.FeatureNetwork`.
        block_size: images whose features are computed together.
        max_features: the features of so many images, spread evenly, are kept for KID, precision and recall.
        sfid: whether the file has the statistics of sFID too; for None, see `views_of`.
        fabric: the processes, launched.
        output: folder of `statistics.npz`, and of unfinished work, so that the same command goes on. The first
            protocol has the keys of ADM's files: `mu`, `sigma`, `mu_s`, `sigma_s`; others are `PROTOCOL/mu` and so on.

    Returns:
        The file, the number of images, the protocols, and the images that could not be read.

    Raises:
        InputError: for fewer than two readable images (others are named and left out); see also `views_of`.
    """
    processes = Processes()
    network: Any = features.to(fabric.device).eval()
    views = views_of(network, sfid)
    identity = {"images": dict(images.identity), "features_sha256": network.sha256, "protocols": [*network.protocols]}
    identity |= {"views": views, "block_size": block_size, "max_features": max_features}
    work = Unfinished(output, identity, processes).folder
    metrics = metrics_for(network, views, max_features)
    with ImageProgress(processes.rank) as bars:
        shared = (network, block_size, processes, fabric.device, work / "images", bars.add("features"))
        record = accumulate(metrics, images, True, *shared)
    if processes.rank > 0:
        return {}
    for reason in record.skipped:
        print(f"Skipped {printable(reason)}")
    if record.num_images < 2:
        raise InputError(f"images: {record.num_images} readable ones; expected at least 2.")
    print(f"Statistics of {record.num_images} images of {' x '.join(map(str, record.size or ()))} pixels.")
    arrays = content_of(metrics, network, record)
    if max_features and "features" not in arrays:
        print(
            f"max_features={max_features}: fewer than two of these images can be read, so that the file has no "
            "features for KID, precision and recall; a larger number keeps some."
        )
    write_atomically(path := Path(output) / "statistics.npz", lambda file: np.savez(file, **arrays))
    return {
        "statistics": str(path),
        "num_images": record.num_images,
        "protocols": list(metrics),
        "features_sha256": network.sha256,
        "images": {**images.identity, "sha256": record.sha256},
        "settings": identity,
        "skipped": record.skipped,
    }


def views_of(network: FeatureNetwork, sfid: bool | None) -> list[str]:
    """Returns the views of which the mean and the covariance are computed: `pool`, and for sFID `spatial`.

    A covariance takes 8 D^2 bytes for D features. If `sfid` is None, sFID is left out where that is more than FID
    takes: where the network has more spatial features than pool features, such as Lite0, and not Inception.

    Raises:
        InputError: for `sfid=true` with a network that has no spatial features.
    """
    width = network.widths.get("spatial")
    if width is None:
        if sfid:
            raise InputError("sfid=true: the feature network has no spatial features; expected sfid=false.")
        return ["pool"]
    is_wanted = not is_wide("spatial", network) if sfid is None else sfid
    return ["pool", "spatial"] if is_wanted else ["pool"]


def metrics_for(network: FeatureNetwork, views: Sequence[str], max_features: int) -> dict[str, MetricCollection]:
    """Makes, for each protocol, the metrics that hold the statistics of these views and the kept features."""
    scores: dict[str, Any] = {view: OnView(view, FrechetDistance()) for view in views}
    if max_features:
        scores["features"] = OnView("pool", KeptFeatures(max_features))
    return {name: MetricCollection(scores, compute_groups=False).clone() for name in network.protocols}


def content_of(metrics: Mapping[str, MetricCollection], network: FeatureNetwork, record: Record) -> dict[str, Any]:
    """Returns what the file holds, by name; the arrays of the first protocol have no prefix, as in ADM's files."""
    main = next(iter(metrics))
    content = {"features_sha256": network.sha256, "protocol": main, "num_images": record.num_images}
    arrays: dict[str, Any] = {**content, "size": record.size}
    for protocol, collection in metrics.items():
        arrays |= arrays_of(collection, "" if protocol == main else f"{protocol}/")
    return {name: np.asarray(value) for name, value in arrays.items()}


def arrays_of(collection: MetricCollection, prefix: str) -> dict[str, Any]:
    """Returns the arrays of a protocol by their names in the file."""
    arrays: dict[str, Any] = {}
    for score in scores_in(collection).values():
        if isinstance(score.metric, FrechetDistance):
            mu, sigma = score.metric.statistics(real=True)
            suffix = SUFFIXES[score.view]
            arrays |= {f"{prefix}mu{suffix}": mu, f"{prefix}sigma{suffix}": sigma}
        elif isinstance(score.metric, KeptFeatures):
            features = torch.cat(score.metric.real_features)
            if len(features) >= 2:  # or else no score could be computed from them
                arrays[f"{prefix}features"] = features
    return arrays
