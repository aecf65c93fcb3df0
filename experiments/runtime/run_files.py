"""Reads what a run has left in its folder, which may come from anybody."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from enat.errors import InputError
from enat.files import EXPECTED, MAX_SETTINGS, by_full_name, read_text, values_of

# Parts of a configuration that say where and how a task runs, and not what it computes.
PLACES = {"task", "output", "name", "logger", "resume", "debug", "objective"}
PLACES |= {f"{part}.{option}" for part in ("trainer", "fabric") for option in ("accelerator", "devices", "num_nodes")}
PLACES |= {"trainer.default_root_dir"}
SLURM_JOB = "slurm_job_id.txt"  # the SLURM job that works in a folder


def is_of_requeued_job(folder: Path) -> bool:
    """Says whether this is a SLURM job that was put into the queue again, and has worked in a folder before."""
    job = os.environ.get("SLURM_JOB_ID")
    record = folder / SLURM_JOB
    is_requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    return is_requeued and record.is_file() and read_text(record).strip() == job


def read_settings(path: Path) -> dict[str, Any]:
    """Returns what the `config.yaml` of a run says, by name.

    Raises:
        InputError: for a file that is no YAML, nests too deep, holds itself or has no names.
    """
    text = read_text(path)
    try:
        settings = yaml.safe_load(text) or {}
    except RecursionError as error:
        raise InputError(f"{path} nests too deep; {EXPECTED}.") from error
    except Exception as error:  # of a type that does not fit its value, PyYAML raises many
        raise InputError(f"{path} is no YAML; {EXPECTED}.") from error
    values_of(settings, path, MAX_SETTINGS)  # aliases may hold themselves, or one another many times
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no options by name; {EXPECTED}.")
    return settings


def options_that_matter(composition: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """Returns the options that decide what a task computes, by full name, without the parts in `left_out`."""
    parts = {name: value for name, value in composition.items() if name not in (*PLACES, *left_out)}
    return {name: value for name, value in by_full_name(parts).items() if name not in PLACES}
