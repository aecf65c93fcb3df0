"""Where a task without a Trainer computes."""

import os
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies.launchers.subprocess_script import (
    _SubprocessScriptLauncher as _FabricScriptLauncher,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from enat.errors import InputError
from experiments.runtime.multirun import is_job

PRECISIONS = ("32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")


def processes() -> tuple[int, int, int]:
    """Which process this is, of how many, and which on its machine, as torchrun or srun says; (0, 1, 0) without."""
    names, default = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), ("0", "1", "0")
    in_step = SLURMEnvironment.detect() and "SLURM_STEP_NUM_TASKS" in os.environ  # not in the script around it
    if in_step and "RANK" not in os.environ:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, size, local_rank = (int(os.environ.get(name, value)) for name, value in zip(names, default, strict=True))
    return rank, size, local_rank


def device_for(accelerator: str) -> torch.device:
    """The device of this process: its GPU of those that it sees (a task of srun may see one alone), or the CPU.

    Raises:
        InputError: if a GPU is asked for and there is none, or for an unknown accelerator.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(f"trainer.accelerator={accelerator}: expected auto, cpu, gpu or cuda.")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", processes()[2] % torch.cuda.device_count())
    if accelerator in ("gpu", "cuda"):
        raise InputError(f"trainer.accelerator={accelerator}: there is no GPU here; expected cpu or auto.")
    return torch.device("cpu")


def ddp(find_unused_parameters: bool, timeout_minutes: float) -> DDPStrategy:
    """Data-parallel training on all devices; a rank that does not answer for so long ends the run with a message."""
    return DDPStrategy(
        find_unused_parameters=find_unused_parameters,
        timeout=timedelta(minutes=timeout_minutes),
        gradient_as_bucket_view=True,
    )


def launch(accelerator: str, devices: int | str, num_nodes: int, precision: str) -> Fabric:
    """Starts the processes of a task, or joins those that torchrun or srun started.

    Args:
        accelerator, devices, num_nodes: as of Lightning's Trainer.
        precision: of network and tokenizer: `..-true` casts the weights once, `..-mixed` at each product.

    Raises:
        InputError: for other values.
    """
    if precision not in PRECISIONS:
        raise InputError(f"fabric.precision={precision}: expected one of {', '.join(PRECISIONS)}.")
    device_for(accelerator)
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun has decided
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif (devices, num_nodes) == (1, 1) and processes()[1] > 1:
        raise InputError(
            f"trainer.devices=1: srun has started {processes()[1]} tasks, which would all do the same; expected "
            "trainer.devices and trainer.num_nodes to be those of srun."
        )
    try:
        strategy = "auto" if (devices, num_nodes) == (1, 1) else "ddp"
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,  # type: ignore[arg-type]
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise InputError(f"trainer: {error}") from error
    if fabric.world_size > 1:
        check_multirun(fabric.strategy, devices)
    fabric.launch()
    return fabric


def starts_processes(strategy: Any) -> bool:
    """Whether a strategy starts processes for its other devices, by the same command, instead of srun or torchrun."""
    launcher = strategy.launcher
    by_script = isinstance(launcher, _SubprocessScriptLauncher | _FabricScriptLauncher)
    return by_script and not launcher.cluster_environment.creates_processes_externally


def check_multirun(strategy: Any, devices: int | str) -> None:
    """Refuses, in a multirun, a strategy that starts processes: each would run the whole sweep.

    Raises:
        InputError: if it does.
    """
    if starts_processes(strategy) and is_job():
        raise InputError(
            f"trainer.devices={devices}: expected one device in a multirun, or a launcher that starts the "
            "processes of each run, such as hydra/launcher=submitit_slurm."
        )
