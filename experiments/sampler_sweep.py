"""task=sampler_sweep: one checkpoint under many settings of the sampler, as a table and a plot."""

import csv
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from callbacks.loggers import log_table
from enat.errors import InputError
from enat.metrics.evaluation import Evaluation, Scores
from enat.sampler import Sampler
from experiments.evaluate import Checkpoint, Unfinished, print_scores, score
from experiments.runtime.provenance import provenance, sampler_settings


def plot(rows: Sequence[Mapping[str, Any]], names: Sequence[str], protocol: str, path: Path) -> None:
    """FID over Inception Score: a line for each setting of all options but the first, along which that one varies."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    lines: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault(tuple(row[name] for name in names[1:]), []).append(row)
    for others, points in lines.items():
        label = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in zip(names[1:], others, strict=True))
        x, y = ([point[name] for point in points] for name in ("inception_score", "fid"))
        axes.plot(x, y, "o-", label=label or None)
        for point, place in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(f"{point[names[0]]:g}", place, textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel="Inception Score", ylabel=f"FID ({protocol})")
    axes.set_title(f"Each point with its {names[0].replace('_', ' ')}")
    axes.grid(alpha=0.3)
    if len(names) > 1:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def combinations_of(vary: Mapping[str, Sequence[float] | None]) -> list[dict[str, float]]:
    """Every combination of the values by option.

    Raises:
        InputError: if nothing varies, or for what is no list of numbers.
    """
    values = {name: chosen for name, chosen in vary.items() if chosen is not None}
    for name, chosen in values.items():
        kinds = (int,) if name == "num_steps" else (int, float)
        if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not all(type(v) in kinds for v in chosen):
            expected = "integers" if len(kinds) == 1 else "numbers"
            raise InputError(f"vary.{name}={chosen}: expected a list of {expected}.")
    if not values or not all(values.values()):
        raise InputError('vary: expected values for at least one option, such as "vary.guidance_scale=[0,1,2,4]".')
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def sampler_sweep(
    checkpoint: Checkpoint,
    sampler: Callable[..., Sampler],
    evaluation: Evaluation,
    vary: Mapping[str, Sequence[float] | None],
    logger: Mapping[str, Logger | None],
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Scores a checkpoint under every combination of some sampler options; FID, Inception Score and sFID.

    Args:
        checkpoint: makes the images.
        sampler: makes a sampler with those options changed.
        evaluation: scores the images.
        vary: values by option; None leaves one as it is.
        logger: by name; Weights & Biases gets the table and the plot.
        output: folder of `table.csv` and `fid_is.png`; the same command goes on where the work is.
        settings: the whole configuration.

    Returns:
        `rows`, the best of them by FID, the files, and all that they depend on.

    Raises:
        InputError: if nothing varies, or for a value that the sampler does not take.
    """
    combinations = combinations_of(vary)
    names = list(combinations[0])
    samplers = [sampler(**changes) for changes in combinations]  # all, so that a wrong one ends it at once
    processes, folder = checkpoint.processes, Path(output)
    fixed = {name: value for name, value in sampler_settings(settings).items() if name not in names}
    identity = checkpoint.identity(evaluation, fixed) | {"seed": evaluation.seed}
    unfinished = Unfinished(output, identity, processes)
    done: dict[str, Scores] = {}
    table: list[dict[str, Any]] = []
    skipped: list[str] = []
    for changes, changed in zip(combinations, samplers, strict=True):
        title = ", ".join(f"{name}={value}" for name, value in changes.items())
        images = checkpoint.images(evaluation, changed, evaluation.seed)
        found = score(evaluation, images, title, checkpoint.device, processes, unfinished, full=False)
        done[title], skipped = found.scores, found.skipped or skipped
        table += [{**changes, "protocol": protocol, **row} for protocol, row in done[title].items()]
        if processes.rank == 0:
            write_table(folder / "table.csv", table)
    if processes.rank > 0:
        return {}
    print_scores(done, found.notes, skipped)
    rows = [row for row in table if row["protocol"] == table[0]["protocol"]]
    plot(rows, names, table[0]["protocol"], folder / "fid_is.png")
    log_table(logger, "sampler settings", table, [folder / "fid_is.png"])
    return {
        "best": min(rows, key=lambda row: row["fid"]),
        "rows": table,
        "table": str(folder / "table.csv"),
        "plot": str(folder / "fid_is.png"),
        "skipped": skipped,
        "settings": identity,
        **checkpoint.facts,
        **provenance(checkpoint.device, processes.size),
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV, at once."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
