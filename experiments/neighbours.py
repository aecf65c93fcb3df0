"""task=neighbours: shows the training images nearest to samples and to held-out images, side by side.

It tells learning from learning by heart. Shapes: `n` images, `D` features.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib as mpl
import seaborn as sns
import torch
from annotated_types import Ge
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from callbacks.sample_grid import save_grid
from enat.errors import InputError, printable
from enat.images import Block, Images
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


class Seen(NamedTuple):
    """What is kept of a set of images: the features of all that can be read, and the pixels of some."""

    numbers: Tensor  # (n,)
    features: Tensor  # (n, D)
    pixels: dict[int, Tensor]  # (channels, H, W), by number


def look_at(images: Images, rows: int, evaluation: Evaluation, device: torch.device) -> Seen:
    """Reads images, prints why some can't be read, and keeps the pixels of about `rows` of them, spread evenly."""
    shown = range(0, images.num_images, max(images.num_images // max(rows, 1), 1))[:rows]
    pixels: dict[int, Tensor] = {}

    def keep(block: Block) -> None:
        for reason in block.skipped:
            print(f"Skipped {printable(reason)}")
        named = zip(block.numbers.tolist(), block.images, strict=True)
        pixels.update({number: image.cpu() for number, image in named if number in shown})

    return Seen(*read_features(images, evaluation.features, device, evaluation.block_size, keep), pixels)


def draw_neighbours(seen: Seen, training: Images, of_training: Seen, columns: int, path: Path) -> Path:
    """Draws a row for each image: the image, then the training images nearest to it; the distance is the row's name."""
    chosen = [place for place, number in enumerate(seen.numbers.tolist()) if number in seen.pixels]
    ranks = range(1, min(columns, len(of_training.numbers)) + 1)
    found = [nearest(seen.features[chosen], of_training.features, rank) for rank in ranks]
    numbers = torch.stack([of_training.numbers[places] for _, places in found], 1)  # (rows, columns)
    blocks = training.read([range(number, number + 1) for number in numbers.unique().tolist()], torch.device("cpu"))
    pixels = {int(block.numbers[0]): block.images[0] for block in blocks}
    shown = []
    for image, row in zip(seen.numbers[chosen].tolist(), numbers.tolist(), strict=True):
        shown += [seen.pixels[image], *(pixels[number] for number in row)]
    return save_grid(torch.stack(shown), [f"{distance:.1f}" for distance in found[0][0].tolist()], path)


def quantiles(values: Tensor) -> dict[str, float]:
    """Returns quantiles of values (n,) by their shares in percent."""
    return {f"{share:.0%}": float(values.quantile(share)) for share in QUANTILES}


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
    evaluation.check_reference(checkpoint.tokenizer.resolution)
    if checkpoint.processes.rank > 0:
        return {}
    samples = checkpoint.images(evaluation, sampler, seed)
    sets = {"training": (reference, 0), "samples": (samples, rows), "held-out images": (held_out, rows)}
    seen = {}
    for name, (images, shown) in track(sets.items(), "sets of images"):
        seen[name] = look_at(images, shown, evaluation, checkpoint.device)
    files = {"samples": "neighbours.png", "held-out images": "neighbours_held_out.png"}
    distances = {name: nearest(seen[name].features, seen["training"].features)[0] for name in files}
    pictures = [
        str(draw_neighbours(seen[name], reference, seen["training"], columns, Path(output) / file))
        for name, file in files.items()
    ]
    plot_distances(distances, Path(output) / "distances.png")
    memorized, notes = memorized_share(distances["samples"], distances["held-out images"])
    near = f"{memorized:.1%} of the samples are nearer to a training image than the nearest 1 % of held-out images are."
    print(*notes, near, sep="\n")
    return {
        "memorized": memorized,
        "distances": {name: quantiles(own) for name, own in distances.items()},
        "pictures": [*pictures, str(Path(output) / "distances.png")],
        "training": dict(reference.identity),
        "held_out": dict(held_out.identity),
        "features_sha256": evaluation.features.sha256,
        **checkpoint.facts,
    }
