"""task=sample: draws images of chosen classes, as PNG files, as a grid, and as they are revealed step by step."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, MinLen
from lightning.pytorch.utilities import rank_zero_only

from callbacks.sample_grid import save_grid, save_reveal
from data.images import load_rgb
from enat.errors import InputError, counted
from enat.files import read_record, refuse_other_work, write_atomically
from enat.generation import UNCONDITIONAL, check_class_names, find_class_ids, sample_images
from enat.images import file_name, to_pil
from enat.sampler import Sampler
from experiments.runtime.checkpoint import Checkpoint
from experiments.runtime.progress import ImageProgress
from experiments.runtime.provenance import hardware, sampler_settings
from experiments.runtime.run_files import options_that_matter
from experiments.runtime.scoring import Unfinished

MAX_ROWS = 16  # classes in the grid
MAX_COLUMNS = 8  # images of a class in the grid

Picture = tuple[int, int]  # class id, and number in the class


def choose_classes(
    classes: Sequence[int | str] | int | str | None,
    names: Sequence[str],
    hint: str = "images_per_class=N draws more images",
) -> list[int]:
    """Returns the ids of the classes that a user chooses; without a choice, of all.

    Args:
        classes: by id or name.
        names: of all classes.
        hint: says what draws more of a class that is chosen twice.

    Raises:
        InputError: for a class that there is not, or that is chosen twice.
    """
    if classes is None and "null" in names:
        rank_zero_only(print)(
            "Note: classes=null stands for all classes; 'classes=[\"null\"]' is the one of this name."
        )
    class_ids = find_class_ids(classes, names)
    if len(set(class_ids)) < len(class_ids):
        raise InputError(f"classes={classes}: a class is named twice; {hint} of each.")
    return class_ids


def refuse_other_files(folder: Path, expected: Collection[Path]) -> None:
    """Refuses a folder with other files than those expected, apart from what a stopped process left of one.

    Names that begin with a dot are of the system, such as `.DS_Store`, which macOS makes in folders that it shows.

    Raises:
        InputError: naming the first of the other files.
    """
    others = [path for path in sorted(folder.glob("[!.]*")) if path not in expected and path.suffix != ".partial"]
    if others:
        raise InputError(f"{others[0]}: the folder holds other files; expected another output=DIR.")
    for path in folder.glob("*.partial"):
        path.unlink()


def refuse_other_tokenizer(output: Path, sha256: str) -> None:
    """Refuses a folder whose finished images are of another tokenizer; `run_task` has compared all else.

    Raises:
        InputError: naming the hash of both.
    """
    results = output / "results.json"
    if results.exists():
        earlier = {"tokenizer_sha256": read_record(results).get("tokenizer_sha256")}
        refuse_other_work(output, earlier, {"tokenizer_sha256": sha256}, "images of another tokenizer")


def draw(checkpoint: Checkpoint, sampler: Sampler, files: Mapping[Picture, Path], seed: int, batch_size: int) -> None:
    """Draws images and writes each to its file, on all processes; those whose files are there are not drawn again."""
    processes = checkpoint.processes
    missing = processes.on_first(lambda: [picture for picture, path in files.items() if not path.exists()])
    own = missing[processes.rank :: processes.size]
    with ImageProgress(processes.rank) as bars:
        progress = bars.add("drawing")
        progress.on_start(len(files), len(files) - len(missing))
        for start in range(0, len(own), batch_size):
            together = own[start : start + batch_size]
            with checkpoint.context():
                images = sample_images(checkpoint.net, sampler, checkpoint.tokenizer, together, seed)
            for picture, image in zip(together, to_pil(images), strict=True):
                write_atomically(files[picture], partial(image.save, format="PNG"))
            progress.on_images(len(together) * processes.size)
    processes.gather(None)  # waits for all


def save_grid_and_reveal(
    checkpoint: Checkpoint,
    sampler: Sampler,
    files: Mapping[Picture, Path],
    names: Sequence[str],
    seed: int,
    batch_size: int,
    to: Path,
) -> tuple[Path, Path]:
    """Saves the grid of the first images of the first classes, and the steps in which the first of each appears.

    Returns:
        The paths of the two pictures, `grid.png` and `reveal.png` in the folder `to`.
    """
    rows = list(dict.fromkeys(class_id for class_id, _ in files))[:MAX_ROWS]
    columns = min(MAX_COLUMNS, 1 + max(number for _, number in files))
    row_names = [names[class_id] for class_id in rows]
    pixels = [np.asarray(load_rgb(files[class_id, number])) for class_id in rows for number in range(columns)]
    if len({image.shape for image in pixels}) > 1:
        raise InputError(f"{to / 'images'}: its images have several sizes, so that some are of another run.")
    grid = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255  # (n, 3, H, W)
    batches: list[list[torch.Tensor]] = []
    firsts = [(class_id, 0) for class_id in rows]
    for start in range(0, len(firsts), batch_size):
        batches.append([])
        together = firsts[start : start + batch_size]
        with checkpoint.context():
            sample_images(checkpoint.net, sampler, checkpoint.tokenizer, together, seed, batches[-1])
    steps = [torch.cat(step).cpu() for step in zip(*batches, strict=True)]
    return (
        save_grid(grid, row_names, to / "grid.png"),
        save_reveal(grid[::columns], steps, checkpoint.net.mask_token_id, row_names, to / "reveal.png"),
    )


def sample(
    checkpoint: Checkpoint,
    sampler: Sampler,
    classes: Annotated[list[int | str], MinLen(1)] | int | str | None,
    images_per_class: Annotated[int, Ge(1)],
    batch_size: Annotated[int, Ge(1)],
    seed: int,
    output: str,
    settings: Mapping[str, Any],
    composition: Mapping[str, Any],
) -> dict[str, Any]:
    """Draws images with a checkpoint. An image depends on the seed, its class and its number in the class alone.

    Args:
        checkpoint, sampler: make the images.
        classes: class ids or names, or a single one, or `unconditional`; None for all.
        images_per_class: the number of images of each class.
        batch_size: images that are drawn at a time.
        seed: of the noise.
        output: the folder of the pictures.
        settings: the whole configuration.
        composition: the same with its references, such as `${seed}`.

    Returns:
        `images` (the folder), `num_images`, `grid` and `reveal` (PNG files), `classes`, and all that they depend on.

    Raises:
        InputError: for a class that the network does not have, and for a folder with other images.
    """
    names = check_class_names(checkpoint.class_names, checkpoint.net.num_classes)
    class_ids = choose_classes(classes, names)
    names.append(UNCONDITIONAL)  # has the null class id
    folder = Path(output) / "images"
    files = {
        (class_id, number): folder / file_name((class_id, number), names, seed)
        for class_id in class_ids
        for number in range(images_per_class)
    }
    checkpoint.processes.on_first(lambda: refuse_other_files(folder, set(files.values())))
    depends_on = options_that_matter(composition, "trainer", "weights", "batch_size")
    facts = checkpoint.facts
    identity = {"weights_sha256": facts["sha256"], "tokenizer": facts["tokenizer_sha256"], **depends_on}
    refuse_other_tokenizer(Path(output), facts["tokenizer_sha256"])
    Unfinished(output, identity, checkpoint.processes, has_begun=any(map(Path.exists, files.values())))
    folder.mkdir(parents=True, exist_ok=True)
    draw(checkpoint, sampler, files, seed, batch_size)
    if checkpoint.processes.rank > 0:
        return {}
    grid, reveal = save_grid_and_reveal(checkpoint, sampler, files, names, seed, batch_size, Path(output))
    print(f"Pictures: {grid}, {reveal}; {counted(len(files), 'image')} in {folder}")
    return {
        "images": str(folder),
        "num_images": len(files),
        "grid": str(grid),
        "reveal": str(reveal),
        "classes": [names[class_id] for class_id in class_ids],
        "sampler": sampler_settings(settings),
        **facts,
        **hardware(checkpoint.device, checkpoint.processes.size),
    }
