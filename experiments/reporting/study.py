"""A study: the jobs of a multirun, and groups of jobs whose options differ in nothing but the seed."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from enat.errors import InputError
from experiments.reporting.runs import SCORES, read_job
from experiments.runtime.multirun import JOB


class Study:
    """The jobs of a multirun in groups.

    Args:
        folder: of the multirun.
        jobs: a row for each job: `job` (its folder, relative to the multirun's), the options that vary, `seed`, every
            number of its results, `error` (None if it ended well).
        options: the full names of the options that vary, by the names of their columns; without the seed.
        protocol: of FID and Inception Score; None if it is not known.

    Attributes:
        varied: the columns of the options that vary.
        jobs: as above, with the number of its `group`.
        groups: by number, a row for each combination of varied options: its `label` in pictures, the options, `seeds`
            (jobs that ended well), means, standard deviations over seeds as `NAME_std` (NaN for a single seed), and
            `errors` of its jobs.
    """

    def __init__(self, folder: Path, jobs: pd.DataFrame, options: Mapping[str, str], protocol: str | None = None):
        self.folder, self.options, self.protocol = folder, dict(options), protocol
        self.varied = list(options)
        groups = jobs.groupby(self.varied, sort=False).ngroup() if self.varied else 0
        self.jobs = jobs.assign(group=groups)
        self.groups = self._summarized()

    def _summarized(self) -> pd.DataFrame:
        numbers = [name for name in self.jobs.select_dtypes("number") if name not in (*self.varied, "seed", "group")]
        numbers = [name for name in numbers if not name.endswith("_std")]  # over the parts of one set of images
        done = self.jobs[self.jobs["error"].isna()].groupby("group")
        failed = self.jobs.dropna(subset="error").groupby("group")["error"]
        groups = self.jobs.drop_duplicates("group").set_index("group")[self.varied]
        labels = [self._label(values, digits=4) for _, values in groups.iterrows()]
        if len(set(labels)) < len(labels):
            labels = [self._label(values, digits=17) for _, values in groups.iterrows()]
        groups.insert(0, "label", labels)
        groups["seeds"] = done.size().reindex(groups.index, fill_value=0)
        groups = groups.join(done[numbers].mean()).join(done[numbers].std().add_suffix("_std"))
        counted = failed.agg(lambda errors: "; ".join(f"{n} x {error}" for error, n in errors.value_counts().items()))
        groups["errors"] = counted.reindex(groups.index, fill_value="")
        return groups

    def _label(self, values: pd.Series, digits: int) -> str:
        """Names a group by what varies; a word that stands alone needs no name of its option."""
        texts = {name: format_value(value, digits).replace("_", " ") for name, value in values.items()}
        if not texts:
            return "all"
        if len(texts) == 1 and isinstance(values.iloc[0], str):
            return next(iter(texts.values()))
        return ", ".join(f"{str(name).replace('_', ' ')} {text}" for name, text in texts.items())

    def has(self, name: str) -> bool:
        """Tells whether any group has a number of this name."""
        return name in self.groups and bool(self.groups[name].notna().any())

    def score_titles(self) -> dict[str, str]:
        """Gives the scores that there are, and what axes call them."""
        protocol = f" ({self.protocol})" if self.protocol else ""
        return {name: f"{title}{protocol}" for name, title in SCORES.items() if self.has(name)}

    def is_numeric(self, name: str) -> bool:
        """Tells whether all values of a varied option are numbers."""
        return pd.api.types.is_numeric_dtype(self.groups[name])

    def lines_over(self, axis: str) -> pd.Series | None:
        """Gives each group the label of its line in a plot where one option varies along lines.

        Args:
            axis: the option that varies along a line; each combination of all others is a line.

        Returns:
            Labels by the number of the group; None where lines would say little because they have one point each, as
            with options that change together.
        """
        others = self.groups[[name for name in self.varied if name != axis]]
        labels = pd.Series("", index=others.index)
        if len(others.columns):
            labels = others.apply(self._label, axis=1, digits=4)
        return labels if 2 * labels.nunique() <= len(labels) else None


def read_study(folder: Path) -> Study:
    """Reads the jobs of a multirun, in the order in which they were asked for.

    An option that only some jobs have has the value `default` for the others. A column has the last part of its
    option's name, or the full name where two would be the same.

    Raises:
        InputError: if a file can't be read, or there is no job.
    """
    jobs = sorted((read_job(path) for path in folder.rglob(JOB)), key=lambda job: job.sort_key)
    if not jobs:
        raise InputError(f"runs={folder}: there is no job of a multirun in it.")
    options = pd.DataFrame([job.options for job in jobs]).astype(object)
    options = options.where(options.notna(), "default").infer_objects()
    seeds = options.get("seed", "default")
    names = [name for name in options if name != "seed" and options[name].nunique() > 1]
    count = Counter(name.rpartition(".")[2] for name in names)
    columns = {name: last if count[last := name.rpartition(".")[2]] == 1 else name for name in names}
    numbers = pd.DataFrame([job.numbers for job in jobs], index=options.index)
    numbers = numbers.drop(columns=[*columns.values(), "seed"], errors="ignore")  # such as the number of images
    table = pd.concat([options[names].rename(columns=columns).assign(seed=seeds), numbers], axis=1)
    table.insert(0, "job", [str(job.folder.relative_to(folder)) for job in jobs])
    table["error"] = pd.Series([job.error for job in jobs], dtype=object)
    protocols = {job.protocol for job in jobs if job.protocol}
    protocol = protocols.pop() if len(protocols) == 1 else None
    return Study(folder, table, {column: name for name, column in columns.items()}, protocol)


def format_value(value: Any, digits: int = 6) -> str:
    """Writes an option's value as people do: 1 for 1.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
