"""Trainers: what `task=train` and `task=train_tokenizer` have in common."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from callbacks.changed_options import ChangedOptions
from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints, LeaveOnSignal
from callbacks.generation_metrics import ImageMetrics
from callbacks.run_facts import RunFacts
from enat.errors import InputError
from enat.files import part_of, write_atomically
from enat.training.module import AveragedModule
from experiments.runtime.launch import (
    cluster_plugins,
    devices_of_launcher,
    refuse_in_multirun,
    sets_find_unused_parameters,
)
from experiments.runtime.multirun import is_job
from experiments.runtime.provenance import commit

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")  # by name
NEEDED = ("max_steps", "val_check_interval", "check_val_every_n_epoch", "use_distributed_sampler")


def refuse_options(options: Mapping[str, Any]) -> None:
    """Refuses options of Lightning's Trainer with which training would be silently wrong or have no end.

    Raises:
        InputError: naming the option.
    """
    for name in NEEDED:
        if name not in options:
            raise InputError(
                f"trainer.{name}: it is missing, and Lightning's default is wrong here; expected no ~trainer.{name}."
            )
    if (precision := str(options.get("precision"))) in ("bf16-true", "16-true", "bf16", "16"):
        raise InputError(
            f"trainer.precision={precision}: weights and their average would be rounded to half precision, in which "
            "they stop to move; expected bf16-mixed or 16-mixed."
        )
    if not isinstance(steps := options["max_steps"], int) or steps < 1:
        raise InputError(f"trainer.max_steps={steps}: expected at least 1, for the data have no end.")
    if not isinstance(batches := options.get("accumulate_grad_batches", 1), int) or batches < 1:
        raise InputError(f"trainer.accumulate_grad_batches={batches}: expected at least 1.")
    interval = options["val_check_interval"]
    if interval is not None and (not isinstance(interval, int) or interval < 1):
        raise InputError(f"trainer.val_check_interval={interval}: expected a number of batches of at least 1, or null.")
    clip = options.get("gradient_clip_val")
    if clip is not None and (not isinstance(clip, int | float) or not clip > 0):
        raise InputError(f"trainer.gradient_clip_val={clip}: expected a norm above 0, or null not to clip.")
    for name in ("limit_train_batches", "overfit_batches", "max_epochs", "min_epochs", "min_steps", "max_time"):
        if options.get(name) is not None:
            raise InputError(f"trainer.{name}={options[name]}: the data have no epochs; expected trainer.max_steps=N.")
    if options["check_val_every_n_epoch"] is not None:
        raise InputError(
            f"trainer.check_val_every_n_epoch={options['check_val_every_n_epoch']}: the data have no epochs, so that "
            "there could be no validation; expected null, and trainer.val_check_interval=N batches."
        )
    if options["use_distributed_sampler"]:
        raise InputError("trainer.use_distributed_sampler=true: the data divide themselves already; expected false.")
    if options.get("fast_dev_run"):
        raise InputError("trainer.fast_dev_run: it would end without the steps asked for; expected experiment=debug.")
    if options.get("barebones") or options.get("enable_checkpointing") is False:
        raise InputError(
            "trainer: barebones=true and enable_checkpointing=false are not possible; expected "
            "callbacks.checkpoint=null to save nothing before the end."
        )
    strategy = options.get("strategy", "auto")
    if strategy not in STRATEGIES and type(strategy) not in (DDPStrategy, SingleDeviceStrategy):
        raise InputError(
            f"trainer.strategy={strategy}: expected auto, or trainer=ddp for several devices, since each process has "
            "to hold all weights for their average."
        )
    for name in ("callbacks", "logger", "plugins"):
        if name in options:
            raise InputError(f"trainer.{name}: training replaces it; callbacks and loggers are groups of their own.")


def refuse_other_places(settings: Mapping[str, Any], folder: Path) -> None:
    """Refuses checkpoints and curves elsewhere than where the same command, reports and other tasks look for them.

    So it does with a file in the place of the folder of checkpoints, which would stop the run at the first one.

    Args:
        settings: the whole configuration.
        folder: of the run.

    Raises:
        InputError: naming the option or the file.
    """
    checkpoints = folder / "checkpoints"
    if checkpoints.exists() and not checkpoints.is_dir():
        raise InputError(f"{checkpoints}: this is no folder; expected one for checkpoints, or none.")
    for name, options in settings["callbacks"].items():
        place = part_of(options, "folder")
        is_checkpoint = str(part_of(options, "_target_")).endswith(".Checkpoints")
        if is_checkpoint and Path(place).resolve() != checkpoints.resolve():
            raise InputError(
                f"callbacks.{name}.folder={place}: checkpoints are looked for in {checkpoints}; expected "
                "output=DIR for a run in another place, or a link to another folder there."
            )
    for name, options in settings["logger"].items():
        if not str(part_of(options, "_target_")).endswith(".CSVLogger"):
            continue
        if part_of(options, "version") is not None:
            raise InputError(
                f"logger.{name}.version={options['version']}: the curves of this version would be deleted when the "
                "run goes on; expected no version, so that each start has the next one."
            )
        place = Path(options["save_dir"]) / str(part_of(options, "name"))
        if place.resolve() != (folder / "metrics").resolve():
            raise InputError(
                f"logger.{name}: its files would be in {place}, and reports look for them in {folder / 'metrics'}; "
                f"expected no other logger.{name}.name or save_dir."
            )


def build_trainer(
    trainer: partial[L.Trainer],
    callbacks: Mapping[str, L.Callback | None],
    logger: Mapping[str, Logger | None],
) -> L.Trainer:
    """Builds a Trainer with the callbacks and loggers that are not None.

    Raises:
        InputError: for settings that do not fit together.
    """
    chosen = [callback for callback in callbacks.values() if callback is not None]
    loggers = [log for log in logger.values() if log is not None]
    refuse_options(trainer.keywords)
    monitors = [callback.monitor for callback in chosen if isinstance(callback, Checkpoints)]
    scorers = [callback for callback in chosen if isinstance(callback, ImageMetrics) and callback.evaluation]
    if "val/fid" in monitors and not scorers:
        raise InputError(
            "callbacks.checkpoint.monitor=val/fid: there is no callback, such as generation_metrics, to compute it; "
            "expected another value, such as auto."
        )
    try:
        plugins: list[Any] = [AtomicCheckpointIO(), *cluster_plugins()]
        options = {"plugins": plugins, "logger": loggers or False, **devices_of_launcher(trainer)}
        saves = any(isinstance(callback, Checkpoint) for callback in chosen)  # or Lightning would, in a way of its own
        built = trainer(callbacks=chosen, enable_checkpointing=saves, **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"trainer: {str(error).rstrip('.')}.") from error
    if isinstance(built.strategy, DDPStrategy) and not sets_find_unused_parameters(built.strategy):
        raise InputError(f"trainer.devices={built.num_devices}: expected trainer=ddp for several devices.")
    if built.world_size > 1:
        refuse_in_multirun(built.strategy, built.num_devices)
    if isinstance(built.val_check_interval, int) and built.val_check_interval % built.accumulate_grad_batches:
        raise InputError(
            f"trainer.val_check_interval={built.val_check_interval}: expected a multiple of "
            f"trainer.accumulate_grad_batches={built.accumulate_grad_batches}, so that no checkpoint cuts a step."
        )
    return built


@contextmanager
def trained(
    fitter: L.Trainer, module: AveragedModule, data: L.LightningDataModule, start: Path | None, folder: Path
) -> Iterator[None]:
    """Trains, and then lets the body score what was trained; signals end the one as the other.

    Args:
        fitter, module, data: of the run.
        start: the checkpoint that the run goes on from; None for a new run.
        folder: of the run.
    """
    leaving = [callback for callback in fitter.callbacks if isinstance(callback, LeaveOnSignal)]  # type: ignore[attr-defined]
    with ExitStack() as handlers:
        for callback in leaving:
            handlers.enter_context(callback.handling())
        fitter.fit(module, datamodule=data, ckpt_path=start, weights_only=True)
        if not isinstance(fitter.checkpoint_callback, Checkpoints):
            fitter.save_checkpoint(folder / "checkpoints" / "last.ckpt")
        for callback in leaving:
            callback.finish_training(fitter)
        yield


def finish_logs(loggers: Sequence[Logger], scores: Mapping[str, float], step: int) -> None:
    """Logs the scores after training, and closes the loggers."""
    for log in loggers:
        log.log_metrics({f"final/{name}": value for name, value in scores.items()}, step)
        log.finalize("success")
        if isinstance(log, WandbLogger):
            log.experiment.finish()


@contextmanager
def recorded(
    fitter: L.Trainer, settings: Mapping[str, Any], composition: Mapping[str, Any], folder: Path
) -> Iterator[None]:
    """Gives the settings to the loggers, and writes the configuration into the run's folder.

    If the body ends with an error before it has saved a checkpoint, such as one about an option, the folder gets its
    earlier configuration and results back.
    """
    for log in fitter.loggers:
        log.log_hyperparams({**settings, "commit": commit()})
    if not fitter.is_global_zero:
        yield
        return
    config, results, aside = (folder / name for name in ("config.yaml", "results.json", "results_before.json"))
    earlier = config.read_bytes() if config.exists() else None
    has_results = results.exists()
    checkpoints = _checkpoints(folder)
    if has_results:  # of fewer steps, or of other scores
        results.replace(aside)
    write_atomically(config, yaml.safe_dump(dict(composition), sort_keys=False).encode())
    try:
        yield
    except Exception:
        if earlier is not None and _checkpoints(folder) == checkpoints:
            write_atomically(config, earlier)
            if has_results:
                aside.replace(results)
        raise


def _checkpoints(folder: Path) -> set[tuple[str, int]]:
    """Returns the names and the inodes of a run's checkpoints, each of which is a new file."""
    return {(path.name, path.lstat().st_ino) for path in (folder / "checkpoints").glob("*.ckpt")}


def with_own_callbacks(
    callbacks: Mapping[str, L.Callback | None],
    module: AveragedModule,
    settings: Mapping[str, Any],
    changed_on_resume: Collection[str],
) -> dict[str, L.Callback | None]:
    """Returns the callbacks with those that every run has, or that an option of the task asks for."""
    for callback in callbacks.values():
        if isinstance(callback, LeaveOnSignal):
            callback.command = command_that_goes_on(settings)
    own: dict[str, L.Callback | None] = {"facts": RunFacts(settings)}
    if changed_on_resume:
        options: Mapping[str, Any] = module.optimizer.keywords  # type: ignore[attr-defined]  # of a partial
        if missing := [name for name in changed_on_resume if name not in options]:
            raise InputError(
                f"changed_on_resume=[{','.join(missing)}]: module.optimizer has no such option; expected one that it "
                "has, such as lr."
            )
        own["changed_options"] = ChangedOptions({name: options[name] for name in changed_on_resume})
    return {**callbacks, **own}


def command_that_goes_on(settings: Mapping[str, Any]) -> str:
    """Names the command that goes on with a run. The one that began it with resume=false would begin another."""
    if settings["resume"]:
        return "the same command"
    if is_job():  # which keeps its folder
        return "the same command without resume=false"
    return f"the same command with output={settings['output']} instead of resume=false"
