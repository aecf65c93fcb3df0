"""task=edit: keeps a part of images and draws the rest anew (docs/editing.md)."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from callbacks.sample_grid import save_grid
from data.images import find_images, load_upright
from enat.editing import Editor, cost, mark_region, tokens_under
from enat.errors import InputError, counted, printable
from enat.files import read_record, refuse_other_content, sha256_of, write_atomically
from enat.generation import UNCONDITIONAL, check_class_names
from enat.images import cut_word, file_name, refuse_other_shape, square_pixels, to_pil, white_pixels
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.unicode import composed
from experiments.runtime.checkpoint import Checkpoint
from experiments.runtime.progress import ImageProgress
from experiments.runtime.provenance import hardware, sampler_settings
from experiments.sample import choose_classes, refuse_other_files, refuse_other_tokenizer

MAX_ROWS = 16  # of the picture
MAX_COLUMNS = 10
COVERED = 0.5  # grey of the region that is drawn, in the picture
Share = Annotated[float, Interval(ge=0, le=1)]


class Region:
    """Says which part of an image is drawn anew: what `mask`, `box` or `scale` say, or all of it.

    Args:
        mask: an image file of the shape of each image, white where tokens are drawn, and black or transparent where
            they are kept; None for none.
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
        self.mask = None if mask is None else load_upright(Path(mask), "RGBA")
        self.mask_file = mask
        self.mask_name = f"region.mask={mask}"
        self.box = box
        self.scale = scale
        self.keep = keep

    def refuse_other_shape(self, size: tuple[int, int]) -> None:
        """Refuses an image, by width and height of its file, whose shape is not that of the mask."""
        if self.mask is not None:
            refuse_other_shape(self.mask, size, self.mask_name)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the image (1, channels, H, W), shrunk or not, and which of its pixels are drawn, (H, W)."""
        mask = None if self.mask is None else white_pixels(self.mask, image.shape[2], self.mask_name)
        return mark_region(image, mask, self.box, self.scale)


def list_images(images: str | Sequence[str] | None, region: Region) -> tuple[list[Path], list[str]]:
    """Lists the image files that an option names: a file, several, or a folder of them. Each is read, but not kept.

    Returns:
        The files, and the reasons why others in folders are left out.

    Raises:
        InputError: for no file at all, a named one that can't be read, and an image of another shape than the mask.
    """
    files: list[Path] = []
    skipped: list[str] = []
    for path in map(Path, [images] if isinstance(images, str) else images or []):
        found, reasons = find_images(path) if path.is_dir() else ([path], [])
        skipped += reasons
        for file in found:
            try:
                size = load_upright(file).size
            except InputError as error:
                if file is path:
                    raise
                skipped.append(str(error).rstrip("."))
            else:
                region.refuse_other_shape(size)
                files.append(file)
    if not files:
        why = f"; {'; '.join(skipped)}" if skipped else ""
        raise InputError(f"image={images}: expected an image file, a list of some, or a folder of images{why}.")
    return files, skipped


def name_images(files: Sequence[Path]) -> list[str]:
    """Names images after their files. Files of an equal name get a number, so that no two images have one name.

    Names that differ only in capital letters or in Unicode form count as equal, for on some disks they are one file.
    """
    words = [cut_word(file.stem) for file in files]
    taken = {composed(word).casefold() for word in words}
    given: set[str] = set()
    names = []
    for word in words:
        name = word
        if composed(word).casefold() in given:
            name = next(other for number in count(2) if composed(other := f"{word}_{number}").casefold() not in taken)
        taken.add(composed(name).casefold())
        given.add(composed(name).casefold())
        names.append(name)
    return names


def read_image(file: Path, tokenizer: Tokenizer) -> Tensor:
    """Reads an image as training does, but upright: (1, channels, H, W) in [0, 1]."""
    return square_pixels(load_upright(file), tokenizer.resolution, tokenizer.channels)


def choose_images(images: str | Sequence[str] | None, region: Region) -> tuple[dict[str, Path], list[str]]:
    """Chooses the images that an option names, and prints what is left out.

    Returns:
        The files by names of which no two are equal, and the reasons why others are left out; see `list_images`.
    """
    files, skipped = list_images(images, region)
    for reason in skipped:
        print(f"Skipped {printable(reason)}")
    return dict(zip(name_images(files), files, strict=True)), skipped


def read_other(other: str | None, tokenizer: Tokenizer) -> Tensor | None:
    """Reads the image of which tokens are mixed in; None for none.

    Raises:
        InputError: for a folder, and for a file that can't be read.
    """
    if other is None:
        return None
    if Path(other).is_dir():
        raise InputError(f"other={other}: this is a folder; expected one image file.")
    return read_image(Path(other), tokenizer)


def hash_inputs(images: Mapping[str, Path], other: str | None, region: Region) -> dict[str, str]:
    """Returns the sha256 of each file that an edit reads: the images by the names of their results, and options."""
    named = {f"image {name}": file for name, file in images.items()}
    options = {"other": other, "region.mask": region.mask_file}
    named |= {name: Path(file) for name, file in options.items() if file is not None}
    return {name: sha256_of(file) for name, file in named.items()}


def refuse_other_results(folder: Path, files: Collection[Path], inputs: Mapping[str, str], tokenizer: str) -> None:
    """Refuses a folder of images with other files, or with results of other images or of another tokenizer."""
    refuse_other_files(folder, files)
    refuse_other_tokenizer(folder.parent, tokenizer)
    results = folder.with_name("results.json")
    recorded = read_record(results).get("inputs_sha256") if results.exists() else None
    refuse_other_content(folder.parent, recorded, inputs, "results of other images")


def result_files(
    folder: Path, images: Iterable[str], class_ids: Sequence[int], class_names: Sequence[str], seed: int, per_image: int
) -> dict[tuple[str, int, int], Path]:
    """Returns the file of each result, by the name of the image, the class id and the number of the result."""
    return {
        (name, class_id, number): folder / f"{name}_{file_name((class_id, number), class_names, seed)}"
        for name, class_id, number in product(images, class_ids, range(per_image))
    }


def costs(net: ENAT, sampler: Sampler, num_drawn: int) -> dict[str, Any]:
    """Says how many tokens of an image are drawn and kept, and what an edit costs if that is known ahead."""
    counted = None if sampler.is_adaptive else cost(net, sampler, num_drawn)
    return {"tokens_drawn": num_drawn, "tokens_kept": net.num_tokens - num_drawn, "cost": counted}


def save_strip(rows: Mapping[str, Tensor], editor: Editor, path: Path) -> Path:
    """Saves the picture of the first rows, whose columns are those of `draw_edits`."""
    is_placed = isinstance(editor.region, Region) and editor.region.scale < 1
    named = ["placed" if is_placed else "before", *(["other"] if editor.other is not None else []), "region"]
    titles = [*named, *("" for _ in range(MAX_COLUMNS))][: len(next(iter(rows.values())))]
    return save_grid(torch.cat(list(rows.values())), list(rows), path, titles)


def draw_edits(
    editor: Editor,
    context: Callable[[], AbstractContextManager[Any]],
    images: Mapping[str, Path],
    files: Mapping[tuple[str, int, int], Path],
    class_names: Sequence[str],
    seed: int,
    batch_size: int,
) -> tuple[dict[str, Tensor], int]:
    """Edits images and writes the results, `batch_size` at a time.

    Args:
        editor, context: edit an image, within a precision.
        images: files by name, each of which is read when it is edited.
        files: by name of the image, class id and number of the result.
        class_names: by id.
        seed: of the noise.
        batch_size: results that are drawn at a time.

    Returns:
        The first rows of the picture, by their names: the image, the other one if any, the region, which is drawn but
        for the tokens that are kept in it, and results; and how many tokens lie under the region.
    """
    rows: dict[str, Tensor] = {}
    class_ids = dict.fromkeys(class_id for _, class_id, _ in files)
    per_row = len(files) // (len(images) * len(class_ids))
    with ImageProgress(0) as bars:
        progress = bars.add("editing")
        progress.on_start(len(files), 0)
        for (name, image), class_id in product(images.items(), class_ids):
            before = read_image(image, editor.tokenizer)
            results: list[Tensor] = []  # for the picture
            for start in range(0, per_row, batch_size):
                numbers = range(start, min(start + batch_size, per_row))
                with context():
                    shown, drawn, edited = editor(before, class_id, [(seed, number) for number in numbers])
                for number, picture in zip(numbers, to_pil(edited), strict=True):
                    write_atomically(files[name, class_id, number], partial(picture.save, format="PNG"))
                results += edited[: MAX_COLUMNS - len(results)]
                progress.on_images(len(numbers))
            if len(rows) < MAX_ROWS:
                covered = shown.masked_fill(drawn, COVERED)
                others = [] if editor.other is None else [editor.other.to(shown.device)]
                columns = torch.cat([shown, *others, covered, torch.stack(results)])[:MAX_COLUMNS]
                rows[f"{name}, {class_names[class_id]}"] = columns.cpu()
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
        other, weight: an image file whose tokens are mixed in, and the share of the kept tokens that come from it.
        region, soft_blend: what is drawn anew, and how it is shown; see `Editor`.
        classes: ids or names of the classes of the new tokens, or `unconditional`.
        results_per_image, batch_size: how often each image is edited for each class, and how many are drawn at a time.
        seed, output, settings: the seed of the noise, the folder of the pictures, and the whole configuration.

    Returns:
        The folder of the images, their number, the strip, why files are skipped, hashes of the inputs, the operations.

    Raises:
        InputError: for images or classes that there are not, and for a folder with results of others.
    """
    net, tokenizer = checkpoint.net, checkpoint.tokenizer
    if checkpoint.processes.rank > 0:
        return {}  # the first process does all of the work
    names = check_class_names(checkpoint.class_names, net.num_classes)
    class_ids = choose_classes(classes, names, "results_per_image=N draws more results")
    names.append(UNCONDITIONAL)  # has the null class id
    images, skipped = choose_images(image, region)
    editor = Editor(net, sampler, tokenizer, region, region.keep, read_other(other, tokenizer), weight, soft_blend)
    folder = Path(output) / "images"
    files = result_files(folder, images, class_ids, names, seed, results_per_image)
    inputs = hash_inputs(images, other, region)
    refuse_other_results(folder, set(files.values()), inputs, checkpoint.facts["tokenizer_sha256"])
    folder.mkdir(parents=True, exist_ok=True)
    rows, num_tokens = draw_edits(editor, checkpoint.context, images, files, names, seed, batch_size)
    strip = save_strip(rows, editor, folder.with_name("strip.png"))
    print(f"Picture: {strip}; {counted(len(files), 'image')} in {folder}")
    return {
        "images": str(folder),
        "num_images": len(files),
        "strip": str(strip),
        "skipped": skipped,
        "inputs_sha256": inputs,
        **costs(net, sampler, max(1, round((1 - region.keep) * num_tokens))),
        "classes": [names[class_id] for class_id in class_ids],
        "sampler": sampler_settings(settings),
        **checkpoint.facts,
        **hardware(checkpoint.device, checkpoint.processes.size),
    }
