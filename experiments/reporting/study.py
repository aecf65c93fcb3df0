"""A study: the jobs of a multirun, and groups of jobs whose options differ in nothing but the seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reporting.published import ABLATIONS, Published, other_settings
from experiments.reporting.runs import SCORES, Job, common_folder, find_runs, natural_sort_key, read_job, read_run
from experiments.runtime.multirun import JOB

RUN = "run"  # the name of a run, beside the options in which it differs from others
# Columns of the tables beside the options; an option whose name ends so has its full name.
COLUMNS = {"job", "seed", "error", "group", "label", "seeds", "errors"}
MOST_OPTIONS = 8  # that a table has columns for
MOST_NAMES = 10  # groups that a picture has colours and names for
MOST_LINES = 20


@dataclass
class Study:
    """The jobs of a multirun in groups."""

    folder: Path  # of the multirun, or one that all runs are below
    varied: list[str]  # columns of the options that vary besides the seed
    jobs: pd.DataFrame  # a row for each job: `job` (its folder), options, `seed`, results, `error`, `group` (a number)
    groups: pd.DataFrame  # a row for each combination of options, as `summarize` gives them
    protocols: list[str]  # of FID and Inception Score, as far as they are known
    other_settings: str | None  # what ablations have unlike the paper's; None for other studies
    repeated: list[str]  # folders of jobs that are left out, for others have the same options and seed

    def has(self, name: str) -> bool:
        """Tells whether any group has a number of this name."""
        return name in self.groups and bool(self.groups[name].notna().any())

    def score_titles(self) -> dict[str, str]:
        """Gives the scores that there are, and what axes call them."""
        protocol = f" ({self.protocols[0]})" if len(self.protocols) == 1 else ""
        return {name: f"{title}{protocol}" for name, title in SCORES.items() if self.has(name)}

    def numeric_options(self) -> list[str]:
        """Gives the options whose values are all numbers."""
        return [name for name in self.varied if pd.api.types.is_numeric_dtype(self.groups[name])]

    def lines_over(self, axis: str) -> pd.Series | None:
        """Labels each group's line in a plot where one option varies along lines, by the other options.

        Returns:
            None where there would be too many lines, or lines of one point, as with options that change together.
        """
        labels = pd.Series(_labels(self.groups[[name for name in self.varied if name != axis]]), self.groups.index)
        return labels if labels.nunique() <= min(MOST_LINES, len(labels) / 2) else None


def read_study(*folders: Path) -> Study:
    """Reads the jobs of multiruns in the order in which they were asked for, or runs by themselves.

    Ablations of the paper come in its order, since one folder has those of all of its tables.

    An option that only some jobs have has the value `default` for the others. A column has the last part of its
    option's name, or the full name where two would be the same.

    Raises:
        InputError: if a file can't be read.
    """
    runs = find_runs(*folders)
    root = common_folder(runs)
    is_multirun = all((run / JOB).exists() for run in runs)
    jobs = [read_job(run / JOB) if is_multirun else read_run(run) for run in runs]
    jobs.sort(key=lambda job: (natural_sort_key(job.folder.parent), job.order, natural_sort_key(job.folder)))
    if all("ablation" in job.options for job in jobs):
        order = {name: place for place, name in enumerate(ABLATIONS)}
        jobs.sort(key=lambda job: order.get(str(job.options["ablation"]), len(order)))
    jobs, repeated = _without_repeated(jobs) if is_multirun else (jobs, [])
    options = pd.DataFrame([job.options for job in jobs]).astype(object)
    options = options.where(options.notna(), "default").infer_objects()
    names = [name for name in options if name != "seed" and options[name].nunique() > 1]
    if not is_multirun:  # each run is a row
        options[RUN] = [str(job.folder.relative_to(root)) for job in jobs]
        names = [RUN, *(names if len(names) <= MOST_OPTIONS else [])]
    count = Counter(name.rpartition(".")[2] for name in names)
    columns = {name: last if count[last := name.rpartition(".")[2]] == 1 else name for name in names}
    columns |= {name: name for name, last in columns.items() if last in COLUMNS or last.endswith("_std")}
    numbers = pd.DataFrame([job.numbers for job in jobs], index=options.index)
    numbers = numbers.drop(columns=[*columns.values(), "seed"], errors="ignore")  # such as the number of images
    varied = list(columns.values())
    table = options[names].rename(columns=columns).assign(seed=options.get("seed", "default")).join(numbers)
    table.insert(0, "job", [str(job.folder.relative_to(root)) for job in jobs])
    table["error"] = pd.Series([job.error for job in jobs], dtype=object)
    table["group"] = table.groupby(varied, sort=False).ngroup() if varied else 0
    protocols = sorted({job.protocol for job in jobs if job.protocol})
    scores = [name for name in numbers if not name.endswith("_std")]  # over the parts of one set of images
    groups = summarize(table, varied, scores)
    rows = [job.published._asdict() if job.published else {} for job in jobs]
    published = pd.DataFrame(rows, columns=Published._fields, dtype=float)
    groups = groups.join(published.groupby(table["group"]).first().add_prefix("published_"))
    of_paper = [job for job in jobs if job.published and "ablation" in job.options]
    others = other_settings(of_paper[0].config) if of_paper else None
    left_out = [str(job.folder.relative_to(root)) for job in repeated]
    return Study(root, varied, table, groups, protocols, others, left_out)


def _without_repeated(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Separates jobs from those that repeat one with the same options and the same seed, whose scores are no others.

    Counted as further seeds, they would make deviations and intervals too small. Of several, the first that ended well
    is kept.
    """
    chosen: dict[Any, Job] = {}
    for number, job in enumerate(jobs):
        seed = job.options.get("seed", job.config.get("seed"))
        key: Any = number if seed is None else frozenset({**job.options, "seed": seed}.items())
        if key not in chosen or (chosen[key].error is not None and job.error is None):
            chosen[key] = job
    kept = list(chosen.values())
    return kept, [job for job in jobs if not any(job is one for one in kept)]


def summarize(jobs: pd.DataFrame, varied: list[str], numbers: list[str]) -> pd.DataFrame:
    """Gives a row for each group: its `label` in pictures, its options, `seeds` (jobs that ended well), and `errors`.

    Numbers are means over seeds, with standard deviations as `NAME_std` (NaN for a single seed).
    """
    groups = jobs.drop_duplicates("group").set_index("group")[varied]
    groups.insert(0, "label", _labels(groups))
    groups["seeds"] = jobs["error"].isna().groupby(jobs["group"]).sum()
    done = jobs[jobs["error"].isna()].groupby("group")[numbers]
    groups = groups.join(done.mean()).join(done.std().add_suffix("_std"))
    groups["errors"] = jobs.groupby("group")["error"].agg(
        lambda errors: "; ".join(f"{count} x {error}" for error, count in errors.value_counts().items())
    )
    return groups


def _labels(options: pd.DataFrame) -> list[str]:
    """Names rows by their options, in few digits where that tells them apart; a single word needs no option's name."""
    for digits in (4, 15):
        texts = options.map(format_value, digits=digits)
        if len(options.columns) > 1 or len(options.select_dtypes("number").columns):
            texts = texts.apply(lambda column: f"{column.name} " + column)
        labels = [", ".join(row).replace("_", " ") for row in texts.to_numpy()]
        if len(set(labels)) == len(options.drop_duplicates()):
            break
    return labels


def format_value(value: Any, digits: int = 6) -> str:
    """Writes an option's value as people do: 1 for 1.0."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value.is_integer() else f"{value:.{digits}g}"
