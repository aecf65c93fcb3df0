"""Schedules of the learning rate that torch lacks, or keeps in a checkpoint so that a run can't be made longer."""

import math
from typing import Annotated

from annotated_types import Ge
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: Annotated[int, Ge(0)], max_steps: Annotated[int, Ge(1)]
) -> LambdaLR:
    """Raises the learning rate in a straight line for `warmup_steps`, then lowers it to 0 along half a cosine."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = (step - warmup_steps) / max(max_steps - warmup_steps, 1)
        return (1 + math.cos(math.pi * min(progress, 1.0))) / 2

    return LambdaLR(optimizer, factor)
