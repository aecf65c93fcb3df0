"""A job of a multirun keeps what it was asked for and how it ended; the same sweep again runs what is missing."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only

from enat.errors import InputError
from enat.files import sha256_of, write_atomically

JOB = "job.json"  # in the folder of a job
FREE = ("resume", "debug", "trainer", "logger", "weights")  # options that a job may go on with others of


class JobError(Exception):
    """A job that did not end well; the sweep goes on with the others, and ends with this."""


def is_job() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def asked_for(overrides: list[str]) -> list[str]:
    """The overrides that decide what a job computes: not how it runs, nor where its weights are."""
    names = {text: text.lstrip("+~").partition("=")[0] for text in overrides}
    return sorted(text for text, name in names.items() if name not in FREE and not name.startswith("logger."))


def check_record(record: Path, overrides: list[str]) -> None:
    """Refuses a folder that is another job's.

    Raises:
        InputError: if it is.
    """
    earlier = json.loads(record.read_text())["overrides"] if record.exists() else overrides
    if asked_for(earlier) != asked_for(overrides):
        words = " ".join(earlier)
        raise InputError(
            f"{record.parent}: the folder is that of another job ({words}); expected another hydra.sweep.dir."
        )


def check_weights(records: list[Path], weights: str | None, sha256: str | None) -> None:
    """Refuses weights other than those of the results that are there.

    Raises:
        InputError: if a job's were others.
    """
    for record in records:
        done = (record.parent / "results.json").exists()
        if done and json.loads(record.read_text()).get("weights_sha256") != sha256:
            raise InputError(
                f"weights={weights}: the file is not what it was when {record.parent} was made; expected the same "
                "weights, or another hydra.sweep.dir."
            )


def run_job(
    output: Path,
    resume: bool,
    weights: str | None,
    one_file: bool,
    work: Callable[[], dict[str, Any]],
    explain: Callable[[BaseException], str | None],
) -> dict[str, Any]:
    """Runs a job, unless its results are there.

    Args:
        output: its folder; `job.json` there has its number, its overrides, the sha256 of its weights, and its error if
            there is one.
        resume: whether results that are there count.
        weights: the file that it asks for, if any.
        one_file: whether the results of the jobs beside it have to be of the same weights.
        work: gives the results, and writes them into the folder too.
        explain: an error in a sentence, or None for one that is not the user's.

    Returns:
        The results.

    Raises:
        InputError: if the folder is another job's, or there are results of other weights.
        JobError: for any error of the work.
    """
    overrides = list(HydraConfig.get().overrides.task)
    sha256 = sha256_of(weights) if weights and Path(weights).is_file() else None
    record, results = output / JOB, output / "results.json"
    if resume:
        check_record(record, overrides)
        check_weights(sorted(output.parent.glob(f"*/{JOB}")) if one_file else [record], weights, sha256)
        if record.exists() and results.exists():
            rank_zero_only(print)(f"{output}: done already.")
            return dict(json.loads(results.read_text()))

    @rank_zero_only
    def keep(error: str | None) -> None:
        content = {"number": HydraConfig.get().job.num, "overrides": overrides, "error": error}
        content["weights_sha256"] = sha256
        write_atomically(record, json.dumps(content, indent=1).encode())

    keep(None)
    rank_zero_only(results.unlink)(missing_ok=True)  # of a run that does not count
    try:
        return work()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            traceback.print_exc()
            sentence = f"{type(error).__name__}: {error}"
        keep(" ".join(sentence.split()))
        rank_zero_only(print)(f"{output}: failed: {sentence}", file=sys.stderr)
        raise JobError(
            f"{output}: {sentence} The other jobs went on; the same command runs what is missing."
        ) from error


def objectives(names: list[str] | None, results: dict[str, Any]) -> float | tuple[float, ...] | None:
    """What a sweeper minimises or maximises: results by name, such as `fid` or `cost.gflop_per_image`.

    Raises:
        InputError: if there is no such number.
    """
    values = []
    for name in names or []:
        value: Any = results
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, int | float):
            raise InputError(f"objective={name}: the results have no such number.")
        values.append(float(value))
    return values[0] if len(values) == 1 else tuple(values) or None
