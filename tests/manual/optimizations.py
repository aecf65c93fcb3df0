"""Measures what each optimisation gives: the time without it, when a straightforward program does more work.

`python tests/manual/optimizations.py experiment=enat_l_256 tokenizer.weights=null` takes the options of task=benchmark.
With `sampler.compile=true`, `tokenizer.compile=true` or `module.compile=true` it also measures what compiling gives.
"""

import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from enat.files import write_atomically
from enat.layers import SelfCrossAttention
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.packed import PerSampleMasking
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.tokenizers.vqgan import VQGAN, run
from enat.variants import CrossAttention
from experiments.benchmark import DTYPES
from experiments.benchmarking.workload import Clock, Generation, TrainingSteps, Work
from experiments.runtime.command_line import explain_errors
from experiments.runtime.progress import tell
from experiments.runtime.task import check_options


class Wrapped:
    """A network as a sampler or a module sees it; what a subclass does not change is the network's own."""

    def __init__(self, net: ENAT):
        self.net = net

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        logits, features = self.net(*arguments)
        return logits, features


class TwoPasses(Wrapped):
    """Computes both branches of the guidance one after the other."""

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        token_ids, new, masked, modulations, cached_features = arguments
        rows = len(token_ids) // 2
        if rows == 0 or len(token_ids) == self.batch_size:  # the first step, without guidance
            return super().__call__(*arguments)
        parts = [
            super(TwoPasses, self).__call__(
                token_ids[branch],
                new[branch],
                masked[branch],
                [modulation[branch] for modulation in modulations],
                None if cached_features is None else cached_features[branch],
            )
            for branch in (slice(rows), slice(rows, None))
        ]
        logits, features = (torch.cat(pair) for pair in zip(*parts, strict=True))
        return logits, features

    def modulations(self, class_ids: Tensor) -> list[Tensor]:
        self.batch_size = len(class_ids) // 2
        return self.net.modulations(class_ids)


class ModulationsAtEachStep(Wrapped):
    """Computes the modulations of adaLN from the class at each step."""

    def modulations(self, class_ids: Tensor) -> list[Tensor]:
        self.class_ids = class_ids
        return self.net.modulations(class_ids)

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        token_ids, new, masked, _, cached_features = arguments
        modulations = self.net.modulations(self.class_ids[: len(token_ids)])
        return super().__call__(token_ids, new, masked, modulations, cached_features)


class LogitsOfAllTokens(Wrapped):
    """Computes head and softmax for the visible tokens too; their gradient is zero."""

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        logits, features = super().__call__(*arguments)
        unused = self.net.logits(features[..., : self.net.width]).float().log_softmax(dim=2)
        return logits + 0 * unused.sum(), features


class CacheByTheWholeNetwork(Wrapped):
    """Runs decoder and head also in the pass that makes the cache."""

    def encode(self, ids: Tensor, positions: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        nothing = ids.new_zeros(len(ids), self.net.num_tokens)
        is_new = nothing.scatter(1, positions, 1)
        masked = is_new.argsort(dim=1, stable=True)[:, : self.net.num_tokens - positions.shape[1]]
        return self.net(nothing.scatter(1, positions, ids), positions, masked, modulations)[1]


def within(work: Work, context: Callable[[], Any]) -> Work:
    """Returns the work, done inside a context."""

    def work_within() -> object:
        with context():
            return work()

    return work_within


def by_sdpa(net: ENAT) -> ENAT:
    """Copies a network and lets torch compute its attention, so that `sdpa_kernel` chooses how."""
    other = deepcopy(net)
    for module in other.modules():
        if isinstance(module, SelfCrossAttention | CrossAttention):
            module.kernel = F.scaled_dot_product_attention
    return other


def one_by_one(averaged: list[nn.Parameter], current: list[nn.Parameter], _: int) -> None:
    """Updates the average of the weights one by one."""
    with torch.no_grad():
        for mean, value in zip(averaged, current, strict=True):
            mean.lerp_(value, 1 - 0.9999)


def sampling_variants(net: ENAT, sampler: Callable[..., Sampler], batch_size: int, clock: Clock) -> dict[str, Work]:
    """Lists sampling as it is, then without each of its optimisations; `net` has weights in float32."""
    cast = deepcopy(net).to(clock.device, clock.dtype).eval()
    default = sampler()

    def generate(network: Any, by: Sampler = default) -> Work:
        return Generation(network, by, batch_size, clock.device)

    works = {
        "sampling": generate(cast),
        "features reused": generate(cast, sampler(reuse_share=0.0)),
        "both branches in one batch": generate(TwoPasses(cast)),
        "adaLN once": generate(ModulationsAtEachStep(cast)),
        "logits of masked tokens alone": generate(LogitsOfAllTokens(cast)),
    }
    if not default.compile:  # compiled steps keep the kernels with which they were compiled
        works["fused attention"] = within(generate(by_sdpa(cast)), partial(sdpa_kernel, SDPBackend.MATH))
    if clock.device.type == "cpu":
        works["linear layers by oneDNN"] = within(generate(cast), partial(torch.backends.mkldnn.flags, enabled=False))
    if clock.dtype != torch.float32:
        works["weights cast once"] = within(generate(deepcopy(net).to(clock.device).eval()), clock.autocast)
    if default.compile:
        works["steps compiled"] = generate(cast, sampler(compile=False))
    return works


def decoding_variants(tokenizer: Tokenizer, token_ids: Tensor, clock: Clock) -> dict[str, Work]:
    """Lists decoding as it is, then, for a VQGAN, with the channels first, and uncompiled where it is compiled."""
    cast = deepcopy(tokenizer).to(clock.device, clock.dtype)
    works: dict[str, Work] = {"decode": partial(cast.decode, token_ids)}
    if isinstance(cast, VQGAN):
        first = deepcopy(cast).in_memory_format(torch.contiguous_format)
        works["channels last"] = partial(first.decode, token_ids)
        if cast.run_decoder is not run:
            eager = deepcopy(cast)
            eager.run_decoder = run
            works["decoder compiled"] = partial(eager.decode, token_ids)
    return works


def training_variants(module: MaskedTokenModule, batch_size: int, clock: Clock) -> dict[str, Work]:
    """Lists training as it is, then without each of its optimisations."""
    steps = TrainingSteps(module, batch_size, clock).changed(steps=range(2, 6))  # two with reuse, two without
    works: dict[str, Work] = {"training": steps, "average of all weights at once": steps.changed(average=one_by_one)}
    if not isinstance(module.masking, PerSampleMasking):  # packed batches need an ENAT, not a wrapped one
        works["head and loss on masked tokens alone"] = steps.changed(net=LogitsOfAllTokens(steps.net))
        works["cache without decoder and head"] = steps.changed(averaged=CacheByTheWholeNetwork(steps.averaged))
    if getattr(module.optimizer, "keywords", {}).get("fused"):
        plain: Any = module.optimizer
        works["fused optimiser"] = steps.changed(optimizer=plain(steps.parameters[1], fused=False))
    if module.is_compiled:
        eager = deepcopy(module)
        eager.is_compiled = False
        works["blocks compiled"] = TrainingSteps(eager, batch_size, clock).changed(steps=steps.steps)
    return works


def leave_one_out(variants: list[Callable[[], dict[str, Work]]], clock: Clock) -> list[dict[str, Any]]:
    """Times each kind of work in turns with the same work without one of its optimisations.

    Args:
        variants: each makes a kind of work by name: first as it is, then without each optimisation.
        clock: times them.

    Returns:
        A row for each optimisation: `kind` of work, `optimization`, `seconds` with it, `seconds_without` it, and
        `ratio`: how many times longer the work takes without it.
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


def measure(config: DictConfig, clock: Clock) -> list[dict[str, Any]]:
    """Measures what each optimisation of sampling, decoding and training gives in the precision of the clock."""
    module = instantiate(config.module)
    tokenizer = instantiate(config.tokenizer)
    sampler = instantiate(config.sampler)
    batch_size = config.curves.batch
    shape = (batch_size, module.net.num_tokens)
    token_ids = torch.randint(module.net.sizes["codebook_size"], shape, device=clock.device)
    variants = [
        lambda: sampling_variants(module.net, sampler, batch_size, clock),
        lambda: decoding_variants(tokenizer, token_ids, clock),
    ]
    if config.train_batch is not None:
        variants.append(lambda: training_variants(deepcopy(module), config.train_batch, clock))
    return leave_one_out(variants, clock)


def main(options: Sequence[str]) -> None:
    """Prints a table, and writes `optimizations.json` into the folder `output`.

    Args:
        options: the options of task=benchmark; `curves.batch` is the batch of sampling and decoding.
    """
    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3"):
        config = compose("config", ["task=benchmark", *options])
    check_options(config)
    device = instantiate(config.fabric).device
    table = Table("optimisation", "of", "precision", "without it, the time is")
    by_precision = {}
    for precision in config.precisions:
        tell(f"{precision}: what each optimisation gives")
        by_precision[precision] = measure(config, Clock(device, DTYPES[precision], config.seconds, with_peak=False))
        for row in by_precision[precision]:
            table.add_row(row["optimization"], row["kind"], precision, f"{row['ratio']:.2f}x")
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "optimizations.json", json.dumps(by_precision, indent=1).encode())
    Console(width=max(Console().width, 100)).print(table)


if __name__ == "__main__":
    with explain_errors(sys.argv):
        main(sys.argv[1:])
