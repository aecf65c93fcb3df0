"""What each optimisation gives, by leaving it out: the work that a straightforward program would do besides."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from enat.layers import SelfCrossAttention
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.packed import PerSampleMasking
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.tokenizers.vqgan import VQGAN, run
from enat.variants import CrossAttention
from experiments.benchmarking.workload import Clock, Generation, TrainingSteps, Work


class Wrapped:
    """A network as a sampler or module sees it; what is not changed is the network's."""

    def __init__(self, net: ENAT):
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        logits, features = self.net(*arguments)
        return logits, features


class TwoPasses(Wrapped):
    """Both branches of the guidance, one after the other."""

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        token_ids, revealed, masked, condition, cached = arguments
        rows = len(token_ids) // 2
        if rows == 0 or condition.shape[1] == self.single:  # the first step, without guidance
            return super().__call__(*arguments)
        parts = [
            super(TwoPasses, self).__call__(
                token_ids[here],
                revealed[here],
                masked[here],
                condition[:, here],
                None if cached is None else cached[here],
            )
            for here in (slice(rows), slice(rows, None))
        ]
        logits, features = (torch.cat(pair) for pair in zip(*parts, strict=True))
        return logits, features

    def condition(self, class_ids: Tensor) -> Tensor:
        self.single = len(class_ids) // 2
        return self.net.condition(class_ids)


class ConditionAtEachStep(Wrapped):
    """The modulations of adaLN from the class at each step."""

    def condition(self, class_ids: Tensor) -> Tensor:
        self.class_ids = class_ids
        return self.net.condition(class_ids)

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        token_ids, revealed, masked, _, cached = arguments
        return super().__call__(
            token_ids, revealed, masked, self.net.condition(self.class_ids[: len(token_ids)]), cached
        )


class LogitsOfAllTokens(Wrapped):
    """Head and softmax of the visible tokens too; with a gradient that is zero."""

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        logits, features = super().__call__(*arguments)
        unused = self.net.logits(features[..., : self.net.width]).float().log_softmax(dim=2)
        return logits + 0 * unused.sum(), features


class CacheByTheWholeNetwork(Wrapped):
    """Decoder and head also in the pass that makes the cache."""

    def encode(self, token_ids: Tensor, revealed: Tensor, condition: Tensor) -> Tensor:
        is_revealed = torch.zeros_like(token_ids).scatter(1, revealed, 1)
        masked = is_revealed.argsort(dim=1, stable=True)[:, : token_ids.shape[1] - revealed.shape[1]]
        return self.net(token_ids, revealed, masked, condition)[1]


def within(work: Work, context: Callable[[], Any]) -> Work:
    """Work inside of a context."""

    def done() -> object:
        with context():
            return work()

    return done


def by_sdpa(net: ENAT) -> ENAT:
    """A copy whose attention is torch's alone, so that `sdpa_kernel` chooses the kernel."""
    other = deepcopy(net)
    for module in other.modules():
        if isinstance(module, SelfCrossAttention | CrossAttention):
            module.attention = F.scaled_dot_product_attention
    return other


def one_by_one(averaged: list[nn.Parameter], current: list[nn.Parameter], _: int) -> None:
    """The average, weight by weight."""
    with torch.no_grad():
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, 1 - 0.9999)


def sampling_variants(net: ENAT, sampler: Callable[..., Sampler], batch_size: int, clock: Clock) -> dict[str, Work]:
    """Sampling as it is (the first), and without each of its optimisations; `net` has weights in float32."""
    cast = deepcopy(net).to(clock.device, clock.dtype).eval()
    default = sampler()

    def generate(network: Any, by: Sampler = default) -> Work:
        return Generation(network, by, batch_size, clock.device)

    found = {
        "sampling": generate(cast),
        "features reused": generate(cast, sampler(reuse_share=0.0)),
        "both branches in one batch": generate(TwoPasses(cast)),
        "adaLN once": generate(ConditionAtEachStep(cast)),
        "logits of masked tokens alone": generate(LogitsOfAllTokens(cast)),
    }
    if not default.compile:  # what is compiled keeps its kernels
        found["fused attention"] = within(generate(by_sdpa(cast)), partial(sdpa_kernel, SDPBackend.MATH))
    if clock.device.type == "cpu":
        found["linear layers by oneDNN"] = within(generate(cast), partial(torch.backends.mkldnn.flags, enabled=False))
    if clock.dtype != torch.float32:
        found["weights cast once"] = within(generate(deepcopy(net).to(clock.device).eval()), clock.autocast)
    if default.compile:
        found["steps compiled"] = generate(cast, sampler(compile=False))
    return found


def decoding_variants(tokenizer: Tokenizer, token_ids: Tensor, clock: Clock) -> dict[str, Work]:
    """Decoding by a VQGAN as it is, with the channels first, and uncompiled where it is compiled."""
    cast = deepcopy(tokenizer).to(clock.device, clock.dtype)
    found: dict[str, Work] = {"decode": partial(cast.decode, token_ids)}
    if isinstance(cast, VQGAN):
        first = deepcopy(cast).in_memory_format(torch.contiguous_format)
        found["channels last"] = partial(first.decode, token_ids)
        if cast.run_decoder is not run:
            eager = deepcopy(cast)
            eager.run_decoder = run
            found["decoder compiled"] = partial(eager.decode, token_ids)
    return found


def training_variants(module: MaskedTokenModule, batch_size: int, clock: Clock) -> dict[str, Work]:
    """Training as it is, and without each of its optimisations."""
    steps = TrainingSteps(module, batch_size, clock).changed(steps=range(2, 6))  # two with reuse, two without
    found: dict[str, Work] = {"training": steps, "average of all weights at once": steps.changed(average=one_by_one)}
    if not isinstance(module.masking, PerSampleMasking):  # whose lines of tokens a wrapped network does not know
        found["head and loss on masked tokens alone"] = steps.changed(net=LogitsOfAllTokens(steps.net))
        found["cache without decoder and head"] = steps.changed(averaged=CacheByTheWholeNetwork(steps.averaged))
    if getattr(module.optimizer, "keywords", {}).get("fused"):
        plain: Any = module.optimizer
        found["fused optimiser"] = steps.changed(optimizer=plain(steps.parameters[1], fused=False))
    if module.compile_blocks:
        eager = deepcopy(module)
        eager.compile_blocks = False
        found["blocks compiled"] = TrainingSteps(eager, batch_size, clock).changed(steps=steps.steps)
    return found


def leave_one_out(variants: list[Callable[[], dict[str, Work]]], clock: Clock) -> list[dict[str, Any]]:
    """Times each kind of work in turns with what it is without one optimisation.

    Returns:
        A row each: `kind`, `optimization`, `seconds` with and `seconds_without`, and their `ratio`, what it gives.
    """
    rows = []
    for make in variants:
        works = make()
        seconds = clock.compare(works)
        kind, *others = seconds
        rows += [
            {"kind": kind, "optimization": name, "seconds": seconds[kind], "seconds_without": seconds[name]}
            | {"ratio": seconds[name] / seconds[kind]}
            for name in others
        ]
    return rows
