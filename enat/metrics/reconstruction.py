"""How well a tokenizer gives images back, and how much of its codebook it uses. Shapes: `B` images, `L` tokens."""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from enat.errors import InputError
from enat.precision import NotFiniteError
from enat.tokenizers.base import Tokenizer

DIVERGED = (
    "training has diverged, for the tokenizer turns held-out images into NaN or infinite values; earlier checkpoints "
    "are kept. A lower module.optimizer.lr or trainer.precision=32-true may help."
)


class CodebookUse(Metric):
    """The share of a codebook's entries that occur, and the perplexity of their frequencies.

    Args:
        codebook_size: token ids are below it.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int):
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_ids: Tensor) -> None:
        """Counts token ids of any shape."""
        self.counts += torch.bincount(token_ids.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """Returns `codes_used`, from 0 to 1, and `perplexity`, from 1 to the size of the codebook.

        `codes_used_of_possible` is the number of codes in use over the number of tokens, where these are fewer.
        """
        p = self.counts / self.counts.sum()
        entropy = -torch.special.xlogy(p, p).sum()
        used = (self.counts > 0).double()
        possible = self.counts.sum().clamp(max=len(self.counts))  # few images have few tokens
        of_possible = used.sum() / possible
        return {"codes_used": used.mean(), "codes_used_of_possible": of_possible, "perplexity": entropy.exp()}


class ReconstructionQuality(nn.Module):
    """Compares images with their reconstructions: PSNR over all pixels in dB, SSIM, and the use of the codebook.

    Args:
        codebook_size: of the tokenizer.
    """

    def __init__(self, codebook_size: int):
        super().__init__()
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.codebook_use = CodebookUse(codebook_size)

    def update(self, tokenizer: Tokenizer, images: Tensor) -> Tensor:
        """Adds images (B, 3, H, W) in [0, 1]; returns their reconstructions.

        Raises:
            InputError: for a tokenizer whose training has diverged, so that tokens or reconstructions are no numbers.
        """
        try:
            token_ids = tokenizer.encode(images)
            reconstructed = tokenizer.decode(token_ids).float()
        except NotFiniteError as error:
            raise InputError(DIVERGED) from error
        self.psnr.update(reconstructed, images)
        self.ssim.update(reconstructed, images)
        self.codebook_use.update(token_ids)
        return reconstructed

    def compute(self) -> dict[str, float]:
        """Returns `psnr`, `ssim`, `codes_used` and `perplexity` of all images on all ranks, and forgets them."""
        values: dict[str, Any] = {
            "psnr": self.psnr.compute(),
            "ssim": self.ssim.compute(),
            **self.codebook_use.compute(),
        }
        for metric in (self.psnr, self.ssim, self.codebook_use):
            metric.reset()
        return {name: float(value) for name, value in values.items()}
