"""Loads weights with all that they need to draw images: `enat.load(FOLDER).generate(classes=[3, 7])`.

Shapes: `n` images, `L` tokens of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from enat.building import build_from_settings, check_parts, find_part, named, refuse_huge, to_python
from enat.checkpoints.description import refuse_tokenizer
from enat.checkpoints.folder import config_of, with_found_tokenizer
from enat.checkpoints.hub import find_weights
from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import official_settings
from enat.checkpoints.saving import describe, save_folder
from enat.checkpoints.selection import state_of_file
from enat.checkpoints.weights import load_exactly, read_file
from enat.editing import Editor, mark_region
from enat.errors import InputError, check_share, check_whole
from enat.files import expand_home
from enat.generation import BATCH_SIZE, UNCONDITIONAL, check_class_names, find_class_ids, sample_classes
from enat.images import as_mode, refuse_other_shape, reveal, square_pixels, to_pil, white_pixels
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer


def _path_of(name: str, given: Any) -> Path:
    """Returns a path that a user has given, in which `~` stands for the home folder.

    Raises:
        InputError: for something else, and for an empty text.
    """
    if not isinstance(given, str | PathLike) or given == "":
        raise InputError(f"{name}={given}: expected the path of a file or a folder.")
    return expand_home(Path(given))


def check_device(device: torch.device | str) -> None:
    """Refuses a device that torch does not know or does not have here, and `meta`, which computes nothing.

    Raises:
        InputError: with torch's reason.
    """
    try:
        empty = torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"device={device}: {reason}; expected one that is there, such as cpu.") from error
    if empty.is_meta:
        raise InputError(f"device={device}: it computes nothing; expected one that does, such as cpu.")


class Pipeline:
    """A network, a sampler and a tokenizer that draw images together.

    Args:
        net: the network, in evaluation mode.
        sampler: draws token ids from the network.
        tokenizer: makes images from token ids.
        class_names: one for each class id; None for the ids themselves.
        description: the settings of the parts, and what is known of the weights, as in `config.json` of a folder.
            Without it, the pipeline draws but can't be saved.
    """

    def __init__(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        class_names: Sequence[str] | None = None,
        description: Mapping[str, Any] | None = None,
    ):
        tokenizer.check_sizes(net.codebook_size, net.num_tokens)
        self.net = net
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.class_names = check_class_names(class_names, net.num_classes)
        self.description = dict(description or {})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Pipeline":
        """Moves network and tokenizer to a device, and casts them to a type of numbers; None leaves either as it is.

        Raises:
            InputError: for a device that is not there, or a type without fractions or with less than 16 bits.
        """
        is_known = isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1  # no float8
        if dtype is not None and not is_known:
            raise InputError(f"dtype={dtype}: expected a type such as torch.bfloat16.")
        if device is not None:
            check_device(device)
        for part in (self.net, self.tokenizer):
            part.to(device=device, dtype=dtype)
        return self

    def generate(
        self,
        classes: Sequence[int | str] | int | str | None = None,
        images_per_class: int = 1,
        seed: int = 0,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Image.Image]:
        """Draws images, class by class.

        Args:
            classes: ids or names, or a single one, or `unconditional` for images of no class; None for all classes.
            images_per_class: the number of images of each class.
            seed: of the noise. An image depends on it, on its class and on its number in the class alone.
            on_progress: is called with the number of steps that are done and the number of all; 16 images are drawn at
                a time, in `sampler.num_steps` steps.

        Raises:
            InputError: for a class that the network does not have, and for less than one image.
        """
        return to_pil(self._draw(classes, images_per_class, seed, on_progress)[0])

    def reveal(self, classes: Sequence[int | str] | int | str | None = None, seed: int = 0) -> list[list[Image.Image]]:
        """Draws the first image of each class, and shows how it appears.

        Returns:
            For each class, an image for the start of each step, whose masked tokens are covered, and the final image.
        """
        images, steps = self._draw(classes, 1, seed)
        return [to_pil(frames) for frames in reveal(images, steps, self.net.mask_token_id)]

    def edit(
        self,
        image: Image.Image,
        classes: Sequence[int | str] | int | str = UNCONDITIONAL,
        region: Image.Image | Sequence[float] | None = None,
        scale: float = 1.0,
        keep: float = 0.0,
        results_per_class: int = 1,
        seed: int = 0,
        soft_blend: int | None = None,
    ) -> list[Image.Image]:
        """Draws a part of an image anew and keeps the rest (docs/editing.md).

        Args:
            image: is turned as its EXIF orientation says, cropped to a square in the middle, and scaled to the side of
                the network's images.
            classes: ids or names of the classes of the new tokens, or a single one, or `unconditional`.
            region: what is drawn: the white pixels of an image of the same shape, whose transparent pixels count as
                black; or a box of left, top, right and bottom as shares; None for all of it.
            scale: less than 1 shrinks the image, and what is around it is drawn; in place of a region.
            keep: share of the tokens of the region that are kept all the same, at random positions.
            results_per_class: the number of results for each class.
            seed: of the noise.
            soft_blend: shows the image's own pixels outside of the region, with a soft border of so many pixels.

        Raises:
            InputError: for a class that the network does not have, or options that do not fit together.
        """
        check_share("keep", keep)
        check_share("scale", scale)
        check_whole("results_per_class", results_per_class, 1)
        check_whole("seed", seed, 0)
        if soft_blend is not None:
            check_whole("soft_blend", soft_blend, 0)
        if not isinstance(image, Image.Image):
            raise InputError(f"image: expected an image of Pillow, and no {type(image).__name__}.")
        side = self.tokenizer.resolution
        image = as_mode(image, "RGB", "image")
        pixels = square_pixels(image, side, self.tokenizer.channels)
        mask = None
        if isinstance(region, Image.Image):
            region = as_mode(region, "RGBA", "region")
            refuse_other_shape(region, image.size)
            mask = white_pixels(region, side)
        box = None if isinstance(region, Image.Image) else region
        put = partial(mark_region, mask=mask, box=box, scale=scale)
        editor = Editor(self.net, self.sampler, self.tokenizer, put, keep, soft_blend=soft_blend)
        seeds = [(seed, number) for number in range(results_per_class)]
        return [
            result
            for class_id in find_class_ids(classes, self.class_names)
            for start in range(0, len(seeds), BATCH_SIZE)
            for result in to_pil(editor(pixels, class_id, seeds[start : start + BATCH_SIZE])[2])
        ]

    def _draw(
        self,
        classes: Sequence[int | str] | int | str | None,
        images_per_class: int,
        seed: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Tensor, list[Tensor]]:
        check_whole("images_per_class", images_per_class, 1)
        check_whole("seed", seed, 0)
        ids = find_class_ids(classes, self.class_names)
        parts = (self.net, self.sampler, self.tokenizer)
        return sample_classes(*parts, ids, images_per_class, seed, on_progress)

    def with_sampler(self, **options: Any) -> "Pipeline":
        """Returns a pipeline of the same network and tokenizer whose sampler has other options, such as `num_steps=16`.

        Raises:
            InputError: for an option that is unknown or out of range.
        """
        description = deepcopy(self.description)
        settings = find_part(description, "settings.sampler", "this pipeline")
        description["settings"]["sampler"] = {**settings, **to_python(options)}
        refuse_huge(description["settings"]["sampler"], "with_sampler", "sampler")
        sampler = build_from_settings(description["settings"]["sampler"])
        return Pipeline(self.net, sampler, self.tokenizer, self.class_names, description)

    @property
    def sampler_settings(self) -> dict[str, Any]:
        """The options of the sampler in plain values, parts by their names and options; empty if they are unknown."""
        settings = self.description.get("settings", {}).get("sampler", {})
        return {name: named(value) for name, value in settings.items() if not name.startswith("_")}

    def facts(self) -> dict[str, Any]:
        """Returns, in plain values, what an image depends on beside its seed, its class and its number in the class."""
        return {
            "sampler": self.sampler_settings,
            "model_sha256": self.description.get("model_sha256"),
            "tokenizer_sha256": self.tokenizer.fingerprint(),
            "dtype": str(self.net.head_bias.dtype).removeprefix("torch."),
        }

    def save(self, folder: str | Path, half: bool = False, licence: str | None = None) -> None:
        """Writes a folder that `enat.load` reads: settings, network, tokenizer and a model card (docs/python.md).

        Args:
            folder: is made if there is none; a README.md in it stays if a user has written or changed it.
            half: whether the weights are stored in float16.
            licence: of the weights, such as `CC BY-SA 4.0`; None for the one that the weights came with, if any.

        Raises:
            InputError: if the settings are unknown or could not be read again, or the folder can't be written or is of
                another program.
        """
        description = {**self.description, **({"licence": licence} if licence else {})}
        names = self.class_names if self.class_names != list(map(str, range(self.net.num_classes))) else None
        save_folder(_path_of("folder", folder), self.net, self.tokenizer, names, description, half)


def load(weights: str | Path, tokenizer: str | Path | None = None, device: torch.device | str = "cpu") -> Pipeline:
    """Loads weights with their sampler and their tokenizer; runs no code of the files.

    Args:
        weights: a folder that `Pipeline.save` or task=export wrote; or a checkpoint of a training run, which says by
            itself what it needs; or an official ENAT-B or ENAT-L; or the name of such a folder on the Hugging Face Hub,
            `OWNER/NAME` or `OWNER/NAME@REVISION`. What exists here goes before a name on the hub.
        tokenizer: the file of the VQGAN, such as `vqgan_jax_strongaug.ckpt`; None for the tokenizer of the run.
        device: where images are drawn.

    Raises:
        InputError: if a file is missing, holds something else, or does not say what it needs.
    """
    check_device(device)
    given = _path_of("weights", weights)
    tokenizer = None if tokenizer is None else _path_of("tokenizer", tokenizer)
    path = find_weights(str(given) if isinstance(weights, str) else given)
    content = read_file(path)
    refuse_tokenizer(content.get("settings"), path, "that of a network, and this one as tokenizer=FILE beside it")
    content = content if tokenizer else with_found_tokenizer(content, path)
    settings = content.get("settings")
    state, kind = state_of_file(content, path)
    if settings is None and kind == "official" and tokenizer is not None:
        settings = official_settings(state, path)
    elif not isinstance(settings, dict):
        raise InputError(
            f"{path}: expected the checkpoint of a training run, or an official one with tokenizer=FILE, the VQGAN."
        )
    of_tokenizer = dict(find_part(settings, "tokenizer", path))
    if tokenizer is not None:
        of_tokenizer["folder" if "folder" in of_tokenizer else "weights"] = str(tokenizer)
    settings = {**settings, "tokenizer": of_tokenizer}
    check_parts(settings, state, path, with_tokenizer=config_of(path) is not None and tokenizer is None)
    net = build_from_settings(settings["module"]["net"])
    load_exactly(net, split_blocks(state, net.encoder_depth), path)
    sampler = build_from_settings(settings["sampler"])
    built_tokenizer = build_from_settings(of_tokenizer)
    if not isinstance(sampler, Sampler) or not isinstance(built_tokenizer, Tokenizer):
        raise InputError(f"{path}: its settings are damaged: sampler or tokenizer is something else.")
    if built_tokenizer.has_other_codes(content):
        print(f"Note: {path} was trained on the tokens of another tokenizer, so that its images may be wrong.")
    described = describe(content, path)
    described |= {"settings": settings, "weights_kind": kind}
    return Pipeline(net.eval(), sampler, built_tokenizer, content.get("class_names"), described).to(device)
