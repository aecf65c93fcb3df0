"""FID, Inception Score and their kin while training."""

import lightning as L

from enat.metrics.evaluation import Evaluation
from enat.module import MaskedTokenModule
from enat.sampler import Sampler


class GenerationMetrics(L.Callback):
    """At each validation, scores images of the averaged network on all ranks and logs them as `val/...`.

    Args:
        evaluation: the engine that `task=evaluate` uses too.
        sampler: makes the token ids; the data module's tokenizer makes images of them.
    """

    def __init__(self, evaluation: Evaluation, sampler: Sampler):
        self.evaluation, self.sampler = evaluation, sampler

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MaskedTokenModule)
        with trainer.precision_plugin.forward_context():
            scores = self.evaluation.score_network(
                pl_module.averaged_net,
                self.sampler,
                trainer.datamodule.tokenizer,  # type: ignore[attr-defined]
                trainer.global_rank,
                trainer.world_size,
            )
        pl_module.log_dict({f"val/{name}": value for name, value in scores.items()}, rank_zero_only=False)
