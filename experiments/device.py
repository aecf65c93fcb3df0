"""Where a task without a Trainer computes."""

import os

import torch

from enat.errors import InputError


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
