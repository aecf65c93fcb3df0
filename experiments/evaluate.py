"""task=evaluate: generate images with a checkpoint and score them."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from data.scored_images import ImageWriter
from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.files import write_atomically
from enat.metrics.evaluation import Evaluation, Scores
from enat.metrics.images import GeneratedImages, Images
from enat.metrics.processes import Processes
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmarking.workload import sampling_cost
from experiments.runtime.command_line import UNFINISHED
from experiments.runtime.progress import ImageProgress
from experiments.runtime.provenance import provenance, sampler_settings

OVER_SEEDS = "_std_over_seeds"  # beside a mean; `..._std` is over the splits or subsets of one set of images


class Result(NamedTuple):
    """What became of a set of images."""

    scores: Scores
    skipped: list[str]  # why images could not be read, of the reference too
    files: list[str]  # that were written
    sha256: str  # of the images at 8 bits, block by block
    reference: dict[str, Any]  # what they were compared with, by protocol
    notes: list[str]  # what a reader of the scores has to be told


@dataclass
class Unfinished:
    """The folder where the work of a task is kept until its results are written; the same command goes on.

    Args:
        output: the task's folder, which `run_task` rids of unfinished work in the end.
        identity: plain values that all of the work depends on.
        processes: share the work.

    Raises:
        InputError: naming what differs, if the folder holds work with another identity.
    """

    output: str
    identity: Mapping[str, Any]
    processes: Processes

    def __post_init__(self) -> None:
        self.folder = Path(self.output) / UNFINISHED
        self.processes.on_first(self._open)

    def _open(self) -> None:
        path, wanted = self.folder / "work.json", json.loads(json.dumps(self.identity))
        begun = len([*self.folder.glob("*.json"), *self.folder.glob("*/state.safetensors")]) > 1
        if not begun:  # or stopped before there was anything to lose
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_atomically(path, json.dumps(wanted, indent=1).encode())
            return
        found = json.loads(path.read_text())
        changed = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        if changed:
            raise InputError(
                f"{self.folder}: unfinished work with another {', '.join(changed)}; expected the same settings, "
                "another output=DIR, or resume=false for a new folder."
            )

    def recall(self, name: str) -> Result | None:
        """What is finished already under a name."""
        path = self.folder / f"{name}.json"
        return Result(**json.loads(path.read_text())) if path.exists() else None

    def keep(self, name: str, result: Result) -> None:
        """Keeps what is finished, and no longer what it was made from."""
        write_atomically(self.folder / f"{name}.json", json.dumps(result._asdict()).encode())
        shutil.rmtree(self.folder / name)


def score(
    evaluation: Evaluation,
    images: Images,
    title: str,
    device: torch.device,
    processes: Processes,
    unfinished: Unfinished | None = None,
    writer: ImageWriter | None = None,
    finish: Callable[[ImageWriter], str] | None = None,
    full: bool = True,
) -> Result:
    """Scores images with a progress bar; all processes have to call it. See `Evaluation.score`.

    Args:
        unfinished: where work is kept by title; None to keep nothing.
        writer: writes the images too.
        finish: what is done with the writer in the end; names what it has written.
    """
    name = "".join(c if c.isalnum() or c in "=.-" else "_" for c in title)
    folder = unfinished.folder if unfinished else None
    if unfinished and (kept := processes.on_first(lambda: unfinished.recall(name))):
        return kept
    if writer is not None and folder is not None:
        processes.on_first(lambda: None if (folder / name).exists() else writer.clear())
    with ImageProgress(processes.rank) as progress:
        watchers = (progress.watcher("reference"), progress.watcher(title))
        if writer is not None:
            watchers[1].on_block = writer.write
        scores = evaluation.score(images, device, processes, full, folder, name, watchers)
    files = processes.on_first(lambda: [finish(writer)] if writer and finish else [])
    reference, notes = processes.on_first(lambda: (evaluation.facts(), evaluation.notes(scores)))
    result = Result(scores, watchers[0].skipped + watchers[1].skipped, files, watchers[1].sha256, reference, notes)
    if unfinished:
        processes.on_first(lambda: unfinished.keep(name, result))
    return result


def print_scores(rows: Mapping[str, Scores], notes: Iterable[str], skipped: Iterable[str] = ()) -> None:
    """Prints a table with a row per name and protocol, and a column per score with its deviation; notes below."""
    columns = list(dict.fromkeys(name for scores in rows.values() for row in scores.values() for name in row))
    shown = [name for name in columns if not name.endswith(("_std", OVER_SEEDS))]
    table = Table("", "protocol", *[name.removeprefix("num_").replace("_", " ") for name in shown])
    for title, scores in rows.items():
        for protocol, row in scores.items():
            cells = []
            for name in shown:
                deviation = row.get(f"{name}{OVER_SEEDS}", row.get(f"{name}_std"))
                cell = f"{row[name]:,.4g}" if name in row else ""
                cells.append(cell if deviation is None else f"{cell} ±{deviation:.2g}")
            table.add_row(title, protocol, *cells)
    Console(width=max(Console().width, 24 + 16 * (len(shown) + 1))).print(table)
    for line in dict.fromkeys([*(f"Skipped {reason}" for reason in skipped), *(f"Note: {note}" for note in notes)]):
        print(line)


def over_seeds(by_seed: Sequence[Scores]) -> Scores:
    """Mean over seeds, and the deviation over them beside it; a single seed's scores stay as they are."""
    if len(by_seed) == 1:
        return by_seed[0]
    merged: Scores = {}
    for protocol, first in by_seed[0].items():
        merged[protocol] = {}
        for name in (name for name in first if not name.endswith("_std")):
            values = [scores[protocol][name] for scores in by_seed]
            merged[protocol][name] = fmean(values)
            if name != "num_images":
                merged[protocol][f"{name}{OVER_SEEDS}"] = stdev(values)
    return merged


class Checkpoint:
    """A network with a file's weights on the device of this process, and the processes that share the work.

    Args:
        net, tokenizer: make images, in the fabric's precision; features and scores are always in full precision.
        weights: a checkpoint of ours, with its EMA weights, or an official one, or safetensors.
        fabric: the processes, launched.

    Raises:
        InputError: for weights that do not fit.
    """

    def __init__(self, net: ENAT, tokenizer: Tokenizer, weights: str | None, fabric: Fabric):
        tokenizer.check_sizes(net.codebook_size, net.num_tokens)
        self.source = load_weights(net, weights)
        self.device, self.processes = fabric.device, Processes()
        precision = fabric._precision
        self.facts = {
            **self.source,
            "net": net.sizes,
            "network_precision": precision.precision,
            "tokenizer_sha256": tokenizer.fingerprint(),
        }
        self.net, self.tokenizer = net, tokenizer
        for part in (net, tokenizer):
            precision.convert_module(part).to(self.device)
        # With weights that are cast once, Fabric's context would change the default type, and that of the noise.
        self.context = nullcontext if precision.precision.endswith("-true") else fabric.autocast

    def images(self, evaluation: Evaluation, sampler: Sampler, seed: int) -> GeneratedImages:
        """The images of a seed."""
        return evaluation.generated(self.net, sampler, self.tokenizer, None, seed, self.context)

    def identity(self, evaluation: Evaluation, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values that scores depend on; `settings` are the sampler's."""
        made_by = {name: value for name, value in self.facts.items() if name not in ("weights", "kind")}
        return {**evaluation.identity(), **made_by, "sampler": dict(settings)}


def uneven_classes(num_images: int, num_classes: int) -> list[str]:
    """What to tell where some classes have one image more than others."""
    rest = num_images % num_classes
    more = (
        f"{num_images} images of {num_classes} classes: the first {rest} classes have one image more than the others."
    )
    return [more] if rest else []


def evaluate(
    checkpoint: Checkpoint,
    sampler: Sampler,
    evaluation: Evaluation,
    seeds: list[int],
    png: bool,
    npz: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores a checkpoint's images.

    Args:
        checkpoint, sampler: make the images.
        evaluation: scores the images.
        seeds: each gives a set of images; of several, scores are means with deviations.
        png: also write each image as a PNG file below `output`.
        npz: also write them as ADM's suite reads them, `arr_0`, uint8 (n, H, W, 3).
        output: where unfinished work is kept, so that the same command goes on.
        settings: the whole configuration.

    Returns:
        The first protocol's scores; `scores` by protocol, `by_seed`, and all that they depend on.
    """
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={seeds}: expected different integers of at least 0.")
    processes, options = checkpoint.processes, sampler_settings(settings)
    identity = checkpoint.identity(evaluation, options)
    unfinished = Unfinished(output, {**identity, "png": png, "npz": npz}, processes)
    finish = partial(ImageWriter.finish, num_images=evaluation.num_images, npz=npz, keep=png)
    results = []
    for seed in seeds:
        images = checkpoint.images(evaluation, sampler, seed)
        writer = ImageWriter(Path(output) / f"images_seed_{seed}") if png or npz else None
        results.append(
            score(evaluation, images, f"seed {seed}", checkpoint.device, processes, unfinished, writer, finish)
        )
    if processes.rank > 0:
        return {}
    scores, skipped = over_seeds([result.scores for result in results]), results[0].skipped
    notes = results[0].notes + uneven_classes(evaluation.num_images, checkpoint.net.num_classes)
    print_scores({f"{checkpoint.source['kind']} weights": scores}, notes, skipped)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "skipped": skipped,
        "seeds": list(seeds),
        "by_seed": {str(seed): result.scores for seed, result in zip(seeds, results, strict=True)},
        "images_sha256": [result.sha256 for result in results],
        "images": [file for result in results for file in result.files],
        "cost": sampling_cost(checkpoint.net, sampler, evaluation.block_size, checkpoint.context),
        "settings": identity,
        "reference": results[0].reference,
        **checkpoint.facts,
        **provenance(checkpoint.device, processes.size),
    }
