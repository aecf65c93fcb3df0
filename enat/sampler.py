"""Few-step decoding: from all tokens masked to an image's token ids.

Shapes: `B` batch, `L` tokens of an image, `M` masked tokens at the current step, `K` codebook size.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from enat.errors import InputError
from enat.net import ENAT

Schedule = Callable[[float], float]
MIN_TEMPERATURE = 1e-3


Generators = torch.Generator | Sequence[torch.Generator] | None


def gumbel(shape: tuple[int, ...], device: torch.device, generators: Generators) -> Tensor:
    """Standard Gumbel noise in float32; several generators share the rows evenly, in order."""
    noise = torch.empty(shape, dtype=torch.float32, device=device)
    if generators is None or isinstance(generators, torch.Generator):
        noise.exponential_(generator=generators)
    else:
        for part, generator in zip(noise.split(math.ceil(len(noise) / len(generators))), generators, strict=True):
            part.exponential_(generator=generator)
    return -noise.clamp_min(torch.finfo(torch.float32).tiny).log()


class State(NamedTuple):
    """What a step leaves to the next."""

    token_ids: Tensor  # (B, L), [MASK] where masked
    revealed: Tensor  # positions that the last step revealed, (B, N)
    masked: Tensor  # positions that are still masked, (B, M)
    known: Tensor  # positions of the tokens visible before, (B, P)
    cached: Tensor | None  # their features, of both branches if there are two, (B or 2B, P, D)

    @classmethod
    def start(cls, batch: int, net: ENAT, device: torch.device) -> "State":
        """All tokens masked."""
        token_ids = torch.full((batch, net.num_tokens), net.mask_token_id, device=device)
        masked = torch.arange(net.num_tokens, device=device).repeat(batch, 1)
        return cls(token_ids, masked[:, :0], masked, masked[:, :0], None)


class Sampler:
    """ENAT's sampler (SPEC 5): iterative parallel decoding with guidance and reuse of features.

    It does only the work that its result needs: the number of tokens revealed at each step is fixed
    beforehand, head and softmax run at masked positions only, both branches of the guidance share their
    masks and one batch, adaLN is computed once, and the unconditional branch is left out of a first step
    without guidance. Nothing waits for the device. All shapes of a step are known beforehand, so that it can be
    compiled whole.

    Args:
        num_steps: `T`.
        guidance_scale: of classifier-free guidance, times `guidance_schedule(s/T)` in step s = 0..T-1.
        sampling_temperature: of the draw of a token, times its schedule at (s+1)/T, at least 1e-3.
        gumbel_temperature: of the noise on the confidence, times its schedule at (s+1)/T.
        mask_schedule: the share of tokens still masked after step s, at (s+1)/T; must fall to 0.
        guidance_schedule, sampling_temperature_schedule, gumbel_temperature_schedule: see above.
        reuse_share: the share of the tokens visible before whose features a step reuses, those revealed first; the
            others are encoded anew. 1 is the paper's, 0 reuses nothing.
        compile: whether torch compiles the steps, each once for a batch size; as CUDA graphs on GPUs. It takes a minute
            or more, and rounding differs from that of the uncompiled steps.

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
        reuse_share: float = 1.0,
        compile: bool = False,
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
        if not 0 <= reuse_share <= 1:
            raise InputError(f"reuse_share={reuse_share}: expected a share between 0 and 1.")
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
        self.reuse_share, self.compile = reuse_share, compile

    def mask_counts(self, num_tokens: int) -> list[int]:
        """The number of tokens still masked after each of the steps; the last is 0."""
        return [max(math.floor(num_tokens * share), 0) for share in self.mask_shares]

    def num_reused(self, visible: int) -> int:
        """How many of the tokens visible before have their features reused."""
        return round(self.reuse_share * visible)

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
        state = State.start(batch, net, device)
        advance = self._compiled(device) if self.compile else self._advance
        counts = [net.num_tokens, *self.mask_counts(net.num_tokens)]
        for step, (num_masked, num_left) in enumerate(pairwise(counts)):
            if record is not None:
                record.append(state.token_ids)
            if not num_masked:
                continue  # more steps than tokens
            # In the first step nothing is visible: without guidance, the unconditional branch has no use.
            branches = 2 if guided and (step > 0 or self.guidance_scales[0]) else 1
            token_noise = gumbel((batch, num_masked, net.codebook_size), device, generator)
            order_noise = gumbel((batch, num_masked), device, generator)
            state = advance(
                net, state, condition[:, : branches * batch], token_noise, order_noise, step, num_left, branches
            )
        return state.token_ids

    def _advance(
        self,
        net: ENAT,
        state: State,
        condition: Tensor,
        token_noise: Tensor,
        order_noise: Tensor,
        step: int,
        num_left: int,
        branches: int,
    ) -> State:
        """A step: all of its shapes follow from the arguments', `num_left` and `branches`."""
        token_ids, revealed, masked, known, cached = state
        reused = self.num_reused(known.shape[1])
        if cached is not None and reused < known.shape[1]:
            known, revealed, cached = known[:, :reused], torch.cat([known[:, reused:], revealed], 1), cached[:, :reused]
        known = torch.cat([known, revealed], dim=1)
        logits, cached = net(
            token_ids.repeat(branches, 1), revealed.repeat(branches, 1), masked.repeat(branches, 1), condition, cached
        )
        log_probs = self._guide(logits.float(), step, branches)  # (B, M, K)
        drawn = (log_probs / self.sampling_temperatures[step] + token_noise).argmax(dim=2)  # (B, M)
        confidence = log_probs.gather(2, drawn.unsqueeze(2)).squeeze(2)
        confidence = confidence + self.gumbel_temperatures[step] * order_noise
        order = confidence.argsort(dim=1, descending=True)
        reveal, leave = order.split([order.shape[1] - num_left, num_left], dim=1)
        revealed, masked = masked.gather(1, reveal), masked.gather(1, leave)
        return State(token_ids.scatter(1, revealed, drawn.gather(1, reveal)), revealed, masked, known, cached)

    def _compiled(self, device: torch.device) -> Callable[..., State]:
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        compiled = torch.compile(self._advance, dynamic=False, mode=mode)

        def advance(*arguments: Any) -> State:
            if device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            with torch._dynamo.config.patch(recompile_limit=1024, accumulated_recompile_limit=8192):
                state = compiled(*arguments)
            if device.type != "cuda":
                return state
            # What a graph returns lies in memory that its next call overwrites.
            return State(*(x if x is None else x.clone() for x in state))  # type: ignore[arg-type]  # only cached may be

        return advance

    def _guide(self, logits: Tensor, step: int, branches: int) -> Tensor:
        """Logits of the branches (B or 2B, M, K) -> guided log-probabilities (B, M, K), in float32."""
        if branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = conditional + self.guidance_scales[step] * (conditional - unconditional)
        return logits.log_softmax(dim=2)
