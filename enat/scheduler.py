"""The orders, amounts and draws of a sampler for the logits of any network.

Shapes: `B` batch, `L` tokens of an image, `K` codebook size, `M` masked tokens.
"""

from typing import Any

import torch
from torch import Tensor

from enat.errors import InputError
from enat.plan import Step
from enat.randomness import Generators, gumbel
from enat.sampler import EVERY_IMAGE_ALIKE, Sampler
from enat.steps import begin


class GivenLogits:
    """Stands in for a network: it gives logits (B, L, K) that are there already."""

    num_classes = 0
    caches_masked = False

    def __init__(self, logits: Tensor, mask_token_id: int):
        self.logits = logits
        self.num_tokens = logits.shape[1]
        self.codebook_size = logits.shape[2]
        self.mask_token_id = mask_token_id

    def __call__(self, token_ids: Tensor, new: Tensor, masked: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return self.logits.take_along_dim(masked.unsqueeze(2), dim=1), self.logits[:, :0, :1]


class TokenScheduler:
    """Reveals tokens step by step, like the schedulers of diffusers, without a network, guidance or reuse of its own.

    Args:
        sampler: its order, mask schedule, temperatures, `top_k` and `top_p` count.

    Raises:
        InputError: for a correction, which needs to know earlier steps.
    """

    def __init__(self, sampler: Sampler):
        if sampler.correction is not None:
            raise InputError("correction: expected a sampler without one (correction=None) for single steps.")
        self.sampler = sampler

    @torch.no_grad()
    def step(
        self, logits: Tensor, t: int, token_ids: Tensor, mask_token_id: int, generator: Generators = None
    ) -> Tensor:
        """Reveals the tokens of step t, from 0 to T - 1, and returns token ids (B, L).

        Args:
            logits: of the network, guided, (B, L, K); those of visible tokens are ignored.
            t: the number of the step. The last one reveals all tokens that are left.
            token_ids: (B, L), `mask_token_id` where masked, as many in each image.
            mask_token_id: at least K.
            generator: see `Sampler`.

        Raises:
            InputError: for another step, or if the images have different numbers of masked tokens.
        """
        if not 0 <= t < self.sampler.num_steps:
            raise InputError(f"t={t}: expected a step from 0 to {self.sampler.num_steps - 1}.")
        net: Any = GivenLogits(logits, mask_token_id)
        state = begin(net, len(token_ids), token_ids.device, token_ids, keeps_probabilities=False)
        masked = state.masked_positions.shape[1]
        left = min(self.sampler.mask_counts(net.num_tokens)[t], masked)
        step = Step(t, masked, net.num_tokens - masked, 0, masked - left, 0, 1, starts_guidance=False, reuses_all=False)
        shapes = (*state.masked_positions.shape, net.codebook_size), state.masked_positions.shape, (len(token_ids), 0)
        noise = [gumbel(tuple(shape), token_ids.device, generator) for shape in shapes]
        return self.sampler._step(net, state, [], noise, step, EVERY_IMAGE_ALIKE).token_ids
