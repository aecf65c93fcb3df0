"""The options of a sampler, and what each of its steps computes, which is known in advance."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt, Interval, Le

from enat.corrections import Remasking
from enat.errors import InputError
from enat.net import ENAT
from enat.orders import Confidence, EntropyBound, Order
from enat.schedules import Schedule, values


class Step(NamedTuple):
    """Holds the numbers of an image's tokens in one sampling step."""

    number: int  # s = 0..T-1
    masked: int  # tokens that the step decodes
    visible: int
    reused: int  # visible tokens whose cached features are used; the others are encoded
    revealed: int
    masked_again: int  # of the visible tokens
    branches: int  # 2 with guidance, else 1
    starts_guidance: bool  # whether the unconditional branch has no cached features yet, and encodes all visible tokens
    reuses_all: bool  # whether all that is cached is used, of masked tokens too where a variant caches theirs


def plan_steps(
    counts: Sequence[int],
    guided: Sequence[bool],
    num_known: int,
    reuse_shares: Sequence[float],
    correction: Remasking | None,
) -> list[Step]:
    """Plans the steps, without those that begin with nothing masked.

    Args:
        counts: numbers of masked tokens before the first step, and after each.
        guided: whether each step computes the unconditional branch.
        num_known: number of tokens that are visible from the start.
        reuse_shares: share of the cached features that each step reuses.
        correction: masks tokens again.
    """
    steps: list[Step] = []
    cached, was_guided = 0, False
    for number, (masked, left) in enumerate(pairwise(counts)):
        if not masked:
            break
        num_drawn = counts[0] - masked
        visible = num_known + num_drawn
        again = correction.count((number + 1) / (len(counts) - 1), num_drawn, left) if correction else 0
        starts = guided[number] and not was_guided and cached > 0
        reused = round(reuse_shares[number] * cached)
        revealed = masked - left + again
        branches = 2 if guided[number] else 1
        reuses_all = reuse_shares[number] == 1
        steps.append(Step(number, masked, visible, reused, revealed, again, branches, starts, reuses_all))
        was_guided = guided[number]
        cached = 0 if again and correction and correction.recompute else visible - again
    return steps


class SamplerOptions:
    """Holds the options of a sampler and plans its steps.

    A schedule is a function of the progress, or a list of a value for each step.

    Args:
        num_steps: `T`.
        guidance_scale: strength of classifier-free guidance. Step s = 0..T-1 multiplies it by `guidance_schedule(s/T)`.
            A step of guidance 0 does not compute the unconditional branch.
        sampling_temperature: of a token's draw. Step s multiplies it by its schedule at r = (s+1)/T; at least 1e-3.
        gumbel_temperature: strength of the noise on the confidence. Step s multiplies it by its schedule at r.
        mask_schedule: gives, at r, the share of tokens that are still masked after step s; it must fall to 0.
        guidance_schedule, sampling_temperature_schedule, gumbel_temperature_schedule: factors of the above.
        reuse_share: the share of the cached features that a step reuses, the oldest first; the other tokens are encoded
            anew. 1 is the paper's choice, 0 reuses nothing.
        refresh_every: every so many steps, the first among them, a step reuses nothing and encodes all visible tokens;
            None for no such steps.
        compile: whether torch compiles each step, which takes minutes for each batch size and changes the rounding.
        order: decides which tokens are revealed first; None for `enat.orders.Confidence`, the paper's choice.
        top_k, top_p: which tokens may be drawn, see `enat.draws.likely`.
        correction: masks tokens again, see `enat.corrections`.

    Raises:
        InputError: if the mask schedule rises, exceeds 1, or does not end at 0, or parts can't be combined.
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
        order: Order | None = None,
        top_k: Annotated[int, Ge(1)] | None = None,
        top_p: Annotated[float, Gt(0), Le(1)] | None = None,
        correction: Remasking | None = None,
        refresh_every: Annotated[int, Ge(1)] | None = None,
    ):
        starts = [step / num_steps for step in range(num_steps)]
        progress = [(step + 1) / num_steps for step in range(num_steps)]  # r
        self.mask_shares = values("mask_schedule", mask_schedule, progress)
        if any(b > a for a, b in pairwise([1.0, *self.mask_shares])) or abs(self.mask_shares[-1]) > 1e-9:
            name = getattr(getattr(mask_schedule, "func", mask_schedule), "__name__", mask_schedule)
            raise InputError(f"mask_schedule={name}: expected one that falls from 1 to 0, such as cosine.")
        self.num_steps = num_steps
        scales = values("guidance_schedule", guidance_schedule, starts)
        sampling = values("sampling_temperature_schedule", sampling_temperature_schedule, progress)
        ordering = values("gumbel_temperature_schedule", gumbel_temperature_schedule, progress)
        self.guidance_scales = [guidance_scale * factor for factor in scales]
        self.sampling_temperatures = [sampling_temperature * factor for factor in sampling]
        self.gumbel_temperatures = [gumbel_temperature * factor for factor in ordering]
        self.reuse_share = reuse_share
        self.refresh_every = refresh_every
        self.compile = compile
        self.order = order or Confidence()
        self.top_k = top_k
        self.top_p = top_p
        self.correction = correction
        self.is_adaptive = isinstance(self.order, EntropyBound)  # whether the tokens decide how many are revealed
        if self.is_adaptive and (correction or compile):
            raise InputError(
                "order: EntropyBound takes no correction and no compilation, as its numbers vary; expected "
                "correction@sampler.correction=none and sampler.compile=false."
            )

    def identity(self) -> list[Any]:
        """Returns what tokens depend on, as plain values; parts that are as in the paper do not appear in it."""
        made: list[Any] = [self.mask_shares, self.guidance_scales, self.sampling_temperatures]
        made += [self.gumbel_temperatures, self.reuse_share]
        parts = {"order": self.order, "correction": self.correction, "top_k": self.top_k, "top_p": self.top_p}
        parts["refresh_every"] = self.refresh_every
        others = {
            name: [type(part).__name__, vars(part)] if hasattr(part, "__dict__") else part
            for name, part in parts.items()
            if part is not None and type(part) is not Confidence
        }
        return [*made, others] if others else made

    def mask_counts(self, num_tokens: int) -> list[int]:
        """Returns the number of tokens that are still masked after each step; the last is 0."""
        return [max(math.floor(num_tokens * share), 0) for share in self.mask_shares]

    def is_guided(self, net: ENAT) -> bool:
        """Says whether any step needs the unconditional branch."""
        return net.num_classes > 0 and any(self.guidance_scales)

    def plan(self, net: ENAT, counts: list[int] | None = None) -> list[Step]:
        """Plans the steps; `counts` are the numbers of masked tokens before the first and after each, None for all."""
        counts = counts or [net.num_tokens, *self.mask_counts(net.num_tokens)]
        # Where features of masked tokens are cached, the first steps of both branches count too.
        guided = [self.is_guided(net) and bool(scale or net.caches_masked) for scale in self.guidance_scales]
        refresh_every = self.refresh_every or self.num_steps
        shares = [self.reuse_share if step % refresh_every else 0.0 for step in range(self.num_steps)]
        return plan_steps(counts, guided, net.num_tokens - counts[0], shares, self.correction)
