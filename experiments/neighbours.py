"""task=neighbours: shows the training images nearest to samples and to held-out images, side by side.

It tells learning from learning by heart. Shapes: `n` images, `D` features.
"""

from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import seaborn as sns
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from callbacks.sample_grid import save_grid
from enat.errors import InputError
from enat.images import Images
from enat.metrics.evaluation import Evaluation
from enat.metrics.neighbours import memorized_share, nearest, read_features
from enat.sampler import Sampler
from experiments.reporting.figures import STYLE, save
from experiments.runtime.checkpoint import Checkpoint

QUANTILES = (0.01, 0.1, 0.5)


@mpl.rc_context(STYLE)
def plot_distances(distances: dict[str, Tensor], path: Path) -> None:
    """Draws the distribution of the distances to the nearest training image, a curve for each set of images."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, values in distances.items():
        sns.ecdfplot(values.numpy(), ax=axes, label=name)
    axes.set_xlabel("distance to the nearest training image, in features")
    axes.set_ylabel("share of the images")
    axes.set_xlim(left=0)
    save(figure, path)


NO_IMAGES = (
    "metrics: expected the images of training and held-out ones to compare with: metrics=lite0 metrics.images=DIR "
    "metrics.held_out_share=SHARE, as the images were tokenised."
)


def draw_neighbours(
    pixels: Tensor, features: Tensor, training_pixels: Tensor, training_features: Tensor, columns: int, path: Path
) -> Path:
    """Draws a row for each image: the image, then the training images nearest to it; the distance is the row's name."""
    ranks = range(1, min(columns, len(training_pixels)) + 1)
    found = [nearest(features, training_features, rank) for rank in ranks]
    shown = torch.stack([pixels, *(training_pixels[places] for _, places in found)], 1).flatten(0, 1)
    return save_grid(shown, [f"{distance:.1f}" for distance in found[0][0].tolist()], path)


def neighbours(
    checkpoint: Checkpoint,
    sampler: Sampler,
    evaluation: Evaluation,
    held_out: Images | None,
    rows: Annotated[int, Ge(1)],
    columns: Annotated[int, Ge(1)],
    output: str,
    seed: int,
) -> dict[str, Any]:
    """Finds the training images that are nearest to samples and to held-out images.

    Args:
        checkpoint, sampler: make the samples.
        evaluation: has the feature network, the number of samples and, as its reference, the training images.
        held_out: real images that were not trained on.
        rows, columns: of the picture: samples and held-out images, with so many neighbours each.
        output: folder of `neighbours.png`, the samples with their neighbours; `neighbours_held_out.png`, the same of
            held-out images; and `distances.png`.
        seed: of the samples.

    Returns:
        Quantiles of the distances; `memorized`, the share of samples nearer than the nearest 1 % of held-out images
        are; and the pictures.

    Raises:
        InputError: if the reference holds statistics and no images.
    """
    reference: Any = evaluation.reference
    if held_out is None or not hasattr(reference, "read"):
        raise InputError(NO_IMAGES)
    sets = {
        "training": reference,
        "samples": checkpoint.images(evaluation, sampler, seed),
        "held-out images": held_out,
    }
    pixels: dict[str, Tensor] = {}
    features: dict[str, Tensor] = {}
    for name, images in track(sets.items(), "sets of images"):
        pixels[name], features[name] = read_features(images, evaluation.features, checkpoint.device)
    files = {"samples": "neighbours.png", "held-out images": "neighbours_held_out.png"}
    distances = {name: nearest(features[name], features["training"])[0] for name in files}
    pictures = []
    for name, file in files.items():
        chosen = torch.arange(0, len(pixels[name]), max(len(pixels[name]) // rows, 1))[:rows]
        shown = (pixels[name][chosen], features[name][chosen], pixels["training"], features["training"])
        pictures.append(str(draw_neighbours(*shown, columns, Path(output) / file)))
    plot_distances(distances, Path(output) / "distances.png")
    memorized, notes = memorized_share(distances["samples"], distances["held-out images"])
    what = f"{memorized:.1%} of the samples are nearer to a training image than the nearest 1 % of held-out images are."
    print(*notes, what, sep="\n")
    quantiles = {
        name: {f"{share:.0%}": float(own.quantile(share)) for share in QUANTILES} for name, own in distances.items()
    }
    return {
        "memorized": memorized,
        "distances": quantiles,
        "pictures": [*pictures, str(Path(output) / "distances.png")],
        **checkpoint.facts,
    }
