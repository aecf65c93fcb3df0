"""Jobs of a multirun: each keeps its overrides and how it ended, so that the same sweep again runs what is missing."""

import json
import math
import multiprocessing
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from data.credentials import without_credentials
from enat.errors import InputError, printable
from enat.files import (
    EXPECTED,
    make_before,
    read_record,
    refuse_other_content,
    refuse_other_work,
    sha256_of,
    weights_file,
    write_atomically,
)
from experiments.runtime.lock import LOCK, lock
from experiments.runtime.ranks import is_first
from experiments.runtime.run_files import is_of_requeued_job, options_that_matter, read_settings

JOB = "job.json"  # in the folder of a job
FREE = {"resume", "debug", "trainer", "logger", "held_out_seeds"}  # options that may change when a job is run again
RECORDED = {"weights", "sweep", "study"}  # options that the record of a job has by themselves
CHOICES = "another hydra.sweep.dir=DIR, or resume=false to run its jobs anew"


class JobError(Exception):
    """A job that failed. The sweep goes on with the other jobs, and raises this error when they are done."""


def is_job() -> bool:
    """Says whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def launcher_starts_processes() -> bool:
    """Says whether Hydra's launcher starts the processes of each job, as submitit does."""
    return "submitit" in HydraConfig.get().launcher._target_


def fixed_options(overrides: list[str]) -> dict[str, str]:
    """Returns the overrides that decide what a job computes, as values by name.

    Left out are overrides of how a job runs. Its weights and its study are compared by themselves: weights by their
    sha256, and two sweeps of one study may share a job.
    """
    fixed = {}
    for text in overrides:
        name, _, value = text.lstrip("+").partition("=")  # a deletion keeps its `~`
        if name.lstrip("~") not in FREE | RECORDED and not name.lstrip("~").startswith("logger."):
            fixed[name] = value
    return fixed


def run_job(
    output: Path,
    resume: bool,
    weights: str | None,
    data: Mapping[str, str],
    study: str | None,
    composition: Mapping[str, Any],
    work: Callable[[], dict[str, Any]],
    explain: Callable[[BaseException], str | None],
) -> dict[str, Any]:
    """Runs a job, unless its results are in its folder already.

    The folder's `job.json` has the job's number, overrides and study, the sha256 of its weights and its data, and its
    error if any. It is written only while this process holds the folder.

    Args:
        output, resume: the folder of the job, and whether earlier results in it are used.
        weights: the file that the job reads, if any.
        data: hashes of the other files and folders that the job reads, by the names of the options.
        study: the study that the job is of, whose jobs all have to read the same weights; None outside of studies.
        composition: the whole configuration, with its references.
        work: computes the results, and writes them into the folder.
        explain: puts an error into a sentence; gives None for an error that is not the user's.

    Returns:
        The results.

    Raises:
        InputError: if the folder is another job's, or has results of other weights, data or settings.
        JobError: for any error of the work, and if another process is at work in the folder.
    """
    start_processes_as_usual()
    resume = resume or is_of_requeued_job(output)  # or what it has done so far would be set aside
    overrides = without_credentials(list(HydraConfig.get().overrides.task))
    name = study or next((text.partition("=")[2] for text in overrides if text.startswith("+sweep=")), None)
    sha256 = sha256_of(weights_file(weights)) if weights and weights_file(weights).is_file() else None
    record = output / JOB
    if resume:
        refuse_other_jobs(record, overrides, name)
        refuse_other_data(record, data)
        refuse_other_weights(sorted(output.parent.glob(f"*/{JOB}")) if study else [record], sha256)
        if is_done(output) and read_record(record).get("error") is None:
            refuse_other_settings(output, composition)
            _print_on_first(f"{output}: done already.")
            return read_record(output / "results.json")

    def keep(error: str | None) -> None:
        content = {"number": HydraConfig.get().job.num, "overrides": overrides, "study": name, "error": error}
        content |= {"weights_sha256": sha256, "data_sha256": dict(data)}
        if is_first():
            write_atomically(record, json.dumps(content, indent=1).encode())

    try:
        with lock(output):  # another process may be at work in the folder, and its files stay as they are
            return _run_in_own_folder(output, resume, work, explain, keep)
    except InputError as error:
        raise _failure(output, str(error)) from error


def _run_in_own_folder(
    output: Path,
    resume: bool,
    work: Callable[[], dict[str, Any]],
    explain: Callable[[BaseException], str | None],
    keep: Callable[[str | None], None],
) -> dict[str, Any]:
    """Runs a job in a folder that this process holds; `keep` writes the record of the job with its error.

    Raises:
        JobError: for any error of the work.
    """
    if resume and is_done(output):  # by another process meanwhile
        keep(None)
        _print_on_first(f"{output}: done already.")
        return read_record(output / "results.json")
    if is_first():
        set_aside(output, resume)
    keep(None)
    try:
        return work()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            print(printable(traceback.format_exc()), file=sys.stderr)
            sentence = f"{type(error).__name__}: {error}"
        keep(" ".join(sentence.split()))
        raise _failure(output, sentence) from error


def _failure(output: Path, sentence: str) -> JobError:
    """Prints why a job failed, and returns the error to raise."""
    if is_first():
        print(printable(f"{output}: failed: {sentence}"), file=sys.stderr)
    return JobError(f"{output}: {sentence} The same command runs what is missing.")


def _print_on_first(text: str) -> None:
    if is_first():
        print(text)


def is_done(output: Path) -> bool:
    """Says whether the folder of a job has its results."""
    return (output / JOB).exists() and (output / "results.json").exists()


def set_aside(output: Path, resume: bool) -> None:
    """Sets aside, before a job begins, what is in its folder and doesn't count any more. Nothing is deleted.

    For a job that begins anew, all that an earlier run of the job has left is moved into a new folder `before_1`,
    `before_2` ... in the job's. Reports pass over runs in the folder of a job.

    Args:
        output: the folder of the job.
        resume: whether the job goes on with what is there; then only results of a command that was no job are moved.
    """
    results = output / "results.json"
    if resume or not (output / JOB).exists():
        if results.exists():
            results.replace(output / "results_before.json")
        return
    earlier = [path for path in output.iterdir() if path.name != LOCK and not re.fullmatch(r"before_\d+", path.name)]
    if [path.name for path in earlier] == [JOB]:  # it failed before it wrote anything
        return
    aside = make_before(output)
    for path in sorted(earlier, key=lambda path: (path != results, path.name == JOB)):  # the record last
        path.rename(aside / path.name)


def start_processes_as_usual() -> None:
    """Lets the process of a job start others in the platform's way.

    A process of joblib starts them in a way of its own, in which the workers of a DataLoader fail.
    """
    if multiprocessing.get_start_method(allow_none=True) == "loky":
        multiprocessing.set_start_method(None, force=True)


def read_job_record(path: Path) -> dict[str, Any]:
    """Returns what the `job.json` of a job says.

    Raises:
        InputError: if it does not say the overrides of the job.
    """
    record = read_record(path)
    overrides = record.get("overrides")
    if not isinstance(overrides, list) or not all(isinstance(text, str) for text in overrides):
        raise InputError(f"{path} does not say the overrides of a job; {EXPECTED}.")
    return record


def refuse_other_jobs(record: Path, overrides: list[str], study: str | None) -> None:
    """Refuses to run a job in the folder of a job with other options, or of another study.

    Raises:
        InputError: naming the options.
    """
    if record.exists():
        earlier = read_job_record(record)
        before: dict[str, Any] = fixed_options(earlier["overrides"])
        before["study"] = earlier.get("study", study)  # records of older versions don't say it
        refuse_other_work(record.parent, before, fixed_options(overrides) | {"study": study}, "another job", CHOICES)


def refuse_other_weights(records: list[Path], sha256: str | None) -> None:
    """Refuses to run a job beside results of other weights, which may have the same file name.

    Raises:
        InputError: naming the folder of such results.
    """
    for record in records:
        if (record.parent / "results.json").exists():
            earlier = {"weights.sha256": read_record(record).get("weights_sha256")}
            refuse_other_work(record.parent, earlier, {"weights.sha256": sha256}, "results of other weights", CHOICES)


def refuse_other_data(record: Path, data: Mapping[str, str]) -> None:
    """Refuses to take results of other data, which may have the same path, for those of a job.

    Data whose hash is not known, then or now, are not compared.

    Args:
        record: of the job in the folder.
        data: the hashes of the data that this job names.

    Raises:
        InputError: naming the options.
    """
    if not (record.exists() and record.with_name("results.json").exists()):
        return
    refuse_other_content(record.parent, read_record(record).get("data_sha256"), data, "results of other data", CHOICES)


def refuse_other_settings(output: Path, composition: Mapping[str, Any]) -> None:
    """Refuses to take results of other settings for those of a job: a YAML file may have changed since.

    Raises:
        InputError: naming the settings.
    """
    config = output / "config.yaml"
    if config.exists():
        earlier, now = (
            {
                name: value
                for name, value in options_that_matter(each, "weights", "held_out_seeds").items()
                if not name.startswith(("trainer.precision", "trainer.strategy"))
            }
            for each in (read_settings(config), composition)
        )
        refuse_other_work(output, earlier, now, "results of other settings", CHOICES)


def objectives(names: list[str] | None, results: dict[str, Any]) -> float | tuple[float, ...] | None:
    """Picks the results that a sweeper minimises or maximises, by names such as `fid` or `cost.gflop_per_image`.

    Raises:
        InputError: if there is no such number.
        JobError: for NaN, for which optuna would end a search.
    """
    values = []
    for name in names or []:
        value: Any = results
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise InputError(f"objective={name}: the results have no such number.")
        if math.isnan(value):
            raise JobError(f"objective={name}: the result is NaN, so the sweeper can't use it.")
        values.append(float(value))
    return values[0] if len(values) == 1 else tuple(values) or None
