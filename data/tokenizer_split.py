"""Compares which images are held out from the shards with those that the tokenizer was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.image_module import listing_sha256
from data.images import ImageList, find_images
from data.tokenization import split_numbers
from enat.checkpoints.weights import read_file
from enat.errors import InputError, counted
from enat.files import part_of


def note_on_split(weights: Any, images: ImageList, held_out: Sequence[int]) -> str | None:
    """Says how many held-out images of a folder a tokenizer was trained on.

    Args:
        weights: the file of the tokenizer, if it has one.
        images: the images of the shards.
        held_out: the numbers of those that are held out.

    Returns:
        A note; None if there are none, or if the file does not say that it was trained on these images.
    """
    try:
        content = read_file(weights) if isinstance(weights, str) else {}
    except InputError:  # of another program; whoever builds the tokenizer reads it
        return None
    share, seed = (part_of(content, f"settings.data.{name}") for name in ("held_out", "seed"))
    if not (isinstance(share, int | float) and 0 <= share < 1 and isinstance(seed, int) and seed >= 0):
        return None
    found = find_images(images.folder)[0]
    files = [file for file in found if file.parent != images.folder] or found  # as `data.image_module.split_folder`
    split = {name: [files[number] for number in part] for name, part in split_numbers(len(files), share, seed).items()}
    if content.get("data_sha256") != listing_sha256(images.folder, [*split["held_out"], *split["train"]]):
        return None
    trained = set(split["train"])
    count = sum(images.folder / Path(images.files[number]) in trained for number in held_out)
    if not count:
        return None
    return (
        f"Note: the tokenizer was trained on {count} of the {counted(len(held_out), 'held-out image')}, and gives "
        f"these back better than new ones. It held out data.held_out={share} with seed={seed}: if all images of the "
        "class folders are tokenised, the same seed and at most this held_out hold out none that it has seen."
    )
