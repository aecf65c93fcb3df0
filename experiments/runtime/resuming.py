"""Finds where a run goes on, and refuses to go on with another one."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, get_args

from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import TypedDict  # of typing, pydantic needs that of Python 3.12

from data.image_module import ImageDataModule
from data.module import TokenDataModule
from enat.checkpoints.description import check_description
from enat.checkpoints.weights import read_file
from enat.errors import InputError, printable
from enat.files import CHOICES, by_full_name, read_record, refuse_other_work, sha256_of, weights_file
from enat.training.module import AveragedModule
from experiments.runtime.damage import fault_of_optimizer, fault_of_weights
from experiments.runtime.run_files import is_of_requeued_job, options_that_matter, read_settings

Changeable = Literal["lr", "betas", "eps", "weight_decay"]  # options of the optimiser that may change if asked for
FIXED = ("seed", "module", "data", "tokenizer")  # options that may not change when a run goes on
FIXED_OF_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
# But for these of them: they change how fast a run is, or where files are. What is in the files is compared instead.
MAY_CHANGE = ("compile", "attention", "num_workers", "cache", "reader", "shards", "images", "weights", "max_steps")


class OfAverage(TypedDict, total=False):
    """What the average of the weights has in a checkpoint."""

    net: dict[str, Any]


class OfCallbacks(TypedDict, total=False):
    """The callbacks that have weights in a checkpoint."""

    EMA: OfAverage


class OfRun(TypedDict):
    """What the checkpoint of a run has beside what others have."""

    state_dict: dict[str, Any]
    callbacks: NotRequired[OfCallbacks]
    global_step: NotRequired[int]
    world_size: NotRequired[int | None]
    data_sha256: NotRequired[str | None]


def fixed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that must be the same when a run goes on."""
    fixed = {name: without_changing(settings.get(name)) for name in FIXED}
    trainer, callbacks = (settings.get(name) or {} for name in ("trainer", "callbacks"))
    fixed["trainer"] = {name: trainer.get(name) for name in FIXED_OF_TRAINER}
    return {**fixed, "callbacks": {"ema": callbacks.get("ema")}}


def without_changing(options: Any) -> Any:
    """Returns options without those that may change when a run goes on."""
    if not isinstance(options, Mapping):
        return options
    return {name: without_changing(value) for name, value in options.items() if name not in MAY_CHANGE}


def refuse_other_data(folder: Path, earlier: str | None, data: TokenDataModule | ImageDataModule) -> None:
    """Refuses to go on with other samples, or with samples of another tokenizer.

    Raises:
        InputError: if the hash of the samples is not the one in the checkpoint.
    """
    now = data.sha256()
    if earlier is not None and now not in (None, earlier):
        refuse_other_work(folder, {"data.sha256": earlier}, {"data.sha256": now}, "a run on other samples")


def refuse_other_start(
    folder: Path, weights: str | None, settings: Mapping[str, Any], option: str = "weights"
) -> dict[str, Any]:
    """Refuses to go on with a run that started from other weights; returns what its checkpoint says of its start.

    Weights that are not named, or no longer there, are not compared: they are not needed any more.

    Raises:
        InputError: if the run started from other weights, or from random ones.
    """
    earlier = settings.get("started_from") or {}
    if weights is not None and weights_file(weights).is_file():
        hashes = earlier.get("sha256"), sha256_of(weights_file(weights))
        before, now = ({f"{option}.sha256": sha256} for sha256 in hashes)
        refuse_other_work(folder, before, now, "a run that started from other weights")
    return dict(earlier)


def _files_of(folder: Path) -> dict[Path, list[Path]]:
    """Returns all names of each checkpoint in a folder, under one of them; links are names of the same file."""
    names = [path for path in sorted(folder.glob("*.ckpt"), reverse=True) if path.exists()]  # a link may lead nowhere
    files: dict[tuple[int, int, int], list[Path]] = {}
    for path in names:
        mark = path.stat()
        identity = (mark.st_ino, mark.st_size, mark.st_mtime_ns)  # some file systems give all files the same number
        files.setdefault(identity, []).append(path)
    return {paths[-1]: paths for paths in files.values()}


def _readable(files: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Reads checkpoints, and says which of them can't be read."""
    readable = {}
    for path in files:
        try:
            content = read_file(path)
            check_description(content, OfRun, f"weights={path}: this is no checkpoint of a run.")
            readable[path] = content
        except InputError as error:
            rank_zero_only(print)(printable(f"{error} Taking another checkpoint."))
    return readable


def resume_point(
    folder: Path,
    settings: Mapping[str, Any],
    module: AveragedModule,
    data: TokenDataModule | ImageDataModule,
    changed: Collection[str] = (),
    resume: bool = True,
) -> tuple[Path, dict[str, Any]] | None:
    """Finds the readable checkpoint of the latest step; returns its path and facts of its run, or None for a new run.

    The step is the one in the file: a copied folder has other file times, and a moved file another name.

    Args:
        folder: of the checkpoints.
        settings: the whole configuration.
        module, data: of the run that is to go on.
        changed: options of the optimiser that may differ from those in the checkpoint.
        resume: False for a run that begins anew; only a SLURM job that was put into the queue again then goes on.

    Raises:
        InputError: if no checkpoint can be read, or the run had other settings or another network.
    """
    if not resume and not is_of_requeued_job(folder.parent):
        return None
    files = _files_of(folder)
    readable = _readable(files)
    if readable:
        path, content = max(readable.items(), key=lambda item: (item[1].get("global_step", -1), item[0].name))
        may_change = {f"module.optimizer.{name}" for name in changed}
        earlier, wanted = (by_full_name(fixed_settings(part)) for part in (content.get("settings", {}), settings))
        of_average = {name for part in (earlier, wanted) for name in part if name.startswith("callbacks.ema")}
        if any(part.get("callbacks.ema._target_") is None for part in (earlier, wanted)):  # one may be added
            may_change |= of_average
        choices = CHOICES
        options = {name: f"module.optimizer.{name}" for name in get_args(Changeable)}
        changes = [name for name, full in options.items() if earlier.get(full) != wanted.get(full)]
        for part in (earlier, wanted):
            for name in may_change & part.keys():
                del part[name]
        if not set(changes) <= set(changed):
            choices += f"; changed_on_resume=[{','.join(changes)}] goes on with the change"
        refuse_other_work(folder.parent, earlier, wanted, "another run", choices)
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        weights = module.current_names(content["state_dict"])
        if shapes != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
            raise InputError(f"{path}: its weights do not fit this network; the code has changed since.")
        if fault := fault_of_weights(content) or fault_of_optimizer(content, module):
            same = [other for other in readable if other == path or sha256_of(other) == sha256_of(path)]
            names = ", ".join(name.name for other in same for name in files[other])
            raise InputError(
                f"{path}: {fault}; remove {names} to go on from an older checkpoint, or resume=false starts anew."
            )
        refuse_other_data(folder.parent, content.get("data_sha256"), data)
        return path, {name: content.get(name) for name in ("global_step", "world_size", "settings")}
    if files:
        raise InputError(f"output={folder.parent}: none of its checkpoints can be read; resume=false starts anew.")
    return None


def finished_results(
    folder: Path, composition: Mapping[str, Any], step: int, evaluation: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns the results of a run that has done all its steps and has these scores already; None for other runs.

    Args:
        folder, composition, step: the run's folder, configuration and steps that are done.
        evaluation: the identity of what its network is scored with, such as reference images; nothing without scores.
    """
    path = folder / "results.json"
    if not path.exists() or step < composition["trainer"]["max_steps"]:
        return None
    results = read_record(path)
    earlier = read_settings(folder / "config.yaml")
    if results.get("steps") != step:
        return None
    of_training = ("trainer", "callbacks", "data", "weights", "changed_on_resume")
    if options_that_matter(earlier, *of_training) != options_that_matter(composition, *of_training):
        return None  # it is scored again, in another way
    if results.get("evaluation", evaluation) != json.loads(json.dumps(evaluation)):  # results of old versions have none
        return None
    rank_zero_only(print)(
        f"{folder} is finished: {step} steps. trainer.max_steps=N trains on; resume=false starts anew."
    )
    return results


@rank_zero_only
def announce(path: Path, content: Mapping[str, Any], world_size: int, now: Mapping[str, Any]) -> None:
    """Prints from where a run goes on, and whether it gives the same bits as an uninterrupted run.

    Args:
        path, content: the checkpoint, and what is known of it.
        world_size, now: the number of processes and the settings of the run that goes on.
    """
    print(printable(f"Going on from {path}, step {content['global_step']}; resume=false starts anew."))
    before = content["world_size"]
    settings = content["settings"]
    if settings["module"].get("scheduler") != now["module"].get("scheduler"):  # of which no more than this may change
        steps = [part["trainer"].get("max_steps") for part in (now, settings)]
        note = (
            f"Note: trainer.max_steps={steps[0]} instead of {steps[1]}: the learning rate depends on it, so the "
            "results will differ from those of a run that had as many steps from the start."
        )
        print(printable(note))
    if before == world_size and settings["module"].get("mask_groups", 1) is None:
        accumulated, batches = (part["trainer"].get("accumulate_grad_batches", 1) for part in (settings, now))
        if accumulated != batches:
            note = (
                f"Note: trainer.accumulate_grad_batches={batches} instead of {accumulated}: masks and dropout are "
                "drawn by batch (module.mask_groups=null), so the results will differ."
            )
            print(printable(note))
    if before not in (None, world_size):
        module = settings["module"]
        if "mask_groups" not in module:
            masks = "but random numbers are drawn by process, so results may differ."
        elif module["mask_groups"] is None:
            masks = "but masks and dropout are drawn by process (module.mask_groups=null), so the results will differ."
        else:
            masks = "and so do the masks; only the order of sums differs, so results may differ in the last bits."
        number = f"{world_size} process{'es' if world_size > 1 else ''}"
        print(printable(f"Note: {number} instead of {before}: the data go on in the same order, {masks}"))
