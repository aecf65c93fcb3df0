"""What the LightningModules of networks and of tokenizers have in common."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from enat.errors import InputError


class AveragedModule(L.LightningModule):
    """Trains a network of which `callbacks.EMA` may keep an average; our callbacks serve any such module.

    Args:
        net: the network.
        optimizer: makes the optimiser from the parameters.
        scheduler: makes the learning-rate schedule, stepped once per optimiser step, from the optimiser.
    """

    net: Any
    ema_net: Any  # set by callbacks.EMA, in evaluation mode; no submodule: checkpoints and DDP ignore it

    def __init__(
        self,
        net: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
    ):
        super().__init__()
        self.net = net
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.__dict__["ema_net"] = None  # past nn.Module, which would make it a submodule
        self.group_values: list[dict[str, Tensor]] = []  # of the last training batch, for callbacks.TrainingLog

    @property
    def averaged_net(self) -> Any:
        """The network that is used after training: the EMA network where there is one."""
        return self.net if self.ema_net is None else self.ema_net

    def summary_rows(self) -> dict[str, str]:
        """Returns what the summary of a run says of the module, by name."""
        return {}

    def batch_flops(self, batch: Any) -> int | None:
        """Returns the operations of training on the last batch; None where they are not counted."""
        return None

    def current_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the weights in a checkpoint of an older version the names that the network has now."""
        return state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.current_names(checkpoint["state_dict"])

    def on_train_start(self) -> None:
        """Sets the learning rate of the first step by the schedule: a run that goes on may have another end of it.

        Raises:
            InputError: for options with which torch or Lightning would stop at a later step.
        """
        trainer = self.trainer
        is_fused = any(optimizer.defaults.get("fused") for optimizer in trainer.optimizers)
        if trainer.gradient_clip_val and is_fused and "mixed" in str(trainer.precision):
            raise InputError(
                f"trainer.gradient_clip_val={trainer.gradient_clip_val}: a fused optimiser does not clip gradients in "
                f"trainer.precision={trainer.precision}; expected module.optimizer.fused=false."
            )
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, OneCycleLR) and schedule.total_steps < trainer.max_steps:
                raise InputError(
                    f"module.scheduler: total_steps={schedule.total_steps} of OneCycleLR is less than "
                    f"trainer.max_steps={trainer.max_steps}; expected at least as many."
                )
            if not isinstance(schedule, LambdaLR):  # others have the end that their checkpoint says
                continue
            groups = schedule.optimizer.param_groups
            for group, rate, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = rate * factor(schedule.last_epoch)

    def configure_optimizers(self) -> Any:
        with _refusals_of("module.optimizer"):
            optimizer = self.optimizer([weight for weight in self.parameters() if weight.requires_grad])
        with _refusals_of("module.scheduler"):
            schedule = self.scheduler(optimizer)
        if isinstance(schedule, ReduceLROnPlateau):
            raise InputError("module.scheduler: ReduceLROnPlateau has no value to watch here; expected another one.")
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@contextmanager
def _refusals_of(option: str) -> Iterator[None]:
    """Raises InputError, with the name of an option, for values that a class of torch refuses."""
    try:
        yield
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise InputError(f"{option}: {str(error).removesuffix('.')}.") from error
