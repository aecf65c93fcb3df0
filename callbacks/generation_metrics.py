"""Scores of images while training."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any

import lightning as L
from annotated_types import Ge

from enat.generation import GeneratedImages
from enat.images import Images
from enat.metrics.evaluation import Evaluation
from enat.module import MaskedTokenModule
from enat.processes import Processes
from enat.sampler import Sampler


class ImageMetrics(L.Callback, ABC):
    """Scores images that a module makes at each validation, on all ranks, and logs the scores.

    The first protocol's scores are logged as `val/fid` and so on, those of others as `val/PROTOCOL/fid`.

    Args:
        evaluation: the torchmetrics metrics that `task=evaluate` uses too; None to score nothing.
        leave_out: names of scores that are only computed after training.
    """

    def __init__(self, evaluation: Evaluation | None, leave_out: Sequence[str]):
        if evaluation is not None:
            evaluation.leave_out(leave_out)
        self.evaluation = evaluation
        self.processes: Processes | None = None  # known when training starts

    @abstractmethod
    def images(self, trainer: L.Trainer, pl_module: Any) -> Images:
        """Returns the images to score; there is an evaluation."""

    def identity(self) -> list[Any]:
        """Returns plain values without which two scores can't be compared: how images are made, and with what."""
        if self.evaluation is None:
            return []
        compared = self.evaluation.identity()
        compared["reference"].pop("path", None)  # a file may be moved
        del compared["num_images"]  # of the scores after training
        return [{**compared, "seed": self.evaluation.seed}]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.evaluation is None:
            return
        self.processes = self.processes or Processes()
        result = self.evaluation.score(self.images(trainer, pl_module), pl_module.device, self.processes)
        for number, (protocol, scores) in enumerate(result.scores.items()):
            prefix = f"val/{protocol}/" if number else "val/"
            logged = {f"{prefix}{name}": value for name, value in scores.items() if name != "num_images"}
            pl_module.log_dict(logged, sync_dist=True)  # the same on all ranks already


class GenerationMetrics(ImageMetrics):
    """Scores images that the averaged network generates; see `ImageMetrics`.

    Args:
        evaluation, leave_out: see `ImageMetrics`.
        sampler: draws the token ids, of which the data module's tokenizer makes images.
        num_images: how many images are scored; FIDs of different numbers of images are not comparable.
    """

    def __init__(
        self,
        evaluation: Evaluation | None,
        sampler: Sampler,
        num_images: Annotated[int, Ge(2)],
        leave_out: Sequence[str] = (),
    ):
        if evaluation is not None:
            evaluation.check_count(num_images)
        super().__init__(evaluation, leave_out)
        self.sampler = sampler
        self.num_images = num_images

    def identity(self) -> list[Any]:
        return [self.num_images, self.sampler.identity(), *super().identity()]

    def images(self, trainer: L.Trainer, pl_module: Any) -> Images:
        assert isinstance(pl_module, MaskedTokenModule)
        assert self.evaluation is not None
        return GeneratedImages(
            pl_module.averaged_net,
            self.sampler,
            trainer.datamodule.tokenizer,  # type: ignore[attr-defined]
            self.num_images,
            self.evaluation.seed,
            self.evaluation.block_size,
            self.evaluation.batch_size,
            self.evaluation.class_counts,
            trainer.precision_plugin.forward_context,
        )
