"""task=sample: draws images of chosen classes, as PNG files, as a grid, and as they are revealed step by step."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from torchvision.utils import save_image

from callbacks.sample_grid import save_pictures
from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.generation import sample_classes
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.runtime.launch import Accelerator, device_for


def sample(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    weights: str | None,
    classes: Annotated[list[int], MinLen(1)] | None,
    images_per_class: Annotated[int, Ge(1)],
    seed: int,
    output: str,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Generates images with a checkpoint.

    Args:
        net, weights: the network, and the file of its weights.
        sampler, tokenizer: make token ids, and images of them.
        classes: class ids; None for all.
        images_per_class: the number of images of each class.
        seed: of the noise.
        output: the folder of the pictures.
        accelerator: where the network runs.

    Returns:
        `images` (the folder), `grid` and `reveal` (PNG files), and where the weights come from.

    Raises:
        InputError: for a class id that the network does not have.
    """
    classes = list(range(net.num_classes)) if classes is None else list(classes)
    if not all(0 <= c < net.num_classes for c in classes):
        raise InputError(f"classes={classes}: expected class ids from 0 to {net.num_classes - 1}.")
    tokenizer.check_sizes(net.codebook_size, net.num_tokens)
    source = load_weights(net, weights)
    net.to(device_for(accelerator))
    images, steps = sample_classes(net, sampler, tokenizer, classes, images_per_class, seed)
    folder = Path(output)
    files = folder / "images"
    files.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        class_id, number = classes[index // images_per_class], index % images_per_class
        save_image(image, files / f"class_{class_id:04d}_seed_{seed}_{number:04d}.png")
    grid, reveal = save_pictures(images, steps, net, classes, folder / "grid.png", folder / "reveal.png")
    return {"images": str(files), "grid": str(grid), "reveal": str(reveal), **source}
