"""FID, Inception Score and their kin while training."""

import lightning as L

from enat.errors import InputError
from enat.metrics.evaluation import Evaluation
from enat.metrics.processes import Processes
from enat.module import MaskedTokenModule
from enat.sampler import Sampler


class GenerationMetrics(L.Callback):
    """At each validation, scores images of the averaged network on all ranks and logs them.

    The first protocol's scores are `val/fid` and so on, those of others `val/PROTOCOL/fid`.

    Args:
        evaluation: the engine that `task=evaluate` uses too.
        sampler: makes the token ids; the data module's tokenizer makes images of them.
        num_images: how many; FIDs of different numbers of images are not comparable.
    """

    def __init__(self, evaluation: Evaluation, sampler: Sampler, num_images: int):
        if num_images < max(2, evaluation.splits):
            raise InputError(f"num_images={num_images}: expected at least {max(2, evaluation.splits)}.")
        self.evaluation, self.sampler, self.num_images = evaluation, sampler, num_images
        self.processes: Processes | None = None  # known when training starts

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        self.processes = self.processes or Processes()
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        context = trainer.precision_plugin.forward_context
        images = self.evaluation.generated(
            pl_module.averaged_net, self.sampler, tokenizer, self.num_images, context=context
        )
        scores = self.evaluation.score(images, pl_module.device, self.processes, full=False)
        for place, (protocol, row) in enumerate(scores.items()):
            prefix = f"val/{protocol}/" if place else "val/"
            logged = {f"{prefix}{name}": value for name, value in row.items() if name != "num_images"}
            pl_module.log_dict(logged, sync_dist=True)  # the same on all ranks already
