"""task=sample: draws images of chosen classes, as PNG files, as a grid, and as they are revealed step by step."""

import re
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from torchvision.utils import save_image

from callbacks.sample_grid import save_pictures
from enat.checkpoints.weights import load_weights, read_file
from enat.generation import find_class_ids, sample_classes
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.runtime.launch import Accelerator, device_for


def sample(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    weights: str | None,
    classes: Annotated[list[int | str], MinLen(1)] | int | str | None,
    images_per_class: Annotated[int, Ge(1)],
    seed: int,
    output: str,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Generates images with a checkpoint.

    Args:
        net, weights: the network, and the file of its weights.
        sampler, tokenizer: make token ids, and images of them.
        classes: class ids or names, or a single one; None for all.
        images_per_class: the number of images of each class.
        seed: of the noise.
        output: the folder of the pictures.
        accelerator: where the network runs.

    Returns:
        `images` (the folder), `grid` and `reveal` (PNG files), and where the weights come from.

    Raises:
        InputError: for a class that the network does not have.
    """
    source = load_weights(net, weights)
    names = read_file(str(weights)).get("class_names") or [str(class_id) for class_id in range(net.num_classes)]
    chosen = [classes] if isinstance(classes, int | str) else classes
    class_ids = find_class_ids(range(net.num_classes) if chosen is None else chosen, names)
    tokenizer.check_sizes(net.codebook_size, net.num_tokens)
    net.to(device_for(accelerator))
    images, steps = sample_classes(net, sampler, tokenizer, class_ids, images_per_class, seed)
    folder = Path(output)
    files = folder / "images"
    files.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        class_id = class_ids[index // images_per_class]
        label = f"{class_id:04d}"
        if names[class_id] != str(class_id):
            label += "_" + re.sub(r"[^\w-]+", "_", names[class_id])
        save_image(image, files / f"class_{label}_seed_{seed}_{index % images_per_class:04d}.png")
    row_names = [names[class_id] for class_id in class_ids]
    grid, reveal = save_pictures(images, steps, net, row_names, folder / "grid.png", folder / "reveal.png")
    print(f"Pictures: {grid}, {reveal}")
    return {"images": str(files), "grid": str(grid), "reveal": str(reveal), "classes": row_names, **source}
