"""Says which of several processes this one is, without imports that take time."""

import os
from typing import NamedTuple


class Launched(NamedTuple):
    """Says how torchrun or srun started this process and others."""

    per_machine: int
    machines: int


def is_of_torchrun() -> bool:
    """Says whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_of_srun() -> bool:
    """Says whether this is one of several tasks of a step of srun.

    It is not in the script around a step. A single task, such as a shell that `srun --pty bash` has opened, may start
    processes of its own.
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launched() -> Launched | None:
    """Returns how many processes torchrun or srun started; None if neither of them started this one."""
    if is_of_torchrun():
        per_machine = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        return Launched(per_machine, int(os.environ["WORLD_SIZE"]) // per_machine)
    if is_of_srun():
        machines = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        return Launched(int(os.environ["SLURM_STEP_NUM_TASKS"]) // machines, machines)
    return None


def is_first() -> bool:
    """Says whether this process leads all others, also of those that Lightning itself has started."""
    if launched() is not None:
        return processes()[0] == 0
    return os.environ.get("LOCAL_RANK", "0") == "0"


def processes() -> tuple[int, int, int]:
    """Returns this process's rank, the number of processes, and its rank on its machine, as torchrun or srun says.

    Without either of them, that is (0, 1, 0).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    defaults = ("0", "1", "0")
    if is_of_srun() and "RANK" not in os.environ:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    rank, size, local_rank = (int(os.environ.get(name, value)) for name, value in zip(names, defaults, strict=True))
    return rank, size, local_rank
