"""Runs the task of a composed configuration, and keeps its results."""

import inspect
import json
import logging
import os
import typing
import warnings
from pathlib import Path
from typing import Annotated, Any, TypedDict

import lightning as L
import yaml
from annotated_types import Interval
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from data.credentials import without_credentials
from data.fetch import local_folder
from data.manifest import Manifest
from enat.building import check_unread_tokenizer
from enat.errors import InputError, printable
from enat.files import (
    read_record,
    refuse_lost_links,
    refuse_other_work,
    remove_own_folder,
    sha256_of,
    weights_file,
    write_atomically,
)
from experiments.runtime.building import Call, build, plan
from experiments.runtime.command_line import explain
from experiments.runtime.hydra_settings import check_texts
from experiments.runtime.job_data import data_sha256
from experiments.runtime.job_names import varied_options
from experiments.runtime.lock import lock
from experiments.runtime.multirun import JobError, is_job, launcher_starts_processes, objectives, run_job
from experiments.runtime.provenance import provenance
from experiments.runtime.ranks import processes
from experiments.runtime.run_files import SLURM_JOB, options_that_matter, read_settings
from experiments.runtime.type_hints import check_value
from experiments.runtime.unused_options import refuse_unused_options

# Tasks that see for themselves whether the work in their folder is theirs, or make theirs anew.
GOES_ON = (".train", ".train_tokenizer", ".tokenize", ".download", ".report", ".stages", ".page")
UNFINISHED = "unfinished"  # in a task's output: work that the same command goes on with, until there are results


class CommonOptions(TypedDict):
    """The options that every task has."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)]
    name: str
    resume: bool
    objective: list[str] | None
    debug: bool


logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its INFO advertises
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)  # a line for each process of a group
logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report of trainer.profiler
logging.getLogger("matplotlib").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message=".*find_unused_parameters=True.*")  # needed, see conf/trainer/ddp.yaml
warnings.filterwarnings("ignore", message=".*recommended to use `self.log.*")  # what is logged is equal on all ranks
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch 2.14
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of a name in a picture, which has a box then
warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than there are cores
warnings.filterwarnings("ignore", message="TF32 acceleration on top of oneDNN")  # given on CPUs, where nothing uses it


def run_task(config: DictConfig) -> float | tuple[float, ...] | None:
    """Runs `config.task` in Hydra's output folder; prints and writes its results.

    Returns:
        The results that `config.objective` names, for a sweeper; None on ranks other than the first.

    Raises:
        SystemExit: with status 1 if the task's results say that it did not pass.
    """
    output = Path(HydraConfig.get().runtime.output_dir)
    output = output.relative_to(Path.cwd()) if output.is_relative_to(Path.cwd()) else output
    config.output = str(output)
    if not is_job():
        try:
            with lock(output):
                results = _results(config, output)
        finally:
            rank_zero_only(_remove_if_empty)(output)  # Hydra has made it before a wrong option was found
        if not results.get("passed", True):
            raise SystemExit(1)
    else:
        if config.objective and processes()[1] > 1 and not launcher_starts_processes():
            raise InputError(
                "objective: each process of torchrun or srun would ask the sweeper for its own settings; expected "
                "one process, or a launcher that starts the processes of each job, such as "
                "hydra/launcher=submitit_slurm."
            )
        results = run_job(
            output,
            resume=config.resume,
            weights=config.get("weights"),
            data=data_sha256(config),
            study=config.get("study"),
            composition=without_credentials(_plain(config, resolve=False)),
            work=lambda: _results(config, output),
            explain=lambda error: explain(error)[0],
        )
        if not results.get("passed", True):
            raise JobError(f"{output}: this job did not pass, as its results.json says.")
    return rank_zero_only(objectives)(config.objective, results)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def check_options(config: DictConfig) -> Call:
    """Checks the options that every task has, and all options of the task; returns the call of the task.

    Raises:
        InputError: for the first option that is wrong.
    """
    for option, hint in typing.get_type_hints(CommonOptions, include_extras=True).items():
        check_value(option, config[option], hint)
    for option in ("name", "output"):
        if printable(config[option]) != config[option] or "\n" in config[option]:
            raise InputError(f"{option}={config[option]}: expected plain characters in one line.")
    if "/" in config.name or config.name in ("", ".", ".."):
        raise InputError(f"name={config.name}: expected a name without /; output=DIR says the folder.")
    task: Call = plan(config, "task")
    return task


def _check_shards(config: DictConfig) -> None:
    """Checks the sizes in a manifest of shards, before a network or a tokenizer of these sizes is built.

    Raises:
        InputError: for a manifest that is damaged, or that asks for too much.
    """
    shards, cache = (OmegaConf.select(config, name) for name in ("data.shards", "data.cache"))
    path = local_folder(shards, Path(str(cache))) / "manifest.json" if isinstance(shards, str) else None
    if path is not None and path.exists():  # others are fetched later, and checked then
        check_unread_tokenizer(Manifest.load(path.parent).tokenizer_settings or {}, path)


def _results(config: DictConfig, output: Path) -> dict[str, Any]:
    """Checks the options, runs the task in a folder that this process holds, and writes and prints its results.

    Raises:
        InputError: if the folder has results of other settings or weights, which would be replaced, or if a link in it
            leads nowhere.
    """
    hydra = HydraConfig.get()
    refuse_unused_options(config, hydra.overrides.task, hydra.runtime.choices, varied_options())
    task = check_options(config)
    _check_shards(config)
    settings, composition = (without_credentials(_plain(config, resolve=resolve)) for resolve in (True, False))
    check_texts(settings)  # of which references may be put together
    refuse_lost_links(output)
    _refuse_to_replace(output, composition)
    L.seed_everything(config.seed, verbose=False)
    extra = {"settings": settings, "composition": composition}
    parameters = inspect.signature(task.called).parameters
    arguments = build(task.arguments)
    arguments |= {name: value for name, value in extra.items() if name in parameters}
    if "SLURM_JOB_ID" in os.environ:
        rank_zero_only(write_atomically)(output / SLURM_JOB, os.environ["SLURM_JOB_ID"].encode())
    results: dict[str, Any] = task.called(**arguments)
    origin = {"seed": config.seed, **provenance()}
    results |= {name: value for name, value in origin.items() if name not in results}  # a finished run keeps its own
    if composition.get("check"):  # of shards: their results stay those of the command that made them
        rank_zero_only(print)(json.dumps(results))
    else:
        rank_zero_only(_finish)(output, composition, results)
    return results


def _refuse_to_replace(output: Path, composition: dict[str, Any]) -> None:
    """Refuses to replace results of other settings or weights, but for the tasks `GOES_ON`.

    Raises:
        InputError: naming what differs.
    """
    results, config = output / "results.json", output / "config.yaml"
    goes_on = composition["task"]["_target_"].endswith(GOES_ON)
    if goes_on or not (results.exists() and config.exists()):
        return
    elsewhere = ("trainer", "weights")  # the first is of training only; of the second, the content counts
    earlier = options_that_matter(read_settings(config), *elsewhere)
    wanted = options_that_matter(composition, *elsewhere)
    sha256 = read_record(results).get("sha256")
    weights = composition.get("weights")
    refuse_other_work(output, earlier, wanted, "results of other settings")
    if sha256 and weights and weights_file(weights).is_file() and sha256_of(weights_file(weights)) != sha256:
        raise InputError(
            f"{output}: the folder holds results of other weights than {weights} has now, such as of an earlier step; "
            "expected resume=false for a new folder, or another output=DIR."
        )


def _finish(output: Path, composition: dict[str, Any], results: dict[str, Any]) -> None:
    write_atomically(output / "config.yaml", yaml.safe_dump(composition, sort_keys=False).encode())
    write_atomically(output / "results.json", json.dumps(results, indent=1).encode())
    remove_own_folder(output / UNFINISHED)
    print(f"Results: {output / 'results.json'}")
    print(json.dumps(results))


def _plain(config: DictConfig, resolve: bool) -> dict[str, Any]:
    """Turns a configuration into plain values, with its references such as `${seed}` or what they stand for."""
    content = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(content, dict)
    return {str(name): value for name, value in content.items()}
