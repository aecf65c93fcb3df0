"""Says on which device this process computes, and starts the processes of a task without a Trainer."""

import os
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Literal

import lightning as L
import lightning.fabric.strategies as fabric_strategies
import lightning.pytorch.strategies as trainer_strategies
import torch
from annotated_types import Ge, Gt
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from enat.errors import InputError
from experiments.runtime.multirun import is_job
from experiments.runtime.ranks import is_of_srun, is_of_torchrun, launched, processes

Accelerator = Literal["auto", "cpu", "gpu", "cuda", "mps"]
Strategy = fabric_strategies.Strategy | trainer_strategies.Strategy
Precision = Literal["32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed"]


def device_for(accelerator: Accelerator) -> torch.device:
    """Returns the device of this process: a GPU for each process on a machine that has GPUs, or the CPU.

    The GPU of an Apple computer is taken only where `mps` asks for it, since nothing was run there yet.

    Raises:
        InputError: if a GPU is asked for and there is none.
    """
    if accelerator == "mps":
        if not torch.backends.mps.is_available():
            raise InputError("trainer.accelerator=mps: there is no Apple GPU here; expected cpu or auto.")
        return torch.device("mps")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", processes()[2] % torch.cuda.device_count())  # srun may show each process one GPU
    if accelerator in ("gpu", "cuda"):
        raise InputError(f"trainer.accelerator={accelerator}: there is no GPU here; expected cpu or auto.")
    return torch.device("cpu")


def ddp(find_unused_parameters: bool, timeout_minutes: Annotated[float, Gt(0)]) -> DDPStrategy:
    """Returns the strategy of data-parallel training on all devices.

    Args:
        find_unused_parameters: whether each step looks for parameters that it did not use.
        timeout_minutes: a rank that does not answer for so long ends the run with a message.
    """
    return DDPStrategy(
        find_unused_parameters=find_unused_parameters,
        timeout=timedelta(minutes=timeout_minutes),
        gradient_as_bucket_view=True,
    )


def cluster_plugins() -> list[Any]:
    """Returns the environment that Lightning has to assume, where it would take a job of SLURM for a step of srun.

    Raises:
        InputError: if SLURM allotted several tasks, and this process was started without srun.
    """
    if is_of_torchrun() or "SLURM_NTASKS" not in os.environ:
        return []
    if is_of_srun():
        # Lightning asks for this variable, which srun sets only with --ntasks-per-node.
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", f"{launched().per_machine}")  # type: ignore[union-attr]
        return [SLURMEnvironment(auto_requeue=False)]  # `LeaveOnSignal` requeues the job
    if int(os.environ["SLURM_NTASKS"]) > 1 and "SLURM_STEP_NUM_TASKS" not in os.environ:
        raise InputError(
            f"SLURM_NTASKS={os.environ['SLURM_NTASKS']}: this process was started without srun, so it is one alone; "
            "expected `srun python run.py ...`, or `--ntasks=1` in the job."
        )
    return [LightningEnvironment()]


def devices_of_launcher(trainer: partial[L.Trainer]) -> dict[str, Any]:
    """Returns the options of a Trainer that follow from torchrun or srun, whatever its YAML says; none without them."""
    started = launched()
    if started is None:
        return {}
    options: dict[str, Any] = {"devices": started.per_machine, "num_nodes": started.machines}
    if started != (1, 1) and trainer.keywords.get("strategy") == "auto":
        options["strategy"] = ddp(find_unused_parameters=True, timeout_minutes=10)
    return options


def sets_find_unused_parameters(strategy: DDPStrategy) -> bool:
    """Says whether the option `find_unused_parameters` was set for a strategy, to true or to false.

    `_ddp_kwargs` is private to Lightning: a strategy has no public view of the options that it hands to torch's
    DistributedDataParallel. With one, this function would read it instead.
    """
    return "find_unused_parameters" in strategy._ddp_kwargs


def launch(
    accelerator: Accelerator, devices: int | str, num_nodes: Annotated[int, Ge(1)], precision: Precision
) -> Fabric:
    """Starts the processes of a task, or joins those that torchrun or srun started.

    Args:
        accelerator, devices, num_nodes: as of Lightning's Trainer.
        precision: of network and tokenizer: `..-true` casts the weights once, `..-mixed` at each product.

    Raises:
        InputError: for values that Lightning refuses.
    """
    device_for(accelerator)
    if started := launched():
        devices, num_nodes = started
    try:
        strategy = "auto" if (devices, num_nodes) == (1, 1) else "ddp"
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
            plugins=cluster_plugins(),
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise InputError(f"trainer: {str(error).rstrip('.')}.") from error
    if fabric.world_size > 1:
        refuse_in_multirun(fabric.strategy, devices)
    fabric.launch()
    return fabric


def starts_processes(strategy: Strategy) -> bool:
    """Says whether a strategy starts the processes of its devices itself, so that neither srun nor torchrun did."""
    if not isinstance(strategy, fabric_strategies.ParallelStrategy | trainer_strategies.ParallelStrategy):
        return False
    environment = strategy.cluster_environment
    return environment is not None and not environment.creates_processes_externally


def refuse_in_multirun(strategy: Strategy, devices: int | str) -> None:
    """Refuses, in a multirun, a strategy that starts processes: each would run the same command, so the whole sweep.

    Raises:
        InputError: if this is a job of a multirun, and the strategy starts processes.
    """
    if starts_processes(strategy) and is_job():
        raise InputError(
            f"trainer.devices={devices}: expected one device in a multirun, or a launcher that starts the "
            "processes of each run, such as hydra/launcher=submitit_slurm."
        )
