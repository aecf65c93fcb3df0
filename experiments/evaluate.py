"""task=evaluate: generate images with a checkpoint and score them."""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from data.scored_images import ImageWriter
from enat.errors import InputError
from enat.files import write_atomically
from enat.metrics.evaluation import Evaluation, Scores
from enat.metrics.images import GeneratedImages, Images
from enat.metrics.processes import Processes
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from enat.weights import load_weights
from experiments.device import launch
from experiments.progress import ImageProgress
from experiments.provenance import provenance, sampler_settings


def score(
    evaluation: Evaluation,
    images: Images,
    title: str,
    device: torch.device,
    processes: Processes,
    folder: Path | None = None,
    writer: ImageWriter | None = None,
    full: bool = True,
) -> tuple[Scores, list[str]]:
    """Scores images with a progress bar; all processes have to call it. See `Evaluation.score`.

    Args:
        folder: where work is kept by title, unfinished or finished, which is not done again; None to keep nothing.
        writer: writes the images too.

    Returns:
        The scores by protocol, and the images that could not be read.
    """
    identity = json.loads(json.dumps(evaluation.identity(images, full)))
    name = "".join(c if c.isalnum() or c in "=._-" else "_" for c in title)
    finished = folder / name / "scores.json" if folder else None

    def recall() -> Any:
        kept = json.loads(finished.read_text()) if finished and finished.exists() else {}
        return kept if kept.get("identity") == identity else None

    def keep() -> None:
        if finished:
            shutil.rmtree(finished.parent)
            finished.parent.mkdir()
            content = {"identity": identity, "scores": scores, "skipped": skipped}
            write_atomically(finished, json.dumps(content).encode())

    if kept := processes.on_first(recall):
        return kept["scores"], kept["skipped"]
    with ImageProgress(processes.rank) as progress:
        watchers = (progress.watcher("reference"), progress.watcher(title))
        if writer is not None:
            watchers[1].on_block = writer.write
        scores = evaluation.score(images, device, processes, full, folder, name, watchers)
    skipped = watchers[0].skipped + watchers[1].skipped
    processes.on_first(keep)
    return scores, skipped


def print_scores(rows: Mapping[str, Scores], notes: Iterable[str]) -> None:
    """Prints a table with a row per name and protocol, and a column per score with its deviation; notes below."""
    columns = list(dict.fromkeys(name for scores in rows.values() for row in scores.values() for name in row))
    shown = [name for name in columns if not name.endswith("_std")]
    table = Table("", "protocol", *[name.removeprefix("num_").replace("_", " ") for name in shown])
    for title, scores in rows.items():
        for protocol, row in scores.items():
            cells = [
                f"{row[name]:,.4g}" + (f" ±{row[f'{name}_std']:.2g}" if f"{name}_std" in row else "")
                if name in row
                else ""
                for name in shown
            ]
            table.add_row(title, protocol, *cells)
    Console(width=max(Console().width, 24 + 16 * (len(shown) + 1))).print(table)
    for note in dict.fromkeys(notes):
        print(f"Note: {note}")


def over_seeds(by_seed: Sequence[Scores]) -> Scores:
    """Mean over seeds, with the deviation as `..._std`; a single seed's scores stay as they are."""
    if len(by_seed) == 1:
        return by_seed[0]
    merged: Scores = {}
    for protocol, first in by_seed[0].items():
        merged[protocol] = {}
        for name in (name for name in first if not name.endswith("_std")):
            values = [scores[protocol][name] for scores in by_seed]
            merged[protocol][name] = fmean(values)
            if name != "num_images":
                merged[protocol][f"{name}_std"] = stdev(values)
    return merged


class Checkpoint:
    """A network with a file's weights on the device of this process, and the processes that share the work.

    Args:
        net, tokenizer: make images.
        weights: a checkpoint of ours, with its EMA weights, or an official one, or safetensors.
        accelerator, devices, num_nodes, precision: as of Lightning's Trainer; precision is that of the network and
            the tokenizer, features and scores are always in full precision.

    Raises:
        InputError: for weights that do not fit.
    """

    def __init__(
        self,
        net: ENAT,
        tokenizer: Tokenizer,
        weights: str | None,
        accelerator: str,
        devices: int | str,
        num_nodes: int,
        precision: str,
    ):
        tokenizer.check_sizes(net.codebook_size, net.num_tokens)
        self.source = load_weights(net, weights)
        fabric = launch(accelerator, devices, num_nodes, precision)
        self.net, self.tokenizer, self.device, self.processes = net, tokenizer, fabric.device, Processes()
        net.to(self.device)
        self.context: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if precision == "32-true" else fabric.autocast
        )
        self.facts = {
            **self.source,
            "network_precision": precision,
            "tokenizer_sha256": tokenizer.fingerprint(),
        }

    def images(
        self, evaluation: Evaluation, sampler: Sampler, settings: Mapping[str, Any], seed: int
    ) -> GeneratedImages:
        """The images of a seed; `settings` are the sampler's, as plain values."""
        made_by = {name: value for name, value in self.facts.items() if name not in ("weights", "kind")}
        identity = {**made_by, "sampler": dict(settings)}
        return evaluation.generated(self.net, sampler, self.tokenizer, None, seed, self.context, identity)


def evaluate(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    evaluation: Evaluation,
    weights: str | None,
    seeds: list[int],
    png: bool,
    npz: bool,
    accelerator: str,
    devices: int | str,
    num_nodes: int,
    precision: str,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores a checkpoint's images.

    Args:
        net, tokenizer, weights, accelerator, devices, num_nodes, precision: see `Checkpoint`.
        sampler: makes token ids.
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
    checkpoint = Checkpoint(net, tokenizer, weights, accelerator, devices, num_nodes, precision)
    processes, work, options = checkpoint.processes, Path(output) / "unfinished", sampler_settings(settings)
    by_seed, files = [], []
    for seed in seeds:
        images = checkpoint.images(evaluation, sampler, options, seed)
        writer = ImageWriter(Path(output) / f"images_seed_{seed}") if png or npz else None
        scores, _ = score(evaluation, images, f"seed {seed}", checkpoint.device, processes, work, writer)
        by_seed.append(scores)
        if writer is not None:
            files.append(processes.on_first(partial(writer.finish, evaluation.num_images, npz, keep=png)))
    if processes.rank > 0:
        return {}
    scores = over_seeds(by_seed)
    notes = evaluation.notes(scores)
    if rest := evaluation.num_images % net.num_classes:
        classes = f"{evaluation.num_images} images of {net.num_classes} classes"
        notes.append(f"{classes}: the first {rest} classes have one image more than the others.")
    print_scores({f"{checkpoint.source['kind']} weights": scores}, notes)
    shutil.rmtree(work)
    main = next(iter(scores))
    return {
        **scores[main],
        "protocol": main,
        "scores": scores,
        "notes": notes,
        "seeds": list(seeds),
        "by_seed": dict(zip(map(str, seeds), by_seed, strict=True)),
        "images": [str(file) for file in files],
        "sampler": options,
        "settings": evaluation.identity(images),
        **checkpoint.facts,
        **provenance(checkpoint.device, processes.size),
    }
