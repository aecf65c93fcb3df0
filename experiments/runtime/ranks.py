"""Says which of several processes this one is, without imports that take time."""

import os


def processes() -> tuple[int, int, int]:
    """Returns this process's rank, the number of processes, and its rank on its machine, as torchrun or srun says.

    Without either of them, that is (0, 1, 0).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    defaults = ("0", "1", "0")
    # Within a step of srun; not in the script around it, nor in a shell that `srun --pty bash` has opened.
    in_step = "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    if in_step and "RANK" not in os.environ:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, size, local_rank = (int(os.environ.get(name, value)) for name, value in zip(names, defaults, strict=True))
    return rank, size, local_rank
