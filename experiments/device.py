"""Where a task without a Trainer computes."""

import os
from datetime import timedelta

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy

from enat.errors import InputError

PRECISIONS = ("32-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed")


def device_for(accelerator: str) -> torch.device:
    """The device of this process: the GPU of its LOCAL_RANK (as torchrun sets it), or the CPU.

    Raises:
        InputError: if a GPU is asked for and there is none, or for an unknown accelerator.
    """
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise InputError(f"trainer.accelerator={accelerator}: expected auto, cpu, gpu or cuda.")
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
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
    fabric.launch()
    return fabric
