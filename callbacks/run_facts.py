"""Adds to checkpoints what they have to say of their run, and refuses to save weights that are not finite."""

from collections.abc import Mapping
from typing import Any

import lightning as L

from callbacks.guard import advice_on_divergence
from enat.errors import InputError


class RunFacts(L.Callback):
    """Adds to each checkpoint what it has to say of its run: the configuration, the processes, classes and samples.

    Args:
        settings: the whole configuration as plain values.

    Raises:
        InputError: in training, for weights that are not finite; they are not saved.
    """

    def __init__(self, settings: Mapping[str, Any]):
        self.settings = settings
        self.fingerprints: dict[str, str] = {}  # of the tokenizer

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        refuse_diverged(trainer, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["settings"] = dict(self.settings)
        checkpoint["world_size"] = trainer.world_size
        checkpoint["class_names"] = list(data.class_names)
        checkpoint["data_sha256"] = data.sha256()
        if hasattr(data, "tokenizer"):  # training of a tokenizer has images
            self.fingerprints = self.fingerprints or data.tokenizer.fingerprints()
            checkpoint.update(self.fingerprints)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        count_batches(checkpoint, trainer.accumulate_grad_batches)


def refuse_diverged(trainer: L.Trainer, module: Any) -> None:
    """Raises InputError if weights of a network in training, or of its average, are not finite."""
    for net in (module, module.averaged_net):
        if not all(weight.isfinite().all() for weight in net.state_dict().values()):
            raise InputError(
                f"step {trainer.global_step}: training has diverged, for weights are NaN or infinite; they are not "
                f"saved, and earlier checkpoints are kept. {advice_on_divergence(trainer)}"
            )


def count_batches(checkpoint: dict[str, Any], accumulated: int) -> None:
    """Makes a checkpoint's number of batches follow from its optimiser steps and the batches that a step has now.

    Lightning would go on counting where it was. After a change of the number of accumulated batches, a step could then
    begin with its last batch. The layout is private to Lightning, see `callbacks.checkpoints`.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counters in (progress["total"], progress["current"]):
        counters |= dict.fromkeys(counters, checkpoint["global_step"] * accumulated)
