"""Scores a set of images for a task: with a progress bar, in work that the same command goes on with."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.scored_images import ImageWriter
from enat.errors import InputError
from enat.files import (
    EXPECTED,
    by_full_name,
    make_own_folder,
    read_record,
    refuse_other_content,
    refuse_other_work,
    remove_own_folder,
    write_atomically,
)
from enat.images import Images
from enat.metrics.accumulation import STATE
from enat.metrics.evaluation import REFERENCE, Evaluation, Result
from enat.processes import Processes
from experiments.runtime.progress import ImageProgress
from experiments.runtime.task import UNFINISHED


@dataclass
class Unfinished:
    """The folder where the work of a task is kept until its results are written; the same command goes on from it.

    Args:
        output: the task's folder; `run_task` removes the unfinished work from it in the end.
        identity: plain values that the work depends on.
        processes: share the work.
        has_begun: whether there is work of this task already that is kept elsewhere, such as images.

    Raises:
        InputError: naming what differs, if the folder holds work or results with another identity, or unknown work.
    """

    output: str
    identity: Mapping[str, Any]
    processes: Processes
    has_begun: bool = False

    def __post_init__(self) -> None:
        self.folder = Path(self.output) / UNFINISHED
        self.processes.on_first(self._open)

    def _open(self) -> None:
        path = self.folder / "work.json"
        wanted = json.loads(json.dumps(self.identity))
        self._refuse_to_replace(wanted)
        begun = [state.parent.name for state in self.folder.glob(f"*/{STATE}")]
        scored = any(name != REFERENCE for name in begun) or len(list(self.folder.glob("*.json"))) > 1
        earlier = read_record(path) if path.exists() else None
        if earlier is not None and (self.has_begun or scored):
            refuse_other_work(self.folder, earlier, wanted, "unfinished work")
            return
        if self.has_begun and not (self.folder.parent / "results.json").exists():
            raise InputError(f"{self.output}: holds images of unknown settings; expected another output=DIR.")
        if earlier is None or {**earlier, "images": None} != {**wanted, "images": None}:
            remove_own_folder(self.folder)  # was stopped before there was anything to lose
        make_own_folder(self.folder)  # with the features of the reference, if only images differ
        write_atomically(path, json.dumps(wanted, indent=1).encode())

    def _refuse_to_replace(self, wanted: Mapping[str, Any]) -> None:
        """Refuses to replace the results of other images or other files, whose paths may be the same."""
        path = self.folder.with_name("results.json")
        results = read_record(path) if path.exists() else {}
        recorded = by_full_name(results.get("settings"))
        refuse_other_content(path.parent, recorded, by_full_name(wanted), "results of other images or files")

    def recall(self, name: str) -> tuple[Result, list[str]] | None:
        """Returns the result under a name and the files that belong to it, if they are finished already.

        Raises:
            InputError: for a file that holds something else.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        content = read_record(path)
        try:
            return Result(**content["result"]), content["files"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} holds no scores; {EXPECTED}.") from error

    def keep(self, name: str, result: Result, files: Sequence[str]) -> None:
        """Keeps what is finished under a name, and removes what it was made from."""
        content = {"result": result._asdict(), "files": list(files)}
        write_atomically(self.folder / f"{name}.json", json.dumps(content).encode())
        shutil.rmtree(self.folder / name, ignore_errors=True)


def score(
    evaluation: Evaluation,
    images: Images,
    title: str,
    device: torch.device,
    processes: Processes,
    unfinished: Unfinished | None = None,
    writer: ImageWriter | None = None,
    finish: Callable[[ImageWriter], str] | None = None,
) -> tuple[Result, list[str]]:
    """Scores images with a progress bar; every process has to call. See `Evaluation.score`.

    Args:
        evaluation: computes the scores.
        images: the set of images.
        title: is shown, and names the unfinished work.
        device: where features are computed.
        processes: share the work.
        unfinished: where work is kept; None keeps nothing.
        writer: writes the images too.
        finish: is called with the writer in the end and returns what it has written.

    Returns:
        The result, and the files that were written.
    """
    name = "".join(c if c.isalnum() or c in "=.-" else "_" for c in title)
    folder = unfinished.folder if unfinished else None
    if unfinished and (finished := processes.on_first(lambda: unfinished.recall(name))):
        return finished
    if writer is not None and folder is not None:
        processes.on_first(lambda: writer.prepare(anew=not (folder / name).exists()))
    with ImageProgress(processes.rank) as bars:
        progress = (bars.add("reference"), bars.add(title))
        if writer is not None:
            progress[1].on_block = writer.write
        result = evaluation.score(images, device, processes, folder, name, progress)
    files = processes.on_first(lambda: [finish(writer)] if writer and finish else [])
    if unfinished:
        processes.on_first(lambda: unfinished.keep(name, result, files))
    return result, files
