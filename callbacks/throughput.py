"""How fast training is, and how long it waits for data."""

import resource
import time
from typing import Any

import lightning as L
import torch

from enat.flops import measured_peak
from enat.training.module import AveragedModule

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by precision; others multiply in float32


class Throughput(L.Callback):
    """Logs the speed of the steps since the last log, without validation; nothing here waits for a GPU.

    - `train/steps_per_second`, and `train/samples_per_second` over all devices;
    - `train/data_wait`: the share of the time in which training waited for a batch;
    - `train/memory_gb`: the highest memory use so far, of the GPU if there is one;
    - `train/utilization`: the operations of training (see `enat.flops.training_flops`) as a share of what a large
      matrix product reaches on this device in the same precision, measured when training starts.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.peak = measured_peak(pl_module.device, DTYPES.get(str(trainer.precision), torch.float32))
        self.restart(trainer)

    def restart(self, trainer: L.Trainer) -> None:
        """Starts to count anew."""
        self.begun = time.perf_counter()
        self.step = trainer.global_step
        self.flops = 0
        self.waited = self.loader(trainer).waited_s

    @staticmethod
    def loader(trainer: L.Trainer) -> Any:
        """Returns the data module's `TimedLoader`."""
        return trainer.train_dataloader

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.begun += time.perf_counter() - self.paused

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, AveragedModule)
        flops = pl_module.batch_flops(batch)
        self.flops += flops or 0
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step == self.step or not every or trainer.global_step % every:
            return
        seconds = time.perf_counter() - self.begun
        steps = trainer.global_step - self.step
        if pl_module.device.type == "cuda":
            bytes_used = torch.cuda.max_memory_allocated(pl_module.device)
        else:
            bytes_used = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        values = {
            "steps_per_second": steps / seconds,
            "samples_per_second": steps * trainer.datamodule.batch_size / seconds,  # type: ignore[attr-defined]
            "data_wait": (self.loader(trainer).waited_s - self.waited) / seconds,
            "memory_gb": bytes_used / 1e9,
        }
        if flops is not None:
            values["utilization"] = self.flops / seconds / self.peak
        pl_module.log_dict({f"train/{name}": value for name, value in values.items()})
        self.restart(trainer)
