"""The LightningModule that trains a tokenizer: encode, quantise, decode, loss, optimiser. Shapes: `B` images."""

from collections.abc import Callable, Iterable

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from enat.errors import InputError
from enat.metrics.reconstruction import ReconstructionQuality
from enat.randomness import rng_for, seed_default_generator
from enat.tokenizers.losses import TokenizerLoss
from enat.tokenizers.vqgan import ConvTokenizer
from enat.training.module import AveragedModule

COLLAPSED = 0.1  # of a codebook: fewer used entries are worth a warning


class TokenizerModule(AveragedModule):
    """Trains a tokenizer to give images back (docs/data.md, Training a tokenizer).

    Random numbers, such as those that choose new entries of a codebook, depend on seed, device and step alone, so that
    a run that goes on repeats them.

    Args:
        net: the tokenizer.
        loss: the terms of its loss.
        optimizer, scheduler: see `AveragedModule`; the optimiser trains the discriminator too.
        seed: of the random numbers.
        decoder_only: whether the decoder alone is trained, of a tokenizer that has weights. Tokens then stay as they
            are, and so do networks that were trained on them.

    Raises:
        InputError: for `decoder_only` without weights.
    """

    net: ConvTokenizer

    def __init__(
        self,
        net: ConvTokenizer,
        loss: TokenizerLoss,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        seed: int = 0,
        decoder_only: bool = False,
    ):
        if decoder_only and not net.has_weights:
            raise InputError("module.decoder_only=true: expected tokenizer.weights=FILE, whose decoder is trained.")
        super().__init__(net.train(), optimizer, scheduler)
        (net.decoder if decoder_only else net).requires_grad_(True)
        self.loss = loss
        self.seed = seed
        self.decoder_only = decoder_only
        self.quality = ReconstructionQuality(net.codebook_size)

    def summary_rows(self) -> dict[str, str]:
        height, width = self.net.grid
        return {"tokens": f"{height} x {width} of {self.net.codebook_size:,} codes, {self.net.stride} pixels each"}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        micro_batch = batch_idx % self.trainer.accumulate_grad_batches
        number = micro_batch * self.trainer.world_size + self.global_rank
        rng = rng_for("tokenizer", self.seed, number, self.global_step)
        seed_default_generator(self.device, int(rng.integers(2**63)))
        images = batch.float() / 255
        reconstructed, quantized = self.net.reconstruct(images, self.decoder_only)
        last_weight = self.net.decoder.conv_out.weight
        values = self.loss(images, reconstructed.float(), quantized.loss, last_weight, self.global_step)
        self.group_values = [{name: value.detach() for name, value in values.items()}]
        loss: Tensor = values["loss"]
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        images = batch.float() / 255
        reconstructed = self.quality.update(self.averaged_net, images)
        loss = self.loss(images, reconstructed, images.new_zeros(()), images, 0)["loss"]
        self.log("val/loss", loss, sync_dist=True, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        values = self.quality.compute()
        of_possible = values.pop("codes_used_of_possible")
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)
        if of_possible < COLLAPSED and not self.trainer.sanity_checking:
            advice = " or ".join(filter(None, ["a lower module.optimizer.lr", self.net.quantize.against_collapse]))
            rank_zero_only(print)(
                f"The codebook has collapsed at step {self.global_step}: {values['codes_used']:.1%} of its "
                f"{self.net.codebook_size} entries are in use. What may help: {advice}."
            )
