"""FID, Inception Score and their kin while training."""

import lightning as L

from enat.errors import InputError
from enat.metrics.evaluation import Evaluation
from enat.module import MaskedTokenModule
from enat.sampler import Sampler


class GenerationMetrics(L.Callback):
    """At each validation, scores images of the averaged network on all ranks and logs them as `val/...`.

    Args:
        evaluation: the engine that `task=evaluate` uses too.
        sampler: makes the token ids; the data module's tokenizer makes images of them.
        num_images: how many; FIDs of different numbers of images are not comparable.
    """

    def __init__(self, evaluation: Evaluation, sampler: Sampler, num_images: int):
        if num_images < max(2, evaluation.splits):
            raise InputError(f"num_images={num_images}: expected at least {max(2, evaluation.splits)}.")
        self.evaluation, self.sampler, self.num_images = evaluation, sampler, num_images

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        scores = self.evaluation.score_network(
            pl_module.averaged_net,
            self.sampler,
            trainer.datamodule.tokenizer,  # type: ignore[attr-defined]
            self.num_images,
            trainer.global_rank,
            trainer.world_size,
            context=trainer.precision_plugin.forward_context,
        )
        logged = {f"val/{name}": value for name, value in scores.items() if name != "num_images"}
        pl_module.log_dict(logged, sync_dist=True)  # the same on all ranks already
