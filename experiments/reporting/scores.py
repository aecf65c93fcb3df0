"""Tables of scores on the terminal, and their means over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table

from enat.errors import counted, printable
from enat.metrics.evaluation import Result, Scores

OVER_SEEDS = "_std_over_seeds"  # beside a mean; `..._std` is over the splits or subsets of one set of images


def print_scores(rows: Mapping[str, Scores], notes: Iterable[str], skipped: Iterable[str] = ()) -> None:
    """Prints a row for each name and protocol, a column for each score with its deviation, and the notes below."""
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
        print(printable(line))


def notes_on(result: Result, num_features: int) -> list[str]:
    """Returns what a reader of scores has to be told; `num_features` is the width of the pool features."""
    notes = []
    for count in {int(row["num_images"]) for row in result.scores.values() if "fid" in row}:
        if count <= num_features:
            notes.append(
                f"FID of {count} images with {num_features} features: the covariance is singular and the FID too "
                "high; compare it only with FIDs of as many images."
            )
    for facts in result.reference.values():
        if facts["num_images"] is not None and facts["num_images"] <= num_features:
            notes.append(
                f"The reference has {counted(facts['num_images'], 'image')}, no more than {num_features} features."
            )
    if result.left_out:
        notes.append(
            f"Without {', '.join(result.left_out)}: the reference has no images, classes, single features or "
            "statistics for that."
        )
    if "sfid" in result.left_out:
        notes.append("sFID needs the statistics of spatial features, which task=statistics sfid=true writes.")
    return list(dict.fromkeys([*notes, *result.notes]))


def over_seeds(by_seed: Sequence[Scores]) -> Scores:
    """Returns the means over seeds with the standard deviations beside them; the scores themselves of a single seed."""
    if len(by_seed) == 1:
        return by_seed[0]
    merged: Scores = {}
    for protocol, first in by_seed[0].items():
        merged[protocol] = {}
        for name in (name for name in first if not name.endswith("_std")):
            values = [scores[protocol][name] for scores in by_seed]
            if name == "num_images":
                merged[protocol][name] = first[name]
                continue
            merged[protocol][name] = fmean(values)
            merged[protocol][f"{name}{OVER_SEEDS}"] = stdev(values)
    return merged
