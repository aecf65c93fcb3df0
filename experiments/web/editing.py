"""Edits an image as the page asks for it."""

from typing import Any

from PIL import Image

from enat.errors import InputError
from enat.generation import UNCONDITIONAL
from enat.images import pixels_sha256, white_pixels
from experiments.web.choices import MAX_IMAGES, MAX_SEED, Choices, number, one_of

PAINTED, BOX, EVERYTHING = "what is painted", "a box", "everything"


def as_drawn(image: Image.Image, side: int) -> Image.Image:
    """Returns an image of the network, which the page has enlarged for the brush, in its own pixels; others stay."""
    if image.width != image.height or image.width % side:
        return image
    small = image.resize((side, side), Image.Resampling.NEAREST)
    is_enlarged = small.resize(image.size, Image.Resampling.NEAREST).tobytes() == image.tobytes()
    return small if is_enlarged else image


def edit(
    choices: Choices,
    given: tuple[Image.Image, Image.Image] | None,
    region: Any,
    box: list[Any],
    class_id: Any,
    keep: Any,
    results: Any,
    seed: Any,
    is_blended: Any,
) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Draws a part of an image anew.

    Args:
        choices: of the model.
        given: the image, and what is painted on it, white on black, of the same size.
        region: `PAINTED`, `BOX` or `EVERYTHING`.
        box: left, top, right and bottom, as shares.
        class_id, keep, results, seed: see `Pipeline.edit`.
        is_blended: whether the pixels outside of the region stay those of the image.

    Returns:
        The results, and what is written into the file of each.

    Raises:
        InputError: naming what is wrong.
    """
    if given is None:
        raise InputError("there is no image; expected an upload, or an image that was drawn.")
    region = one_of("what is drawn anew", region, [PAINTED, BOX, EVERYTHING])
    class_id = number("class", class_id, 0, len(choices.names) - 1)
    keep = number("share to keep", keep, 0, 1, whole=False)
    results = number("results", results, 1, MAX_IMAGES)
    seed = number("seed", seed, 0, MAX_SEED)
    sides = ("left", "top", "right", "bottom")
    shares = [number(side, value, 0, 1, whole=False) for side, value in zip(sides, box, strict=True)]
    model = choices.model
    side = model.tokenizer.resolution
    image, painted = as_drawn(given[0], side), given[1]
    mask = painted if region == PAINTED else None
    if mask is not None and not white_pixels(mask, side).any():
        raise InputError("nothing is painted; expected a part of the image under the brush, or another choice.")
    options = {"keep": keep, "soft_blend": 0 if is_blended is True else None}
    corners = shares if region == BOX else None
    name = UNCONDITIONAL if class_id == len(model.class_names) else class_id
    where = mask if region == PAINTED else corners
    images = model.edit(image, name, where, results_per_class=results, seed=seed, **options)
    edited = {"image_sha256": pixels_sha256(image), "box": corners, "scale": 1.0, **options}
    facts = {"seed": seed, **model.facts(), "class": choices.names[class_id]}
    own = {"edit": {**edited, "mask_sha256": pixels_sha256(mask)}}
    return images, [{**facts, "number": place, **own} for place in range(results)]
