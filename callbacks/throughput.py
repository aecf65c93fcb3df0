"""How fast training is, and what it waits for."""

import resource
import time
from typing import Any

import lightning as L
import torch

from enat.flops import measured_peak
from enat.module import MaskedTokenModule

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # by precision; others multiply in float32


class Throughput(L.Callback):
    """Logs the speed of the steps since the last log, without validation; nothing here waits for a GPU.

    - `train/steps_per_second`, and `train/samples_per_second` over all devices;
    - `train/data_wait`: the share of the time for which a batch was waited for;
    - `train/memory_gb`: the most memory so far, that of the GPU if there is one;
    - `train/utilization`: the network's FLOPs (three times the forward pass, see `enat.flops`) as a share of what a
      large matrix product reaches on this device in the same precision, measured when training starts.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.peak = measured_peak(pl_module.device, DTYPES.get(str(trainer.precision), torch.float32))
        self.restart(trainer, pl_module)

    def restart(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts from now on."""
        assert isinstance(pl_module, MaskedTokenModule)
        self.begun, self.step, self.flops = time.perf_counter(), trainer.global_step, pl_module.flops
        self.waited = self.loader(trainer).waited_s

    @staticmethod
    def loader(trainer: L.Trainer) -> Any:
        """The data module's `TimedLoader`."""
        return trainer.train_dataloader

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.begun += time.perf_counter() - self.paused

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step == self.step or not every or trainer.global_step % every:
            return
        assert isinstance(pl_module, MaskedTokenModule)
        seconds, steps = time.perf_counter() - self.begun, trainer.global_step - self.step
        is_cuda = pl_module.device.type == "cuda"
        bytes_used = (
            torch.cuda.max_memory_allocated(pl_module.device)
            if is_cuda
            else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        )
        values = {
            "steps_per_second": steps / seconds,
            "samples_per_second": steps * trainer.datamodule.batch_size / seconds,  # type: ignore[attr-defined]
            "data_wait": (self.loader(trainer).waited_s - self.waited) / seconds,
            "memory_gb": bytes_used / 1e9,
            "utilization": (pl_module.flops - self.flops) / seconds / self.peak,
        }
        pl_module.log_dict({f"train/{name}": value for name, value in values.items()})
        self.restart(trainer, pl_module)
