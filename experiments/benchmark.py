"""task=benchmark: measures sizes, operations and speed of an experiment, also as a share of the device's peak."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, MinLen
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from enat.errors import InputError
from enat.files import write_atomically
from enat.flops import sampling_flops, sampling_steps
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmarking.tables import plot, print_tables
from experiments.benchmarking.workload import Clock, Generation, TrainingSteps, at_resolution
from experiments.data_benchmark import stream_rate
from experiments.runtime.progress import tell
from experiments.runtime.provenance import hardware, sampler_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Curves:
    """Holds what is measured over the number of steps and over the resolution.

    Args:
        batch: images at a time.
        num_steps: numbers of steps; None for no such curve.
        resolution: multiples of the experiment's resolution; None for no such curve.
    """

    batch: Annotated[int, Ge(1)]
    num_steps: list[Annotated[int, Ge(1)]] | None
    resolution: list[Annotated[int, Ge(1)]] | None


def time_sampling(net: ENAT, sampler: Sampler, batch_sizes: Sequence[int], clock: Clock) -> dict[str, Any]:
    """Measures the latency at batch 1, and images per second and memory by batch size.

    Operations are those that torch counts in this run; on CPUs it misses fused attention, about 2 % for ENAT-L.
    """
    with FlopCounterMode(display=False) as counter:
        Generation(net, sampler, 1, clock.device)()
    flops = counter.get_total_flops()
    by_batch: list[dict[str, Any]] = []
    for batch in sorted({1, *batch_sizes}):
        work = Generation(net, sampler, batch, clock.device)
        try:
            memory, seconds = clock.memory(work), clock.time(work)
        except torch.OutOfMemoryError:
            if not by_batch:
                raise
            tell(f"no larger batches, since {batch} does not fit in the device's memory")
            break
        by_batch.append(
            {"batch": batch, "seconds": seconds, "images_per_second": batch / seconds, "memory_gb": memory}
            | {"utilization": clock.utilization(batch * flops, seconds)}
        )
    best = max(by_batch, key=lambda row: row["images_per_second"])
    return {
        "latency_s": by_batch[0]["seconds"],
        "images_per_second": best["images_per_second"],
        "batch": best["batch"],
        "tflop_per_image": flops / 1e12,
        "tflop_per_image_with_attention": sampling_flops(net, sampler) / 1e12,
        "utilization": best["utilization"],
        "by_batch": by_batch,
    }


def time_curves(
    net: ENAT, sampler: Callable[..., Sampler], curves: Curves, clock: Clock
) -> dict[str, list[dict[str, Any]]]:
    """Measures images per second, operations and memory over the number of steps, and over the resolution."""
    points = {
        "num_steps": [(steps, net, sampler(num_steps=steps)) for steps in curves.num_steps or []],
        "resolution": [(factor, at_resolution(net, factor), sampler()) for factor in curves.resolution or []],
    }
    measured: dict[str, list[dict[str, Any]]] = {}
    for name, settings in points.items():
        works = {str(x): Generation(of_size, by, curves.batch, clock.device) for x, of_size, by in settings}
        memory = {x: clock.memory(work) for x, work in works.items()}
        seconds = clock.compare(works) if works else {}
        measured[name] = [
            {name: x, "seconds": seconds[str(x)], "images_per_second": curves.batch / seconds[str(x)]}
            | {"memory_gb": memory[str(x)], "tflop_per_image": sampling_flops(of_size, by) / 1e12}
            for x, of_size, by in settings
        ]
    return measured


def time_tokenizer(work: Callable[[Tensor], Tensor], example: Tensor, clock: Clock) -> dict[str, Any]:
    """Measures the speed of a tokenizer's `encode` or `decode` on an example batch."""
    with FlopCounterMode(display=False) as counter:
        work(example[:1])
    flops, seconds = counter.get_total_flops(), clock.time(lambda: work(example))
    return {
        "images_per_second": len(example) / seconds,
        "tflop_per_image": flops / 1e12,
        "utilization": clock.utilization(len(example) * flops, seconds),
    }


def time_generation(
    generation: Generation, tokenizer: Tokenizer, tflop_per_image: float, clock: Clock
) -> dict[str, Any]:
    """Measures the speed of generating images from classes: sampling, then decoding."""
    batch = len(generation.class_ids)
    seconds = clock.time(lambda: tokenizer.decode(generation()))
    return {
        "images_per_second": batch / seconds,
        "batch": batch,
        "tflop_per_image": tflop_per_image,
        "utilization": clock.utilization(1e12 * batch * tflop_per_image, seconds),
    }


def time_training(module: MaskedTokenModule, batch_size: int, clock: Clock) -> dict[str, Any]:
    """Measures the speed of a training step, see `TrainingSteps`."""
    work = TrainingSteps(module, batch_size, clock)
    memory, seconds = clock.memory(work), clock.time(work)
    return {
        "step_s": seconds / len(work.steps),
        "samples_per_second": len(work.steps) * batch_size / seconds,
        "batch": batch_size,
        "utilization": clock.utilization(work.flops(), seconds),
        "peak_memory_gb": memory,
    }


def measure(
    module: MaskedTokenModule,
    sampler: Callable[..., Sampler],
    tokenizer: Tokenizer,
    batch_sizes: Sequence[int],
    train_batch: int | None,
    curves: Curves,
    clock: Clock,
) -> dict[str, Any]:
    """Measures all kinds of work in the precision of the clock; its arguments stay as they are."""
    device, dtype, sizes = clock.device, clock.dtype, module.net.sizes
    tell(f"{dtype}: sampling, batches {batch_sizes}, and curves")
    net = deepcopy(module.net).to(device, dtype).eval()
    results: dict[str, Any] = {"sampling": time_sampling(net, sampler(), batch_sizes, clock)}
    peak = clock.peak
    batch = results["sampling"]["by_batch"][-1]["batch"]  # the largest
    token_ids = torch.randint(sizes["codebook_size"], (batch, sizes["num_tokens"]), device=device)
    results["curves"] = time_curves(net, sampler, curves, clock)
    tell(f"{dtype}: tokenizer")
    coder = deepcopy(tokenizer).to(device, dtype)
    results["decode"] = time_tokenizer(coder.decode, token_ids, clock)
    results["encode"] = time_tokenizer(coder.encode, coder.decode(token_ids), clock)
    flops = results["sampling"]["tflop_per_image"] + results["decode"]["tflop_per_image"]
    results["generation"] = time_generation(Generation(net, sampler(), batch, device), coder, flops, clock)
    del net, coder
    if train_batch is not None:
        tell(f"{dtype}: training, batch {train_batch}")
        results["train"] = time_training(deepcopy(module), train_batch, clock)
    return {"peak_tflops": peak / 1e12, **results}


def benchmark(
    module: MaskedTokenModule,
    sampler: Callable[..., Sampler],
    tokenizer: Tokenizer,
    precisions: Annotated[list[Literal["float32", "bfloat16", "float16"]], MinLen(1)],
    batch_sizes: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)],
    train_batch: Annotated[int, Ge(1)] | None,
    curves: Curves,
    seconds: Annotated[float, Gt(0)],
    fabric: Fabric,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures sampling, decoding, encoding and training with random weights, in each precision.

    Network and tokenizer get weights of that precision for sampling; training in less than float32 uses autocast.

    Args:
        module, sampler, tokenizer: of the experiment; the sampler is called with the options that change.
        precisions: in which everything is measured.
        batch_sizes: of sampling, beside 1; the tokenizer is measured at the largest.
        train_batch: samples of a training step; None for no training.
        curves: what is measured over the number of steps and over the resolution.
        seconds: how long each work is repeated.
        fabric: one device.
        output: folder of `benchmark.png`, and of `benchmark.json`, written after each precision.
        settings: the whole configuration.
    """
    for number in curves.num_steps or []:  # before anything is measured
        try:
            sampler(num_steps=number)
        except InputError as error:
            raise InputError(f"curves.num_steps={curves.num_steps}: {error} Or: curves.num_steps=null.") from error
    steps, path = sampling_steps(module.net, sampler()), Path(output) / "benchmark.png"
    by_precision: dict[str, dict[str, Any]] = {}
    for name in precisions:
        clock = Clock(fabric.device, DTYPES[name], seconds)
        by_precision[name] = measure(module, sampler, tokenizer, batch_sizes, train_batch, curves, clock)
        write_atomically(Path(output) / "benchmark.json", json.dumps(by_precision, indent=1).encode())  # so far
    tell("the stream of shards")
    side = math.isqrt(module.net.num_tokens)
    data = {"samples_per_second": stream_rate(side, train_batch or max(batch_sizes), seconds)}
    print_tables(by_precision, data["samples_per_second"])
    plot(by_precision, steps, path)
    return {
        **by_precision[precisions[0]],
        "precisions": by_precision,
        "data": data,
        "parameters": sum(parameter.numel() for parameter in module.net.parameters()),
        "steps": steps,
        "plot": str(path),
        "sampler": sampler_settings(settings),
        "threads": torch.get_num_threads(),
        **hardware(fabric.device, 1),
    }
