"""Scores the best settings of a search again, with seeds of the noise that the search has not seen.

The lowest of many noisy scores is too low: with other noise, the same settings score worse.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enat.files import read_record
from experiments.runtime.multirun import JOB, JobError, objectives, read_job_record
from experiments.stages import run_command

AT_MOST = 5  # settings that are scored again


def value_of(results: dict[str, Any], name: str) -> float:
    """Returns a number of results by a name such as `cost.gflop_per_image`.

    Raises:
        InputError: if there is no such number.
        JobError: for NaN.
    """
    value = objectives([name], results)
    assert isinstance(value, float)
    return value


def best_jobs(folder: Path, objective: Sequence[str], directions: Sequence[str]) -> list[Path]:
    """Returns the folders of the jobs than which no other is better in all objectives, the best in the first one first.

    Args:
        folder: of the search.
        objective: names of the results that were searched for.
        directions: for each, `minimize` or `maximize`.
    """
    signs = [1 if direction == "minimize" else -1 for direction in directions]
    done = [path.parent for path in sorted(folder.glob(f"*/{JOB}")) if (path.parent / "results.json").exists()]
    values = {}
    for job in done:
        results = read_record(job / "results.json")
        try:
            values[job] = [sign * value_of(results, name) for sign, name in zip(signs, objective, strict=True)]
        except JobError:  # NaN
            continue

    def is_beaten(job: Path) -> bool:
        return any(
            all(one <= other for one, other in zip(values[rival], values[job], strict=True))
            and values[rival] != values[job]
            for rival in values
        )

    return sorted((job for job in values if not is_beaten(job)), key=lambda job: values[job])[:AT_MOST]


def score_again(
    folder: Path,
    objective: Sequence[str],
    directions: Sequence[str],
    seeds: Sequence[int],
    weights: str,
    flags: Sequence[str] = (),
) -> list[Path]:
    """Scores the best settings of a search with other seeds, in `FOLDER-held_out_seeds/JOB`; returns these folders.

    The sweep is among the options, since its file may set some of the sampler, too.

    Scores that are there already are not computed again. Those of other weights or settings stay, and the new ones get
    a folder beside them, such as `JOB-2`. `flags` of the search, such as `--config-dir`, are those of the new commands.
    """
    scored = []
    for job in best_jobs(folder, objective, directions):
        overrides = read_job_record(job / JOB)["overrides"]
        left_out = {"objective", "held_out_seeds", "seed", "resume", "weights"}
        options = [text for text in overrides if text.lstrip("+").partition("=")[0] not in left_out]
        found = read_record(job / "results.json")
        output = folder_for(folder.with_name(f"{folder.name}-held_out_seeds") / job.name, found, seeds)
        common = [
            "hydra.mode=RUN",
            "task=evaluate",
            f"weights={weights}",
            f"output={output}",
            f"seeds=[{','.join(map(str, seeds))}]",
        ]
        if is_scored(output, found, seeds) or run_command([*options, *common, *flags]) == 0:
            scored.append(output)
    return scored


def folder_for(folder: Path, found: dict[str, Any], seeds: Sequence[int]) -> Path:
    """Returns the first of FOLDER, FOLDER-2 ... that has the scores of a job with other seeds, or no scores yet."""
    number = 1
    free = folder
    while (free / "results.json").exists() and not is_scored(free, found, seeds):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def is_scored(output: Path, found: dict[str, Any], seeds: Sequence[int]) -> bool:
    """Says whether a folder has scores with these seeds, of the same weights and settings as a job of the search.

    Args:
        output: the folder.
        found: the results of the job. Their `settings` have the sha256 of the weights, and all that scores depend on.
        seeds: of the noise.
    """
    path = output / "results.json"
    if not path.exists():
        return False
    results = read_record(path)
    return results.get("seeds") == list(seeds) and results.get("settings") == found.get("settings")
