"""Reads what runs leave in their folders: the scalars that they logged, and the results of a multirun's jobs."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from enat.errors import InputError
from enat.files import read_record
from experiments.reporting.published import Published, published_row
from experiments.runtime.multirun import JOB
from experiments.runtime.run_files import options_that_matter, read_settings

UNFINISHED = "not finished"
MAX_INTEGER = 2**1000  # as a number with a fraction, a larger one is infinite
SCORES = {"fid": "FID", "inception_score": "Inception Score"}  # that the plots show and the rows are compared by


class Job(NamedTuple):
    """A job of a multirun, or a run by itself."""

    folder: Path
    order: float  # place of the job in its multirun
    options: dict[str, float | str]  # by full name: what a job's overrides say, or all options of a run
    numbers: dict[str, float]  # of its results
    protocol: str | None  # of the scores that have no protocol in their names
    error: str | None  # None if it ended well
    published: Published | None  # the row of the paper that it repeats
    config: dict[str, Any]  # all settings


def natural_sort_key(path: Path | str) -> str:
    """Gives a key that sorts paths by the numbers in them: 2 comes before 10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), str(path))


def find_runs(*folders: Path) -> list[Path]:
    """Finds the folders of all runs in folders or anywhere below them: of trainings, and of tasks that gave scores.

    Links to folders are followed; a run is found once, whatever leads to it. Paths are absolute if one of `folders` is.
    """
    if any(folder.is_absolute() for folder in folders):
        folders = tuple(folder.absolute() for folder in folders)
    found: dict[str, Path] = {}
    for folder in folders:
        for run in _runs_below(folder):
            found.setdefault(os.path.realpath(run), run)
    return sorted(found.values(), key=natural_sort_key)


def _runs_below(folder: Path) -> set[Path]:
    found = set()
    for path in _files_below(folder):
        if path.name == "metrics.csv" and path.parent.match("metrics/version_*"):
            found.add(path.parents[2])
        elif path.name == JOB or (path.name == "results.json" and _has_fid(path)):
            found.add(path.parent)
    return {run for run in found if not _is_below_a_job(run, folder)}


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and anywhere below it; each folder is searched once."""
    seen = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        yield from (path for name in names if (path := Path(place, name)).is_file())


def _is_below_a_job(run: Path, folder: Path) -> bool:
    """Says whether a run is a task on the checkpoint of a job in `folder`, whose own results are those of the study."""
    return any((parent / JOB).exists() for parent in run.parents if parent.is_relative_to(folder))


def _has_fid(path: Path) -> bool:
    """Says whether a file has the results of a task that gave an FID; files of other programs have none."""
    try:
        return "fid" in read_record(path)
    except InputError:
        return False


def ablation_of(run: Path) -> str | None:
    """Returns which of the paper's ablations a job is; None for other runs."""
    path = run / JOB
    value = read_job(path).options.get("ablation") if path.exists() else None
    return None if value is None else str(value)


def common_folder(runs: Sequence[Path]) -> Path:
    """Returns the folder below which all runs are; of a single run, its parent."""
    return Path(os.path.commonpath([run.parent for run in runs]))


def read_scalars(run: Path) -> pd.DataFrame:
    """Reads the scalars of a run, a row for each optimiser step.

    A resumed run has a file for each start. Of steps that it repeated, the last values count.

    Raises:
        InputError: if a file can't be read.
    """
    scalars = pd.DataFrame()
    paths = [path for path in run.glob("metrics/version_*/metrics.csv") if path.is_file()]
    for path in sorted(paths, key=natural_sort_key):
        try:
            rows = pd.read_csv(path).dropna(subset="step").groupby("step").first()
        except pd.errors.EmptyDataError:  # stopped before its first scalar
            continue
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            raise InputError(f"{path}: expected scalars with a column step: {error}") from error
        if len(rows):  # scores after training may join the last step of the file before
            scalars = rows.combine_first(scalars[scalars.index <= rows.index.min()])
    return scalars


def _number_or_text(value: Any) -> float | str:
    """Makes option values comparable: 1 and 1.0 are equal numbers, true is a text and not equal to 1."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    is_number = isinstance(value, float) or (isinstance(value, int) and abs(value) <= MAX_INTEGER)
    return value if is_number else str(value)


def read_options(overrides: Sequence[str]) -> dict[str, float | str]:
    """Reads the overrides of a job as Hydra does, by full name; `a={b:1,c:2}` gives the options `a.b` and `a.c`."""
    options: dict[str, float | str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        name, value = override.package or override.key_or_group, override.value()
        values = {f"{name}.{part}": one for part, one in value.items()} if isinstance(value, dict) else {name: value}
        options |= {key: _number_or_text(one) for key, one in values.items()}
    return options


def read_job(path: Path) -> Job:
    """Reads a job's `job.json` and the `results.json` beside it.

    Raises:
        InputError: if a file is not what a multirun writes.
    """
    try:
        record = read_record(path)
        results_file = path.with_name("results.json")
        results = read_record(results_file) if results_file.exists() else {}
        numbers, protocol = _numbers_of(results)
        options = read_options(record["overrides"])
        if study := record.get("study"):  # which sweep of a study ran a job does not matter
            options = {name: value for name, value in options.items() if name != "sweep"} | {"study": study}
        config = _config_of(path.parent)
        error = record["error"] or _error_of(results, numbers)
        published = published_row(study, options, config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, HydraException) as wrong:
        raise InputError(f"{path}: expected what a multirun writes ({wrong}).") from wrong
    return Job(path.parent, record.get("number", math.inf), options, numbers, protocol, error, published, config)


def read_run(folder: Path) -> Job:
    """Reads the `config.yaml` and the `results.json` of a run that is no job of a multirun.

    Raises:
        InputError: if a file is not what a run writes.
    """
    results_file = folder / "results.json"
    try:
        config = _config_of(folder)
        results = read_record(results_file) if results_file.exists() else {}
        numbers, protocol = _numbers_of(results)
    except (OSError, ValueError, AttributeError) as wrong:
        raise InputError(f"{folder}: expected what a run writes ({wrong}).") from wrong
    options = {name: _number_or_text(value) for name, value in options_that_matter(config).items()}
    return Job(folder, math.inf, options, numbers, protocol, _error_of(results, numbers), None, config)


def _error_of(results: Mapping[str, Any], numbers: Mapping[str, float]) -> str | None:
    """Says what is wrong with results; None for those of a run that ended well."""
    if not results:
        return UNFINISHED
    scores = {title: numbers[name] for name, title in SCORES.items() if name in numbers}
    wrong = [
        f"{title} is {'not a number' if math.isnan(score) else 'infinite'}"
        for title, score in scores.items()
        if not math.isfinite(score)
    ]
    return ", ".join(wrong) or None


def _config_of(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run; none of one that was stopped before it wrote them."""
    path = folder / "config.yaml"
    return read_settings(path) if path.exists() else {}


def _numbers_of(results: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
    """Gives the numbers of a `results.json`, those of further protocols as `NAME (PROTOCOL)`; and the main protocol."""
    by_protocol = results.get("scores") or {}
    main = results.get("protocol") or next(iter(by_protocol), None)
    values = {**results, **(results.get("cost") or {})}
    for protocol, scores in by_protocol.items():
        if protocol != main:
            values |= {f"{name} ({protocol})": value for name, value in scores.items()}
    numbers = {name: v for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    if huge := [name for name, v in numbers.items() if isinstance(v, int) and abs(v) > MAX_INTEGER]:
        raise ValueError(f"{huge[0]} has too many digits")
    return numbers, main
