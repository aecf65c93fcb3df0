"""task=emoji: draws emoji as images in class folders, for an experiment in colour that needs no download."""

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, MinLen
from rich.progress import Progress

from data.toy.emoji import draw_emoji
from experiments.runtime.progress import COLUMNS


def emoji(
    side: Annotated[int, Ge(1)],
    classes: Annotated[list[str], MinLen(1)] | None,
    per_class: Annotated[int, Ge(1)] | None,
    output: str,
) -> dict[str, Any]:
    """Draws emoji of OpenMoji.

    Args:
        side: height and width of the images in pixels.
        classes: the names of those to draw; None for all.
        per_class: at most so many of each class, evenly spaced in Unicode's list; None for all.
        output: the folder that gets a folder for each class.

    Returns:
        The number of images and of classes, and the folder.

    Raises:
        InputError: for a class that does not exist, or a package that is not installed.
    """
    images = Path(output) / "images"
    with Progress(*COLUMNS) as progress:
        bar = progress.add_task("drawing emoji")
        counts = draw_emoji(
            images, side, classes, per_class, lambda done, total: progress.update(bar, completed=done, total=total)
        )
    return {"images": counts.total(), "classes": len(counts), "folder": str(images)}
