"""task=edit: keeps a part of images and draws the rest anew (docs/editing.md)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from callbacks.sample_grid import save_grid
from data.images import center_crop, find_images, load_rgb
from enat.editing import Editor, cost, mark_region, tokens_under
from enat.errors import InputError
from enat.files import write_atomically
from enat.generation import UNCONDITIONAL, check_class_names, find_class_ids
from enat.images import to_pil
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.runtime.checkpoint import Checkpoint
from experiments.runtime.progress import ImageProgress
from experiments.runtime.provenance import hardware, sampler_settings
from experiments.sample import refuse_other_files

MAX_ROWS = 16  # of the picture
MAX_COLUMNS = 10
MAX_NAME = 40  # letters of a class in the name of a file
COVERED = 0.5  # grey of the region that is drawn, in the picture
Share = Annotated[float, Interval(ge=0, le=1)]


class Region:
    """Says which part of an image is drawn anew: what `mask`, `box` or `scale` say, or all of it.

    Args:
        mask: an image file that is white where tokens are drawn, and black where they are kept; None for none.
        box: left, top, right and bottom of what is drawn, as shares of width and height; None for none.
        scale: the image is shrunk by this ratio, and what is around it is drawn; 1 for none.
        keep: share of the tokens of the region that are kept all the same, at random positions.
    """

    def __init__(
        self,
        mask: str | None = None,
        box: Sequence[float] | None = None,
        scale: Annotated[float, Gt(0), Le(1)] = 1.0,
        keep: Share = 0.0,
    ):
        self.mask = mask
        self.box = box
        self.scale = scale
        self.keep = keep

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image (1, channels, H, W), shrunk or not, and which of its pixels are drawn, (H, W)."""
        mask = None
        if self.mask is not None:
            white = np.asarray(center_crop(load_rgb(Path(self.mask)), image.shape[2]).convert("L")) > 127
            mask = torch.from_numpy(white)
        return mark_region(image, mask, self.box, self.scale)


def read_images(images: str | Sequence[str] | None, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Reads images as training does: (1, channels, H, W) in [0, 1], by the names of their files.

    Raises:
        InputError: for a file that can't be read, or none at all.
    """
    listed = [images] if isinstance(images, str) else list(images or [])
    files = [file for name in listed for file in (find_images(Path(name))[0] if Path(name).is_dir() else [Path(name)])]
    if not files:
        raise InputError(f"image={images}: expected an image file, a list of some, or a folder of images.")
    read: dict[str, Tensor] = {}
    for file in files:
        picture = center_crop(load_rgb(file), tokenizer.resolution).convert("L" if tokenizer.channels == 1 else "RGB")
        pixels = np.atleast_3d(np.asarray(picture, dtype=np.float32)) / 255
        name = file.stem if file.stem not in read else f"{file.stem}_{len(read)}"
        read[name] = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return read


def result_files(
    folder: Path, images: Iterable[str], class_ids: Sequence[int], class_names: Sequence[str], seed: int, count: int
) -> dict[tuple[str, int, int], Path]:
    """Returns the file of each result, by the name of the image, the class id and the number of the result."""
    words = [re.sub(r"[^\w-]+", "_", name)[:MAX_NAME] for name in class_names]
    return {
        (name, class_id, number): folder / f"{name}_{words[class_id]}_seed_{seed}_{number:04d}.png"
        for name, class_id, number in product(images, class_ids, range(count))
    }


def costs(net: ENAT, sampler: Sampler, num_drawn: int) -> dict[str, Any]:
    """Says how many tokens of an image are drawn and kept, and what an edit costs if that is known ahead."""
    counted = None if sampler.is_adaptive else cost(net, sampler, num_drawn)
    return {"tokens_drawn": num_drawn, "tokens_kept": net.num_tokens - num_drawn, "cost": counted}


def save_strip(rows: Mapping[str, Tensor], path: Path) -> Path:
    """Saves the picture of the first rows, whose columns are the image, what is drawn, and results."""
    titles = ["before", "to draw", *("" for _ in range(MAX_COLUMNS))][: len(next(iter(rows.values())))]
    return save_grid(torch.cat(list(rows.values())), list(rows), path, titles)


def draw_edits(
    editor: Editor,
    context: Callable[[], AbstractContextManager[Any]],
    images: Mapping[str, Tensor],
    files: Mapping[tuple[str, int, int], Path],
    class_names: Sequence[str],
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Tensor], int]:
    """Edits images and writes the results, `batch_size` at a time.

    Args:
        editor, context: edit an image, within a precision.
        images: by name.
        files: by name of the image, class id and number of the result.
        class_names: by id.
        seed: of the noise.
        batch_size: results that are drawn at a time.

    Returns:
        The first rows of the picture, by their names: the image, what is drawn, results; and how many tokens lie under
        the region.
    """
    rows: dict[str, Tensor] = {}
    class_ids = dict.fromkeys(class_id for _, class_id, _ in files)
    per_row = len(files) // (len(images) * len(class_ids))
    with ImageProgress(0) as bars:
        progress = bars.add("editing")
        progress.on_start(len(files), 0)
        for (name, before), class_id in product(images.items(), class_ids):
            results = []
            for start in range(0, per_row, batch_size):
                numbers = range(start, min(start + batch_size, per_row))
                with context():
                    shown, drawn, edited = editor(before, class_id, [(seed, number) for number in numbers])
                for number, picture in zip(numbers, to_pil(edited), strict=True):
                    write_atomically(files[name, class_id, number], partial(picture.save, format="PNG"))
                results.append(edited)
                progress.on_images(len(numbers))
            if len(rows) < MAX_ROWS:
                covered = shown.masked_fill(drawn, COVERED)
                rows[f"{name}, {class_names[class_id]}"] = torch.cat([shown, covered, *results])[:MAX_COLUMNS].cpu()
    return rows, int(tokens_under(drawn, editor.tokenizer.grid).sum())


def edit(
    checkpoint: Checkpoint,
    sampler: Sampler,
    image: str | list[str] | None,
    other: str | None,
    weight: Share,
    region: Region,
    soft_blend: Annotated[int, Ge(0)] | None,
    classes: list[int | str] | int | str,
    results_per_image: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    seed: int,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Edits images: each of them, for each class, several times.

    Args:
        checkpoint, sampler: draw the new tokens.
        image: an image file, several, or a folder.
        other: an image file of which tokens are mixed in; with `region.keep`, an interpolation of two images.
        weight: the share of the kept tokens that come from `other`.
        region, soft_blend: what is drawn anew, and how it is shown; see `Editor`.
        classes: ids or names of the classes of the new tokens, or `unconditional`.
        results_per_image, batch_size: how often each image is edited for each class, and how many are drawn at a time.
        seed: of the noise.
        output: the folder of the pictures.
        settings: the whole configuration.

    Returns:
        `images`, the folder; `num_images`; `strip`, a PNG file with what is drawn and the results; the operations.

    Raises:
        InputError: for images or classes that there are not, and for a folder with other images.
    """
    net, tokenizer = checkpoint.net, checkpoint.tokenizer
    if checkpoint.processes.rank > 0:
        return {}  # the first process does all of the work
    names = check_class_names(checkpoint.class_names, net.num_classes)
    class_ids, names = find_class_ids(classes, names), [*names, UNCONDITIONAL]
    images = read_images(image, tokenizer)
    mixed_in = None if other is None else next(iter(read_images(other, tokenizer).values()))
    editor = Editor(net, sampler, tokenizer, region, region.keep, mixed_in, weight, soft_blend)
    folder = Path(output) / "images"
    files = result_files(folder, images, class_ids, names, seed, results_per_image)
    refuse_other_files(folder, set(files.values()))
    folder.mkdir(parents=True, exist_ok=True)
    rows, num_tokens = draw_edits(editor, checkpoint.context, images, files, names, seed, batch_size)
    strip = save_strip(rows, folder.with_name("strip.png"))
    print(f"Picture: {strip}; {len(files):,} images in {folder}")
    return {
        "images": str(folder),
        "num_images": len(files),
        "strip": str(strip),
        **costs(net, sampler, max(1, round((1 - region.keep) * num_tokens))),
        "classes": [names[class_id] for class_id in class_ids],
        "sampler": sampler_settings(settings),
        **checkpoint.facts,
        **hardware(checkpoint.device, checkpoint.processes.size),
    }
