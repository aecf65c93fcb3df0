"""The processes that share an evaluation."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from enat.errors import InputError

T = TypeVar("T")


class Processes:
    """One process, or the processes of torch.distributed, which exchange objects in main memory whatever their backend.

    Every process has to make one, and to call its methods in the same order.
    """

    def __init__(self) -> None:
        shared = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.group: Any = dist.new_group(backend="gloo") if shared else None
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)

    def gather(self, item: T) -> list[T]:
        """Returns the items of all processes by rank, on every process."""
        if self.group is None:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item, group=self.group)
        return items

    def on_first(self, work: Callable[[], T]) -> T:
        """Does some work on rank 0 and returns its result on every process.

        Raises:
            InputError: on every process, if the work raises it.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except InputError as error:
                outcome[1] = str(error)
        if self.group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise InputError(outcome[1])
        return outcome[0]
