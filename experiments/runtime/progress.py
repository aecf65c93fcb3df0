"""Shows the progress of long work: bars for images, a line for each measurement."""

import sys
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from enat.images import Progress


class Speed(ProgressColumn):
    """Shows images per second or, for slow work, seconds per image."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        if not speed:
            return Text("")  # before the second batch
        if speed < 1:
            return Text(f"{1 / speed:.1f} s/image")
        return Text(f"{speed:.1f} images/s" if speed < 100 else f"{speed:,.0f} images/s")


COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())


def tell(stage: str) -> None:
    """Prints what is measured now, since a benchmark of a large network takes minutes."""
    print(f"Measuring {stage}", file=sys.stderr, flush=True)


class ImageProgress:
    """Shows progress bars for sets of images, on rank 0 only; a context manager."""

    def __init__(self, rank: int):
        self.progress = rich_progress.Progress(*COLUMNS, console=Console(stderr=True), disable=rank > 0)

    def add(self, title: str) -> Progress:
        """Adds a bar, which is shown when the number of images is known."""
        bar = self.progress.add_task(title, total=None, visible=False)

        def start(total: int, done: int) -> None:
            self.progress.update(bar, total=total, visible=True)
            if done and not self.progress.disable:
                self.progress.console.print(f"{title}: {done:,} of {total:,} images are there already.")
                self.progress.update(bar, description=f"{title}, the rest", total=total - done)

        return Progress(on_start=start, on_images=lambda count: self.progress.advance(bar, count))

    def __enter__(self) -> "ImageProgress":
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
