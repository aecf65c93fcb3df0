"""task=benchmark: sizes, operations and speed of an experiment, as shares of what its device reaches."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from enat.errors import InputError
from enat.flops import condition_flops, decode_flops, encode_flops, measured_peak
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.randomness import rng_for
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from experiments.provenance import provenance, sampler_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def sampling_steps(net: ENAT, sampler: Sampler) -> list[dict[str, float]]:
    """What each step computes for one image: tokens encoded, reused and decoded, branches, and GFLOP."""
    rows = []
    encoded = reused = 0
    for step, (masked, left) in enumerate(pairwise([net.num_tokens, *sampler.mask_counts(net.num_tokens)])):
        if not masked:
            break
        branches = 1 if not any(sampler.guidance_scales) or (step == 0 and not sampler.guidance_scales[0]) else 2
        flops = branches * (encode_flops(net, encoded, reused) + decode_flops(net, masked, encoded + reused))
        rows.append(
            {"step": step, "encoded": encoded, "reused": reused, "decoded": masked, "branches": branches}
            | {"gflop": flops / 1e9}
        )
        encoded, reused = masked - left, encoded + reused
    return rows


def sampling_flops(net: ENAT, sampler: Sampler) -> float:
    """Operations for one image, attention and the condition of both branches included."""
    steps = sampling_steps(net, sampler)
    return sum(1e9 * row["gflop"] for row in steps) + max(row["branches"] for row in steps) * condition_flops(net)


class Clock:
    """Times work on a device, and what a matrix product reaches there, in turns.

    Args:
        device, dtype: of the work.
        seconds: for which each work is repeated, three times at least.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float):
        self.device, self.dtype, self.seconds = device, dtype, seconds
        self.peaks: list[float] = []

    def time(self, work: Callable[[], object]) -> float:
        """Median seconds of a call; the first one does not count."""
        self._once(work)
        self.peaks.append(measured_peak(self.device, self.dtype))
        found: list[float] = []
        while len(found) < 3 or sum(found) < self.seconds:
            found.append(self._once(work))
        self.peaks.append(measured_peak(self.device, self.dtype))
        return median(found)

    def _once(self, work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def utilization(self, flops: float, seconds: float) -> float:
        """Share of the peak that was measured just before and after."""
        return flops / seconds / max(self.peaks[-2:])


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], float | None]]:
    """Gives what tells the most memory since, in GB; None on a CPU, which has no such count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    yield lambda: torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def time_sampling(net: ENAT, sampler: Sampler, batch_sizes: Sequence[int], clock: Clock) -> dict[str, Any]:
    """Latency at batch 1, and images per second by batch size."""
    flops = sampling_flops(net, sampler)
    by_batch: list[dict[str, Any]] = []
    for batch in sorted({1, *batch_sizes}):
        class_ids = torch.arange(batch, device=clock.device) % net.num_classes
        generator = torch.Generator(clock.device).manual_seed(0)
        with peak_memory(clock.device) as memory:
            seconds = clock.time(lambda ids=class_ids, g=generator: sampler(net, ids, g))  # type: ignore[misc]
            by_batch.append(
                {"batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "memory_gb": memory()}
                | {"utilization": clock.utilization(batch * flops, seconds)}
            )
    best = max(by_batch, key=lambda row: row["images_per_second"])
    return {
        "latency_s": by_batch[0]["seconds"],
        "images_per_second": best["images_per_second"],
        "batch": best["batch"],
        "tflop_per_image": flops / 1e12,
        "utilization": best["utilization"],
        "by_batch": by_batch,
    }


def time_tokenizer(work: Callable[[Tensor], Tensor], example: Tensor, clock: Clock) -> dict[str, Any]:
    """Speed of a tokenizer's encode or decode of `example`, a batch."""
    with FlopCounterMode(display=False) as counter:
        work(example[:1])
    flops, seconds = counter.get_total_flops(), clock.time(lambda: work(example))
    return {
        "images_per_second": len(example) / seconds,
        "tflop_per_image": flops / 1e12,
        "utilization": clock.utilization(len(example) * flops, seconds),
    }


def time_training(
    module: MaskedTokenModule, batch_size: int, autocast: Callable[[], AbstractContextManager[Any]], clock: Clock
) -> dict[str, Any]:
    """A training step on random tokens with the masks of training: forward, backward, optimiser and average."""
    net = module.net
    module.to(clock.device).train()
    average, update = deepcopy(net).eval().requires_grad_(False), get_ema_multi_avg_fn(0.9999)
    module.__dict__["ema_net"] = average
    optimizer = module.configure_optimizers()["optimizer"]
    token_ids = torch.randint(net.codebook_size, (batch_size, net.num_tokens), device=clock.device)
    batch = token_ids, torch.arange(batch_size, device=clock.device) % net.num_classes
    parameters, steps = (list(average.parameters()), list(net.parameters())), 8

    def several_steps() -> None:
        for step in range(steps):  # the same masks each time
            with autocast():
                loss = module.predict_masked(net, batch, rng_for("training", module.seed, 0, step, 0))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            update(*parameters, step)

    several_steps()
    module.flops = 0.0
    several_steps()
    flops = module.flops
    with peak_memory(clock.device) as memory:
        seconds = clock.time(several_steps)
        return {
            "step_s": seconds / steps,
            "samples_per_second": steps * batch_size / seconds,
            "batch": batch_size,
            "utilization": clock.utilization(flops, seconds),
            "peak_memory_gb": memory(),
        }


def plot(by_precision: Mapping[str, Mapping[str, Any]], steps: Sequence[Mapping[str, float]], path: Path) -> None:
    """Images per second over batch, and the operations of each step."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, found in by_precision.items():
        rows = found["sampling"]["by_batch"]
        left.plot([row["batch"] for row in rows], [row["images_per_second"] for row in rows], "o-", label=name)
    left.set(xlabel="batch", ylabel="images/s, without decoding", title="Sampling", xscale="log", ylim=(0, None))
    left.set_xticks([row["batch"] for row in rows], [str(row["batch"]) for row in rows])
    left.minorticks_off()
    left.legend()
    names = ("encoded", "reused", "decoded")
    bottom = [0.0] * len(steps)
    for name in names:
        heights = [row[name] for row in steps]
        right.bar([row["step"] for row in steps], heights, bottom=bottom, label=f"tokens {name}")
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    cost = right.twinx()
    cost.plot([row["step"] for row in steps], [row["gflop"] for row in steps], "ko-", label="GFLOP")
    cost.set(ylim=(0, None), ylabel="GFLOP per image")
    right.set(xlabel="step", ylabel="tokens", title="What a step computes", xticks=[row["step"] for row in steps])
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3)
    figure.savefig(path, dpi=120)


def print_table(by_precision: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each precision and kind of work."""
    table = Table("", "precision", "per second", "TFLOP an image", "share of the peak", "")
    for precision, found in by_precision.items():
        for kind in ("sampling", "decode", "encode", "train"):
            row = found[kind]
            rate = row.get("images_per_second", row.get("samples_per_second"))
            more = {"sampling": "latency_s", "train": "step_s"}.get(kind)
            flops = f"{row['tflop_per_image']:.3f}" if "tflop_per_image" in row else ""
            rest = f"{more.removesuffix('_s')} {1e3 * row[more]:.1f} ms" if more else ""
            table.add_row(kind, precision, f"{rate:,.2f}", flops, f"{row['utilization']:.1%}", rest)
        table.add_row("matrix product", precision, "", "", f"{found['peak_tflops']:.3f} TFLOP/s", "")
    Console(width=max(Console().width, 100)).print(table)


def measure(
    module: MaskedTokenModule,
    sampler: Sampler,
    tokenizer: Tokenizer,
    batch_sizes: Sequence[int],
    train_batch: int,
    clock: Clock,
) -> dict[str, Any]:
    """All kinds of work in the precision of the clock; leaves its arguments alone."""
    device, dtype, sizes = clock.device, clock.dtype, module.net.sizes
    net, coder = deepcopy(module.net).to(device, dtype).eval(), deepcopy(tokenizer).to(device, dtype)
    found: dict[str, Any] = {"sampling": time_sampling(net, sampler, batch_sizes, clock)}
    token_ids = torch.randint(sizes["codebook_size"], (max(batch_sizes), sizes["num_tokens"]), device=device)
    found["decode"] = time_tokenizer(coder.decode, token_ids, clock)
    found["encode"] = time_tokenizer(coder.encode, coder.decode(token_ids), clock)
    del net, coder

    def autocast() -> AbstractContextManager[Any]:
        return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)

    found["train"] = time_training(deepcopy(module), train_batch, autocast, clock)
    return {"peak_tflops": max(clock.peaks) / 1e12, **found}


def benchmark(
    module: MaskedTokenModule,
    sampler: Sampler,
    tokenizer: Tokenizer,
    precisions: list[str],
    batch_sizes: list[int],
    train_batch: int,
    seconds: float,
    fabric: Fabric,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures sampling, decoding, encoding and training with random weights, in each precision.

    Sampling and tokenizer have weights of that precision; training in less than float32 is by autocast.

    Args:
        module, sampler, tokenizer: of the experiment.
        precisions: of `DTYPES`.
        batch_sizes: of sampling; 1 joins them, and the largest is that of the tokenizer.
        train_batch: samples of a training step.
        seconds: for which each work is repeated.
        fabric: one device.
        output: folder of `benchmark.png`.
        settings: the whole configuration.

    Raises:
        InputError: for an unknown precision, or a size below 1.
    """
    if not precisions or any(name not in DTYPES for name in precisions):
        raise InputError(f"precisions={precisions}: expected some of {', '.join(DTYPES)}.")
    if min([train_batch, *batch_sizes], default=0) < 1 or seconds <= 0:
        raise InputError(f"train_batch={train_batch}, batch_sizes={batch_sizes}, seconds={seconds}: expected above 0.")
    device, net = fabric.device, module.net
    by_precision: dict[str, dict[str, Any]] = {}
    for name in precisions:
        clock = Clock(device, DTYPES[name], seconds)
        by_precision[name] = measure(module, sampler, tokenizer, batch_sizes, train_batch, clock)
        (Path(output) / "benchmark.json").write_text(json.dumps(by_precision, indent=1))  # so far
    steps, path = sampling_steps(net, sampler), Path(output) / "benchmark.png"
    print_table(by_precision)
    plot(by_precision, steps, path)
    return {
        **by_precision[precisions[0]],
        "precisions": by_precision,
        "parameters": count_parameters(net),
        "steps": steps,
        "plot": str(path),
        "sampler": sampler_settings(settings),
        "threads": torch.get_num_threads(),
        **provenance(device, 1),
    }


def count_parameters(net: nn.Module) -> int:
    """All of them."""
    return sum(parameter.numel() for parameter in net.parameters())
