"""Sampling in a few steps: from all tokens masked to the token ids of an image (docs/method.md, Sampling).

Shapes: `B` batch, `L` tokens of an image, `K` codebook size, `D` width; at the current step, `M` masked tokens,
`N` newly revealed tokens, `P` tokens with cached features.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from enat.compilation import compile_step
from enat.errors import InputError
from enat.net import ENAT
from enat.randomness import Generators, gumbel

Schedule = Callable[[float], float]


class State(NamedTuple):
    """Holds the tokens and the cached features between two steps."""

    token_ids: Tensor  # (B, L), [MASK] where masked
    masked_positions: Tensor  # of the tokens that are still masked, (B, M)
    new_positions: Tensor  # of the tokens that the last step revealed, (B, N)
    cached_positions: Tensor  # of the tokens with cached features, (B, P)
    cached_features: Tensor | None  # of both branches if there are two, (B or 2B, P, D)


class Sampler:
    """Generates token ids by iterative parallel decoding with guidance and reuse of features.

    It computes only what the result needs: the logits of masked tokens, both branches of the guidance in one batch, and
    adaLN once. The numbers of tokens are known in advance, so that the CPU never waits for a result of the GPU.

    Args:
        num_steps: `T`.
        guidance_scale: strength of classifier-free guidance. Step s = 0..T-1 multiplies it by `guidance_schedule(s/T)`.
        sampling_temperature: of a token's draw. Step s multiplies it by its schedule at r = (s+1)/T; at least 1e-3.
        gumbel_temperature: strength of the noise on the confidence. Step s multiplies it by its schedule at r.
        mask_schedule: gives, at r, the share of tokens that are still masked after step s; it must fall to 0.
        guidance_schedule, sampling_temperature_schedule, gumbel_temperature_schedule: factors of the above.
        reuse_share: the share of the cached features that a step reuses, the oldest first; the other tokens are encoded
            anew. 1 is the paper's choice, 0 reuses nothing.
        compile: whether torch compiles each step, which takes minutes for each batch size and changes the rounding.

    Raises:
        InputError: if the mask schedule rises, exceeds 1, or does not end at 0.
    """

    def __init__(
        self,
        num_steps: Annotated[int, Ge(1)],
        guidance_scale: Annotated[float, Ge(0)],
        sampling_temperature: Annotated[float, Ge(0)],
        gumbel_temperature: Annotated[float, Ge(0)],
        mask_schedule: Schedule,
        guidance_schedule: Schedule,
        sampling_temperature_schedule: Schedule,
        gumbel_temperature_schedule: Schedule,
        reuse_share: Annotated[float, Interval(ge=0, le=1)] = 1.0,
        compile: bool = False,
    ):
        progress = [(step + 1) / num_steps for step in range(num_steps)]  # r
        self.mask_shares = [mask_schedule(r) for r in progress]
        if any(b > a for a, b in pairwise([1.0, *self.mask_shares])) or abs(self.mask_shares[-1]) > 1e-9:
            raise InputError(f"mask_schedule={mask_schedule}: expected one that falls from 1 to 0.")
        self.num_steps = num_steps
        self.guidance_scales = [guidance_scale * guidance_schedule(step / num_steps) for step in range(num_steps)]
        self.sampling_temperatures = [sampling_temperature * sampling_temperature_schedule(r) for r in progress]
        self.gumbel_temperatures = [gumbel_temperature * gumbel_temperature_schedule(r) for r in progress]
        self.reuse_share = reuse_share
        self.compile = compile

    def mask_counts(self, num_tokens: int) -> list[int]:
        """Returns the number of tokens that are still masked after each step; the last is 0."""
        return [max(math.floor(num_tokens * share), 0) for share in self.mask_shares]

    def is_guided(self, net: ENAT) -> bool:
        """Says whether any step needs the unconditional branch."""
        return net.num_classes > 0 and any(self.guidance_scales)

    def branches(self, net: ENAT, step: int) -> int:
        """Returns 2 if a step computes the unconditional branch too, else 1.

        A first step of guidance 0 needs none, unless features of masked tokens are cached.
        """
        return 2 if self.is_guided(net) and (step > 0 or self.guidance_scales[0] or net.caches_masked) else 1

    @torch.no_grad()
    def __call__(
        self, net: ENAT, class_ids: Tensor, generator: Generators = None, record: list[Tensor] | None = None
    ) -> Tensor:
        """Generates token ids, (B, L), int64; a token whose probability is NaN remains the mask.

        Args:
            net: the network, in evaluation mode.
            class_ids: (B,), on the network's device; the null class is allowed.
            generator: draws the noise, on the network's device. Several generators share the rows evenly, and each
                draws the same noise as if its rows were the whole batch.
            record: a list to which each step adds the token ids (B, L) that it starts from.
        """
        if net.training:
            raise InputError(
                "the network is in training mode, so that dropout would change the images; call net.eval()."
            )
        batch, device = len(class_ids), class_ids.device
        if self.is_guided(net):
            class_ids = torch.cat([class_ids, torch.full_like(class_ids, net.null_class_id)])
        modulations = net.modulations(class_ids)  # conditional rows first
        run_step = compile_step(self._step, device) if self.compile else self._step
        positions = torch.arange(net.num_tokens, device=device).repeat(batch, 1)
        empty = positions[:, :0]
        state = State(torch.full_like(positions, net.mask_token_id), positions, empty, empty, None)  # all masked
        for step, (num_masked, num_left) in enumerate(pairwise([net.num_tokens, *self.mask_counts(net.num_tokens)])):
            if record is not None:
                record.append(state.token_ids)
            if not num_masked:
                continue  # all tokens are revealed already
            branches = self.branches(net, step)
            token_noise = gumbel((batch, num_masked, net.codebook_size), device, generator)
            order_noise = gumbel((batch, num_masked), device, generator)
            rows = [modulation[: branches * batch] for modulation in modulations]
            state = run_step(net, state, rows, (token_noise, order_noise), step, num_left)
        return state.token_ids

    def _step(
        self, net: ENAT, state: State, modulations: list[Tensor], noise: tuple[Tensor, Tensor], step: int, num_left: int
    ) -> State:
        """Computes step `step`, which leaves `num_left` tokens masked."""
        token_noise, order_noise = noise  # Gumbel noise, (B, M, K) and (B, M)
        branches = len(modulations[0]) // len(state.token_ids)  # 2 with guidance, else 1

        # 1. Choose the visible tokens whose features are reused; the others are encoded. None also keeps the features
        # of masked tokens, where a variant caches them.
        end = None if self.reuse_share == 1 else round(self.reuse_share * state.cached_positions.shape[1])
        reused = state.cached_positions[:, :end]
        new = torch.cat([state.cached_positions[:, reused.shape[1] :], state.new_positions], dim=1)
        cached_features = None if state.cached_features is None else state.cached_features[:, :end]

        # 2. Predict the masked tokens, both branches in one batch.
        inputs = [x.repeat(branches, 1) for x in (state.token_ids, new, state.masked_positions)]
        logits, features = net(*inputs, modulations, cached_features)

        # 3. Guide: l = l_c + w (l_c - l_null), in float32.
        logits = logits.float()
        if branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = conditional + self.guidance_scales[step] * (conditional - unconditional)
        log_probs = logits.log_softmax(dim=2)  # (B, M, K)

        # 4. Draw each masked token from softmax(log p / temperature), by the Gumbel-max trick.
        drawn = (log_probs / max(self.sampling_temperatures[step], 1e-3) + token_noise).argmax(dim=2)  # (B, M)

        # 5. Its confidence is its log-probability plus Gumbel noise.
        confidence = log_probs.gather(2, drawn.unsqueeze(2)).squeeze(2) + self.gumbel_temperatures[step] * order_noise
        drawn = drawn.where(confidence.isfinite(), net.mask_token_id)  # NaN would be the token 0; callers find the mask

        # 6. Reveal the most confident tokens; the others stay masked.
        order = confidence.argsort(dim=1, descending=True)
        revealed, masked = order.split([order.shape[1] - num_left, num_left], dim=1)  # indices into masked_positions
        revealed_positions = state.masked_positions.gather(1, revealed)
        return State(
            token_ids=state.token_ids.scatter(1, revealed_positions, drawn.gather(1, revealed)),
            masked_positions=state.masked_positions.gather(1, masked),
            new_positions=revealed_positions,
            cached_positions=torch.cat([reused, new], dim=1),  # in the order of the features
            cached_features=features,
        )
