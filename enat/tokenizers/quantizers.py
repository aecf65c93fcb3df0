"""Quantisers: how a tokenizer turns latents into token ids. Shapes: `B` images, `L` tokens, `E` width of a code."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval, MinLen
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What training gets from a quantiser."""

    codes: Tensor  # (B, L, E), through which the gradient reaches the latents
    token_ids: Tensor  # (B, L)
    loss: Tensor  # scalar, which draws latents and codes together


class Quantizer(nn.Module, ABC):
    """Turns latents into token ids, and token ids into codes.

    Attributes:
        codebook_size: token ids are below it.
        code_width: `E`.
        against_collapse: what may help, beside a lower learning rate, if training uses few codes; may be empty.
    """

    codebook_size: int
    code_width: int
    against_collapse = ""

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, L, E) -> token ids (B, L), int64, in float32 whatever the precision."""

    @abstractmethod
    def codes(self, token_ids: Tensor) -> Tensor:
        """Token ids (B, L) -> codes (B, L, E)."""

    @abstractmethod
    def quantize_with_gradient(self, latents: Tensor) -> Quantized:
        """Quantises latents (B, L, E) in training, where it may change the codebook."""


class Codebook(Quantizer):
    """Finds the nearest of `K` entries, which are trained by gradient (VQ-VAE, arXiv 1711.00937; VQGAN).

    Args:
        codebook_size: `K`.
        code_width: `E`.
        commitment: weight of the term that draws latents to entries, beside the one that draws entries to latents.
    """

    def __init__(
        self,
        codebook_size: Annotated[int, Ge(1)],
        code_width: Annotated[int, Ge(1)],
        commitment: Annotated[float, Ge(0)] = 0.25,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.code_width = code_width
        self.commitment = commitment
        self.embedding = nn.Embedding(codebook_size, code_width)

    def forward(self, latents: Tensor) -> Tensor:
        entries, latents = self.embedding.weight.float(), latents.float()
        with torch.autocast(latents.device.type, enabled=False):
            # |z - e|^2 without |z|^2, which is the same for all entries
            return (entries.square().sum(1) - 2 * latents @ entries.T).argmin(dim=-1)

    def codes(self, token_ids: Tensor) -> Tensor:
        return self.embedding(token_ids)

    def quantize_with_gradient(self, latents: Tensor) -> Quantized:
        token_ids = self(latents.detach())
        codes = self.embedding(token_ids)
        loss = F.mse_loss(codes, latents.detach()) + self.commitment * F.mse_loss(latents, codes.detach())
        return Quantized(latents + (codes - latents).detach(), token_ids, loss)


class _FromLibrary(Quantizer):
    """A quantiser of `vector-quantize-pytorch`; `library` makes it from its class's name and options."""

    def __init__(self, kind: str, **options: Any):
        super().__init__()
        import vector_quantize_pytorch as library  # here: most runs quantise nothing

        self.inner = getattr(library, kind)(**options)

    def forward(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            token_ids: Tensor = self.inner.eval()(latents.float())[1]
        return token_ids.long()

    def codes(self, token_ids: Tensor) -> Tensor:
        codes: Tensor = self.inner.indices_to_codes(token_ids)
        return codes

    def quantize_with_gradient(self, latents: Tensor) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            codes, token_ids, *losses = self.inner.train()(latents.float())
        loss = losses[0].sum() if losses else codes.new_zeros(())
        return Quantized(codes, token_ids.long(), loss)


class FSQ(_FromLibrary):
    """Rounds each of a few numbers to one of a few levels, so that there is no codebook to train (arXiv 2309.15505).

    Args:
        levels: of each number; the size of the codebook is their product, the width of a code their count.
    """

    against_collapse = "fewer codes, by tokenizer.quantizer.levels"

    def __init__(self, levels: Annotated[Sequence[Annotated[int, Ge(2)]], MinLen(1)]):
        super().__init__("FSQ", levels=list(levels))
        self.codebook_size = self.inner.codebook_size
        self.code_width = len(levels)


class LFQ(_FromLibrary):
    """Takes the sign of each of a few numbers, and rewards the use of all codes by entropy (arXiv 2310.05737).

    Args:
        bits: how many numbers; the size of the codebook is 2 to this power.
        entropy_weight: of the entropy loss.
        commitment: of the term that draws latents to codes.
    """

    against_collapse = "a larger tokenizer.quantizer.entropy_weight"

    def __init__(
        self,
        bits: Annotated[int, Interval(ge=1, le=18)],
        entropy_weight: Annotated[float, Ge(0)] = 0.1,
        commitment: Annotated[float, Ge(0)] = 0.25,
    ):
        weights = {"entropy_loss_weight": entropy_weight, "commitment_loss_weight": commitment}
        super().__init__("LFQ", dim=bits, codebook_size=2**bits, **weights)
        self.codebook_size = 2**bits
        self.code_width = bits


class AveragedCodebook(_FromLibrary):
    """Finds the nearest of `K` entries, which are moving averages of their latents; unused entries start again.

    The averages are those of VQ-VAE-2 (arXiv 1906.00446). An entry that is used less than `restart_below` times in a
    batch, on average, is replaced by a latent of the batch. A batch whose latents are not finite changes no entry.

    Args:
        codebook_size: `K`.
        code_width: `E`.
        decay: of the averages.
        commitment: weight of the term that draws latents to entries.
        restart_below: see above; 0 never replaces one.
    """

    against_collapse = "quantizer@tokenizer.quantizer=fsq, which learns no codebook"

    def __init__(
        self,
        codebook_size: Annotated[int, Ge(1)],
        code_width: Annotated[int, Ge(1)],
        decay: Annotated[float, Gt(0), Interval(lt=1)] = 0.99,
        commitment: Annotated[float, Ge(0)] = 0.25,
        restart_below: Annotated[float, Ge(0)] = 0.5,
    ):
        options = {"decay": decay, "commitment_weight": commitment, "threshold_ema_dead_code": restart_below}
        super().__init__("VectorQuantize", dim=code_width, codebook_size=codebook_size, **options)
        self.codebook_size = codebook_size
        self.code_width = code_width

    def codes(self, token_ids: Tensor) -> Tensor:
        codes: Tensor = self.inner.get_codes_from_indices(token_ids)
        return codes

    def quantize_with_gradient(self, latents: Tensor) -> Quantized:
        before = [buffer.clone() for buffer in self.inner.buffers()]
        quantized = super().quantize_with_gradient(latents)
        self._undo_unless_finite(before)
        return quantized

    @torch.no_grad()
    def _undo_unless_finite(self, before: Sequence[Tensor]) -> None:
        """Puts earlier averages back where one is not finite now, which no later batch would mend.

        The averages are of the latents of all ranks, so that all ranks put them back. The device is not waited for.
        """
        buffers = list(self.inner.buffers())
        is_finite = torch.stack([buffer.isfinite().all() for buffer in buffers]).all()
        for buffer, earlier in zip(buffers, before, strict=True):
            buffer.copy_(torch.where(is_finite, buffer, earlier))
