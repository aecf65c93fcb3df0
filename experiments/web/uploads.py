"""Reads what a browser uploads: a few formats of bounded size, from the folder of uploads, and nothing else.

Gradio by itself opens whatever Pillow can open, and fetches files from addresses that a request names.
"""

import atexit
import functools
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from enat.errors import InputError
from enat.images import read_facts, upright
from enat.pipeline import Pipeline
from experiments.web.choices import MAX_IMAGES, MAX_SEED, NUMBERS, Choices, number, one_of, short

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 10 * 2**20
MAX_PIXELS = 2**24
MAX_LAYERS = 16  # of an editor; the page's has one
MAX_FILES = 200  # uploads of all visitors that are kept
MAX_FILES_BYTES = 16 * MAX_BYTES  # of all of these
MAX_KEPT = 32  # pictures of editors that no request has used yet, each with its layers
MAX_KEPT_BYTES = 16 * MAX_BYTES  # of all of these
MAX_ID = 100  # characters of the id that a browser gives a picture


def read_image(source: Path | bytes) -> Image.Image:
    """Reads an image with its transparency, if it has any.

    Raises:
        InputError: for other formats, more than 16 million pixels, and damaged files.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"the image has {image.width} x {image.height} pixels; expected at most 16 million.")
            if image.mode.startswith(("I", "F")):
                raise InputError("the image has more than 8 bits a channel; expected one with 8.")
            return upright(image).convert("RGBA")  # as the browser shows it
    except InputError:
        raise
    except Exception as error:  # whatever a plugin of Pillow raises on a damaged file
        raise InputError("the image can't be read; expected a PNG, JPEG or WebP file.") from error


def on_white(image: Image.Image) -> Image.Image:
    """Returns an image in RGB, whose transparent parts are white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def read_editor(blobs: dict[str, Any], payload: Any) -> tuple[Image.Image, Image.Image] | None:
    """Reads an image editor: the image, and what is painted on it, white on black.

    Args:
        blobs: the pictures that the editor has uploaded, by an id; they are taken out.
        payload: what the request says, after gradio has checked that its files are uploads.

    Returns:
        Two images of the same size; None without an image.

    Raises:
        InputError: for an image that can't be read, and for layers that have too many pixels together.
    """
    if payload is not None and payload.id is not None:
        payload = blobs.pop(payload.id, None)
    if payload is None or payload.background is None:
        return None
    image = on_white(_read_part(payload.background))
    painted = np.zeros((image.height, image.width), dtype=bool)
    pixels = 0
    for layer in payload.layers[:MAX_LAYERS]:  # one at a time, since each takes much memory
        if layer is None:
            continue
        alpha = _read_part(layer).getchannel("A")
        pixels += alpha.width * alpha.height
        if pixels > MAX_PIXELS:
            raise InputError("what is painted has more than 16 million pixels in all layers; expected a smaller image.")
        painted |= np.asarray(alpha.resize(image.size, Image.Resampling.NEAREST)) > 0
    return image, Image.fromarray(painted.astype(np.uint8) * 255)


def _read_part(part: Any) -> Image.Image:
    """Reads a part of a picture, which is the bytes of a file or the upload that gradio has checked."""
    return read_image(part if isinstance(part, bytes) else Path(part.path))


def keep_part(blobs: dict[str, Any], empty: Any, about: Mapping[str, Any], content: bytes) -> None:
    """Keeps a part of a picture until a request uses it: the background, a layer or all of it.

    The oldest pictures make room for new ones, so that requests that never come take no memory.

    Args:
        blobs: the pictures by id, from the oldest to the newest.
        empty: a picture without parts, for a new id.
        about: what the browser says of the part: its `type`, the `id` of the picture, and the `index` of a layer.
        content: the bytes of the part.

    Raises:
        InputError: for a part that is too large, or that says something else.
    """
    place, kind, index = about.get("id"), about.get("type"), about.get("index")
    if not isinstance(place, str) or len(place) > MAX_ID:
        raise InputError(f"the id of the picture: {short(place)}; expected at most {MAX_ID} characters.")
    if len(content) > MAX_BYTES:
        raise InputError(f"the picture has {len(content):,} bytes; expected at most {MAX_BYTES:,}.")
    picture = blobs.pop(place, empty)
    if kind == "layer" and index not in (None, "", "null"):
        index = int(index) if isinstance(index, str) and index.isdecimal() and len(index) < 4 else index
        index = number("number of the layer", index, 0, MAX_LAYERS - 1)
        picture.layers.extend([None] * (index + 1 - len(picture.layers)))
        picture.layers[index] = content
    elif kind in ("background", "composite"):
        setattr(picture, kind, content)
    blobs[place] = picture
    while len(blobs) > 1 and (len(blobs) > MAX_KEPT or sum(map(_bytes_of, blobs.values())) > MAX_KEPT_BYTES):
        del blobs[next(iter(blobs))]


def _bytes_of(picture: Any) -> int:
    """Returns how many bytes the parts of a picture have."""
    return sum(len(part or b"") for part in (picture.background, picture.composite, *picture.layers))


@functools.cache
def own_folder() -> Path:
    """Makes a folder for the uploads of this process, which is removed when the process ends."""
    parent = os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()
    Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="enat_page_", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def drop_oldest(folder: Path) -> None:
    """Removes the oldest files below a folder until there are few of a bounded size, and folders that become empty."""
    found = []
    for inner, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # another request has removed it
                about = Path(inner, name).lstat()
                found.append((about.st_ctime_ns, about.st_size, Path(inner, name)))
    found.sort(reverse=True)
    total = 0
    for place, (_, size, path) in enumerate(found):
        total += size
        if place >= MAX_FILES or total > MAX_FILES_BYTES:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # it has other files
                path.parent.rmdir()


def refusing_addresses(move: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps gradio's function that takes a file into its cache, so that it fetches nothing from an address."""

    async def moved(source: Any) -> Any:
        if "://" in str(source)[:16]:
            raise InputError("an address of a file; expected an upload.")
        return await move(source)

    return moved


def settings_of(choices: Choices, content: bytes | None) -> tuple[dict[str, Any], str]:
    """Reads the settings in a PNG file that the page or `enat sample` has written.

    Args:
        choices: of the model.
        content: of the file.

    Returns:
        The values of the page's controls by name, and a sentence that says what does not fit, or that all does.

    Raises:
        InputError: for a file without settings, and for settings that the page does not offer.
    """
    facts = read_facts(io.BytesIO(content or b"")) if len(content or b"") <= MAX_BYTES else None
    if facts is None:
        raise InputError("the file has no settings inside; expected a PNG file of this page or of `enat sample`.")
    sampler = facts.get("sampler")
    sampler = sampler if isinstance(sampler, Mapping) else {}
    name = facts.get("class")
    values: dict[str, Any] = {"classes": [choices.names.index(one_of("class", name, choices.names))]}
    values["images_per_class"] = number("number of the image", facts.get("number"), 0, MAX_IMAGES - 1) + 1
    values["seed"] = number("seed", facts.get("seed"), 0, MAX_SEED)
    for option, (label, _, _, whole) in NUMBERS.items():
        values[option] = number(label, sampler.get(option), *choices.range_of(option), whole)
    named = Choices.of_settings(sampler)
    values["order"] = one_of("order", named[0], choices.orders)
    values["correction"] = one_of("correction", named[1], choices.corrections)
    return values, _what_differs(choices.model, facts, sampler)


def _what_differs(model: Pipeline, facts: Mapping[str, Any], sampler: Mapping[str, Any]) -> str:
    """Says whether the image is of this model, and whether it can be drawn again."""
    own = model.facts()
    if any(facts.get(name) != own[name] for name in ("model_sha256", "tokenizer_sha256", "dtype")):
        return "The settings are in the controls. The image is of other weights, so that it will look different."
    changeable = {*NUMBERS, "order", "correction"}
    mine = {name: value for name, value in own["sampler"].items() if name not in changeable}
    if {name: value for name, value in sampler.items() if name not in changeable} != mine:
        return "The settings are in the controls, but for schedules of the sampler that the page does not change."
    if "edit" in facts:
        return "The settings are in the controls. The image was edited: its region is not among them."
    return "All settings are in the controls. Draw makes the same image again."
