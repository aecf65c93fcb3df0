"""Few-step decoding: from all tokens masked to an image's token ids.

Shapes: `B` batch, `L` tokens of an image, `M` masked tokens at the current step, `K` codebook size.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from enat.errors import InputError
from enat.net import ENAT

Schedule = Callable[[float], float]
MIN_TEMPERATURE = 1e-3


Generators = torch.Generator | Sequence[torch.Generator] | None


def gumbel_like(x: Tensor, generators: Generators) -> Tensor:
    """Standard Gumbel noise of the shape of `x`, in float32; several generators share the rows evenly, in order."""
    noise = torch.empty_like(x, dtype=torch.float32)
    if generators is None or isinstance(generators, torch.Generator):
        noise.exponential_(generator=generators)
    else:
        for part, generator in zip(noise.split(math.ceil(len(noise) / len(generators))), generators, strict=True):
            part.exponential_(generator=generator)
    return -noise.clamp_min(torch.finfo(torch.float32).tiny).log()


class Sampler:
    """ENAT's sampler (SPEC 5): iterative parallel decoding with guidance and reuse of features.

    It does only the work that its result needs: the number of tokens revealed at each step is fixed
    beforehand, head and softmax run at masked positions only, both branches of the guidance share their
    masks and one batch, adaLN is computed once, and the unconditional branch is left out of a first step
    without guidance. Nothing waits for the device.

    Args:
        num_steps: `T`.
        guidance_scale: of classifier-free guidance, times `guidance_schedule(s/T)` in step s = 0..T-1.
        sampling_temperature: of the draw of a token, times its schedule at (s+1)/T, at least 1e-3.
        gumbel_temperature: of the noise on the confidence, times its schedule at (s+1)/T.
        mask_schedule: the share of tokens still masked after step s, at (s+1)/T; must fall to 0.
        guidance_schedule, sampling_temperature_schedule, gumbel_temperature_schedule: see above.

    Raises:
        InputError: for a setting out of range.
    """

    def __init__(
        self,
        num_steps: int,
        guidance_scale: float,
        sampling_temperature: float,
        gumbel_temperature: float,
        mask_schedule: Schedule,
        guidance_schedule: Schedule,
        sampling_temperature_schedule: Schedule,
        gumbel_temperature_schedule: Schedule,
    ):
        if num_steps < 1:
            raise InputError(f"num_steps={num_steps}: expected at least 1.")
        for name, value in {
            "guidance_scale": guidance_scale,
            "sampling_temperature": sampling_temperature,
            "gumbel_temperature": gumbel_temperature,
        }.items():
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"{name}={value}: expected a finite number of at least 0.")
        progress = [(step + 1) / num_steps for step in range(num_steps)]
        shares = [1.0, *map(mask_schedule, progress)]
        if any(after > before for before, after in pairwise(shares)) or abs(shares[-1]) > 1e-9:
            raise InputError(f"mask_schedule={mask_schedule}: expected one that falls from 1 to 0.")
        self.num_steps = num_steps
        self.mask_shares = shares[1:]
        self.guidance_scales = [guidance_scale * guidance_schedule(step / num_steps) for step in range(num_steps)]
        self.sampling_temperatures = [
            max(sampling_temperature * sampling_temperature_schedule(r), MIN_TEMPERATURE) for r in progress
        ]
        self.gumbel_temperatures = [gumbel_temperature * gumbel_temperature_schedule(r) for r in progress]

    def mask_counts(self, num_tokens: int) -> list[int]:
        """The number of tokens still masked after each of the steps; the last is 0."""
        return [max(math.floor(num_tokens * share), 0) for share in self.mask_shares]

    @torch.no_grad()
    def __call__(
        self,
        net: ENAT,
        class_ids: Tensor,
        generator: Generators = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Generates token ids.

        Args:
            net: the network, in evaluation mode.
            class_ids: (B,), on the network's device; the null class is allowed.
            generator: makes the result reproducible; on the network's device. Of several, each serves an equal share
                of the rows, which is then what the generator would have made of these rows alone.
            record: receives the token ids (B, L) that each step starts from, [MASK] where masked.

        Returns:
            (B, L), int64.
        """
        batch, device = len(class_ids), class_ids.device
        guided = any(self.guidance_scales)
        if guided:
            class_ids = torch.cat([class_ids, torch.full_like(class_ids, net.null_class_id)])
        condition = net.condition(class_ids)  # (blocks, B or 2B, 8, D)
        token_ids = torch.full((batch, net.num_tokens), net.mask_token_id, device=device)
        masked = torch.arange(net.num_tokens, device=device).expand(batch, -1)  # positions, (B, M)
        revealed = masked[:, :0]
        cached = None
        for step, num_left in enumerate(self.mask_counts(net.num_tokens)):
            if record is not None:
                record.append(token_ids)
            if not masked.shape[1]:
                continue  # more steps than tokens
            # In the first step nothing is visible: without guidance, the unconditional branch has no use.
            branches = 2 if guided and (step > 0 or self.guidance_scales[0]) else 1
            logits, cached = net(
                token_ids.repeat(branches, 1),
                revealed.repeat(branches, 1),
                masked.repeat(branches, 1),
                condition[:, : branches * batch],
                cached,
            )
            log_probs = self._guide(logits.float(), step, branches)  # (B, M, K)
            noise = gumbel_like(log_probs, generator)
            drawn = (log_probs / self.sampling_temperatures[step] + noise).argmax(dim=2)  # (B, M)
            confidence = log_probs.gather(2, drawn.unsqueeze(2)).squeeze(2)
            confidence = confidence + self.gumbel_temperatures[step] * gumbel_like(confidence, generator)
            order = confidence.argsort(dim=1, descending=True)
            reveal, leave = order.split([order.shape[1] - num_left, num_left], dim=1)
            revealed, masked = masked.gather(1, reveal), masked.gather(1, leave)
            token_ids = token_ids.scatter(1, revealed, drawn.gather(1, reveal))
        return token_ids

    def _guide(self, logits: Tensor, step: int, branches: int) -> Tensor:
        """Logits of the branches (B or 2B, M, K) -> guided log-probabilities (B, M, K), in float32."""
        if branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = conditional + self.guidance_scales[step] * (conditional - unconditional)
        return logits.log_softmax(dim=2)
