"""Changes options of the optimiser when a run goes on."""

from collections.abc import Mapping
from typing import Any

import lightning as L


class ChangedOptions(L.Callback):
    """Gives a run that goes on other options of the optimiser than its checkpoint has, such as the learning rate.

    Where the schedule of the learning rate stands is kept: the rate is scaled by the ratio of the two values.

    Args:
        options: the new values, by name.
    """

    def __init__(self, options: Mapping[str, Any]):
        self.options = options

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                rest = dict(self.options)
                if "lr" in rest:
                    is_zero = group["initial_lr"] == 0  # and so has no place in the schedule
                    group["lr"] = rest["lr"] if is_zero else group["lr"] * rest["lr"] / group["initial_lr"]
                    group["initial_lr"] = rest.pop("lr")
                group.update(rest)
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [group["initial_lr"] for group in config.scheduler.optimizer.param_groups]
