"""A study: the jobs of a multirun's folder, and the groups of jobs that differ in nothing but their seed."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from enat.errors import InputError
from experiments.multirun import JOB

COST = ("parameters", "gflop_per_image", "images_per_second")
UNFINISHED = "not finished"


def settings_of(overrides: list[str]) -> dict[str, Any]:
    """What a job was asked for: `a.b=1` is the setting b, `a={b:1,c:2}` are b and c; values as YAML reads them."""
    found: dict[str, Any] = {}
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        plain = yaml.safe_load(re.sub(r":(?=\S)", ": ", value)) if value.startswith("{") else yaml.safe_load(value)
        name = re.split(r"[.@]", key)[-1]
        found.update(plain if isinstance(plain, Mapping) else {name: str(plain) if plain is None else plain})
    return found


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
        read = sorted((self._read(path) for path in folder.rglob(JOB)), key=lambda job: job["number"])
        if not read:
            raise InputError(f"runs={folder}: there is no job of a multirun in it.")
        settings = pd.DataFrame([job["settings"] for job in read]).astype(object)
        settings = settings.where(settings.notna(), "default")
        differ = [name for name in settings if settings[name].map(str).nunique() > 1]
        self.varied = [name for name in differ if name != "seed"]
        facts = pd.DataFrame([{"job": str(job["folder"].relative_to(folder)), **job["results"]} for job in read])
        errors = pd.Series([job["error"] for job in read], name="error", dtype=object)
        seeds = settings[["seed"]] if "seed" in settings else pd.DataFrame({"seed": ["default"] * len(read)})
        self.jobs = pd.concat([facts[["job"]], settings[self.varied], seeds, facts.drop(columns="job"), errors], axis=1)
        self.folders = {str(job["folder"].relative_to(folder)): job["folder"] for job in read}
        self.groups = self._grouped()

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            job = json.loads(path.read_text())
            results_file = path.parent / "results.json"
            results = json.loads(results_file.read_text()) if results_file.exists() else None
            numbers = {
                name: value
                for name, value in {**(results or {}), **(results or {}).get("cost", {})}.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            error = job["error"] or (UNFINISHED if results is None else None)
            settings = settings_of(job["overrides"])
            return {**job, "folder": path.parent, "settings": settings, "results": numbers, "error": error}
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: expected what a multirun writes ({error}).") from error

    def members(self) -> dict[str, pd.DataFrame]:
        """The jobs of each group, by what the group is called in pictures."""
        if not self.varied:
            return {"all": self.jobs}
        labels = self.jobs[self.varied].map(_shown).agg(self.label, axis=1)
        return {str(label): rows for label, rows in self.jobs.groupby(labels, sort=False)}

    def label(self, values: Any) -> str:
        """A group in a few words: the value of what varies, with its name where it is a bare number."""
        named = dict(zip(self.varied, values, strict=True))
        return ", ".join(
            f"{name.replace('_', ' ')} {value}" if _is_number(value) else str(value).replace("_", " ")
            for name, value in named.items()
        )

    def _grouped(self) -> pd.DataFrame:
        rows = []
        numbers = [name for name in self.jobs.select_dtypes("number") if name not in (*self.varied, "seed")]
        numbers = [name for name in numbers if not name.endswith("_std")]  # over the parts of one set of images
        for label, jobs in self.members().items():
            done = jobs[jobs["error"].isna()]
            row: dict[str, Any] = {"label": label, **jobs.iloc[0][self.varied].to_dict(), "seeds": len(done)}
            for name in numbers:
                row |= {name: done[name].mean(), f"{name}_std": done[name].std()}
            counted = jobs["error"].dropna().value_counts()
            row["errors"] = "; ".join(f"{count} x {error}" for error, count in counted.items())
            rows.append(row)
        return pd.DataFrame(rows)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


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
        return f"{value:,.3g}"
    if name in ("fid", "inception_score", "class_accuracy"):
        return f"{value:.3f}" + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")
    return _shown(value)
