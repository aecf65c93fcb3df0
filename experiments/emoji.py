"""task=emoji: draws emoji as images in class folders, for an experiment in colour that needs no download."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from rich.progress import Progress

from data.toy.emoji import CLASSES, draw_emoji
from experiments.runtime.progress import COLUMNS


def emoji(side: Annotated[int, Ge(1)], per_class: Annotated[int, Ge(1)] | None, output: str) -> dict[str, Any]:
    """Draws all emoji of OpenMoji.

    Args:
        side: height and width of the images in pixels.
        per_class: the first so many of each class; None for all.
        output: the folder that gets a folder for each class.

    Returns:
        The number of images and of classes, and the folder.
    """
    images = Path(output) / "images"
    with Progress(*COLUMNS) as progress:
        bar = progress.add_task("drawing emoji")
        count = draw_emoji(
            images, side, per_class, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    return {"images": count, "classes": len(CLASSES), "folder": str(images)}
