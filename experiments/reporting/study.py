"""A study: the jobs of a multirun's folder, and the groups of jobs that differ in nothing but their seed."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from enat.errors import InputError
from experiments.runtime.multirun import JOB

COST = ("parameters", "gflop_per_image", "images_per_second")
UNFINISHED = "not finished"


def settings_of(overrides: list[str]) -> dict[str, Any]:
    """What a job was asked for, as Hydra reads it: by full name, and of `a={b:1,c:2}` the settings a.b and a.c."""
    found: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        name, value = override.package or override.key_or_group, override.value()
        parts = {f"{name}.{part}": one for part, one in value.items()} if isinstance(value, Mapping) else {name: value}
        found |= {part: "null" if one is None else one for part, one in parts.items()}
    return found


def read_scalars(run: Path) -> pd.DataFrame:
    """The scalars of a run by optimiser step, one row each; of a start, what it logged until a later one went on.

    Raises:
        InputError: if a file can't be read.
    """
    scalars = pd.DataFrame()
    starts = sorted(run.glob("metrics/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    for path in starts:
        try:
            rows = pd.read_csv(path).dropna(subset="step").groupby("step").first()
        except pd.errors.EmptyDataError:  # stopped before its first scalar
            continue
        except (ValueError, KeyError) as error:  # pandas' own errors are ValueErrors
            raise InputError(f"{path}: expected scalars with a column step: {error}") from error
        if len(rows):  # or stopped after the names of the columns
            # A later start may add to the very step where it goes on: the scores after training, say.
            scalars = rows.combine_first(scalars[scalars.index <= rows.index.min()])
    return scalars


def natural(path: Path | str) -> list[tuple[float, str]]:
    """A key to sort paths by, numbers in them as numbers: 2 comes before 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(float(part), "") if part.isdigit() else (math.inf, part) for part in parts if part]


class Study:
    """The jobs below a folder, in the order in which they were asked for.

    Args:
        folder: of a multirun.

    Attributes:
        jobs: a row each: `job` (its folder), settings that vary, `seed`, every number of its results, `error` or None.
        varied: the settings whose values differ between jobs, without the seed.
        groups: a row for each combination of varied settings: `seeds`, means, deviations over seeds as `NAME_std`
            (no value for a single seed), and the `errors` of its jobs.

    Raises:
        InputError: if a file can't be read, or there is no job.
    """

    def __init__(self, folder: Path):
        read = sorted((self._read(path) for path in folder.rglob(JOB)), key=lambda job: job["order"])
        if not read:
            raise InputError(f"runs={folder}: there is no job of a multirun in it.")
        settings = pd.DataFrame([job["settings"] for job in read]).astype(object)
        settings = settings.where(settings.notna(), "default")
        seeds = list(settings["seed"]) if "seed" in settings else ["default"] * len(read)
        differ = [name for name in settings if name != "seed" and settings[name].map(_same).nunique() > 1]
        last = Counter(name.rpartition(".")[2] for name in differ)
        short = {name: end if last[end := name.rpartition(".")[2]] == 1 else name for name in differ}
        settings = settings[differ].rename(columns=short)
        self.varied = list(short.values())
        names = [str(job["folder"].relative_to(folder)) for job in read]
        facts = pd.DataFrame([job["results"] for job in read], index=range(len(read)))
        facts = facts.drop(columns=[*self.varied, "seed"], errors="ignore")  # such as the number of images
        errors = pd.Series([job["error"] for job in read], dtype=object)
        self.jobs = pd.concat([settings.assign(seed=seeds), facts, errors.rename("error")], axis=1)
        self.jobs.insert(0, "job", names)
        self.folders = {name: job["folder"] for name, job in zip(names, read, strict=True)}
        self.groups = self._grouped()

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            job = json.loads(path.read_text())
            results_file = path.parent / "results.json"
            results = json.loads(results_file.read_text()) if results_file.exists() else None
            numbers = {
                name: value
                for name, value in {**(results or {}), **((results or {}).get("cost") or {})}.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            error = job["error"] or (UNFINISHED if results is None else None)
            settings = settings_of(job["overrides"])
            order = natural(path.parents[1]), job.get("number", math.inf), natural(path.parent)
            return {"order": order, "folder": path.parent, "settings": settings, "results": numbers, "error": error}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, HydraException) as error:
            raise InputError(f"{path}: expected what a multirun writes ({error}).") from error

    def members(self) -> list[tuple[str, pd.DataFrame]]:
        """The jobs of each group, with what the group is called in pictures."""
        if not self.varied:
            return [("all", self.jobs)]
        same = self.jobs[self.varied].map(_same).agg(tuple, axis=1)
        return [(self._label(jobs.iloc[0][self.varied]), jobs) for _, jobs in self.jobs.groupby(same, sort=False)]

    def is_numeric(self, name: str) -> bool:
        """Whether all values of a setting are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.groups[name])

    def axis_and_lines(self, most: int) -> tuple[str, str | None] | None:
        """The setting that a picture has over its axis, and the one that tells its lines apart, if there are two.

        None where lines would say little: for words, for more settings, for more lines than `most`, or for settings
        that change together.
        """
        numeric = [name for name in self.varied if self.is_numeric(name)]
        if not numeric or len(self.varied) > 2:
            return None
        values = self.groups[self.varied].map(_same).nunique()
        axis = max(numeric, key=lambda name: int(values[name]))
        other = next((name for name in self.varied if name != axis), None)
        lines = int(values[other]) if other else 1
        return (axis, other) if lines <= most and 2 * lines <= len(self.groups) else None

    def _label(self, values: pd.Series) -> str:
        """A group in a few words: names and values of what varies; a word that stands alone needs no name."""
        texts = {name: shown(value, 4).replace("_", " ") for name, value in values.items()}
        if len(texts) == 1 and isinstance(values.iloc[0], str):
            return next(iter(texts.values()))
        return ", ".join(f"{str(name).replace('_', ' ')} {text}" for name, text in texts.items())

    def _grouped(self) -> pd.DataFrame:
        rows = []
        numbers = [name for name in self.jobs.select_dtypes("number") if name not in (*self.varied, "seed")]
        numbers = [name for name in numbers if not name.endswith("_std")]  # over the parts of one set of images
        for label, jobs in self.members():
            done = jobs[jobs["error"].isna()]
            row: dict[str, Any] = {"label": label, **jobs.iloc[0][self.varied].to_dict(), "seeds": len(done)}
            for name in numbers:
                row |= {name: done[name].mean(), f"{name}_std": done[name].std()}
            counted = jobs["error"].dropna().value_counts()
            row["errors"] = "; ".join(f"{count} x {error}" for error, count in counted.items())
            rows.append(row)
        return pd.DataFrame(rows)


def _same(value: Any) -> str:
    """A text that equal values share: 1 and 1.0 are one value, 1 and true are not."""
    return repr(float(value)) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def shown(value: Any, digits: int = 6) -> str:
    """A setting's value, as people write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def markdown_table(study: Study) -> str:
    """The groups as a table, scores with their deviations over seeds, the best FID in bold."""
    groups, columns = study.groups, [*study.varied, "seeds"]
    best = groups["fid"].idxmin() if "fid" in groups and groups["fid"].notna().any() else None
    titles = {"fid": "FID", "inception_score": "Inception Score", "class_accuracy": "class accuracy"}
    titles |= {"gflop_per_image": "GFLOP/image", "images_per_second": "images/s"}
    columns += [n for n in (*titles, "parameters") if n in groups and groups[n].notna().any() and n not in columns]
    if groups["errors"].any():
        columns.append("errors")
    lines = [[titles.get(name, name.replace("_", " ")) for name in columns]]
    for index, group in groups.iterrows():
        cells = [_cell(name, group) for name in columns]
        if index == best:
            cells[columns.index("fid")] = f"**{cells[columns.index('fid')]}**"
        lines.append(cells)
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(columns), *rows[1:]])


def _cell(name: str, group: pd.Series) -> str:
    value, deviation = group[name], group.get(f"{name}_std")
    if isinstance(value, float) and pd.isna(value):
        return ""
    if name == "parameters":
        return f"{value / 1e6:,.2f} M"
    if name in COST:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    if name in ("fid", "inception_score", "class_accuracy"):
        return f"{value:.3f}" + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")
    return shown(value)
