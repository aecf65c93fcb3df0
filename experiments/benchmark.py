"""task=benchmark: sizes, operations and speed of an experiment, as shares of what its device reaches."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from enat.errors import InputError
from enat.files import write_atomically
from enat.flops import sampling_flops, sampling_steps
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmarking.optimizations import (
    decoding_variants,
    leave_one_out,
    sampling_variants,
    training_variants,
)
from experiments.benchmarking.workload import Clock, Generation, TrainingSteps, at_resolution
from experiments.data_benchmark import stream_rate
from experiments.runtime.progress import tell
from experiments.runtime.provenance import provenance, sampler_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def time_sampling(net: ENAT, sampler: Sampler, batch_sizes: Sequence[int], clock: Clock) -> dict[str, Any]:
    """Latency at batch 1, and images per second and memory by batch size.

    Operations are those that torch counts in this run; on CPUs it does not see fused attention, about 2 % of ENAT-L's.
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
    net: ENAT, sampler: Callable[..., Sampler], curves: Mapping[str, Any], clock: Clock
) -> dict[str, list[dict[str, Any]]]:
    """Images per second, operations and memory over the number of steps, and over the resolution."""
    points = {
        "num_steps": [(steps, net, sampler(num_steps=steps)) for steps in curves["num_steps"] or []],
        "resolution": [(factor, at_resolution(net, factor), sampler()) for factor in curves["resolution"] or []],
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, settings in points.items():
        works = {str(x): Generation(of_size, by, curves["batch"], clock.device) for x, of_size, by in settings}
        memory = {x: clock.memory(work) for x, work in works.items()}
        seconds = clock.compare(works) if works else {}
        found[name] = [
            {name: x, "seconds": seconds[str(x)], "images_per_second": curves["batch"] / seconds[str(x)]}
            | {"memory_gb": memory[str(x)], "tflop_per_image": sampling_flops(of_size, by) / 1e12}
            for x, of_size, by in settings
        ]
    return found


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


def time_generation(
    generation: Generation, tokenizer: Tokenizer, tflop_per_image: float, clock: Clock
) -> dict[str, Any]:
    """Images from classes: sampling, then decoding."""
    batch = len(generation.class_ids)
    seconds = clock.time(lambda: tokenizer.decode(generation()))
    return {
        "images_per_second": batch / seconds,
        "batch": batch,
        "tflop_per_image": tflop_per_image,
        "utilization": clock.utilization(1e12 * batch * tflop_per_image, seconds),
    }


def time_training(module: MaskedTokenModule, batch_size: int, clock: Clock) -> dict[str, Any]:
    """A training step: see `TrainingSteps`."""
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
    curves: Mapping[str, Any],
    optimizations: bool,
    clock: Clock,
) -> dict[str, Any]:
    """All kinds of work in the precision of the clock; leaves its arguments alone."""
    device, dtype, sizes = clock.device, clock.dtype, module.net.sizes
    tell(f"{dtype}: sampling, batches {batch_sizes}, and curves")
    net = deepcopy(module.net).to(device, dtype).eval()
    found: dict[str, Any] = {"sampling": time_sampling(net, sampler(), batch_sizes, clock)}
    peak, batch = clock.peak, found["sampling"]["by_batch"][-1]["batch"]  # the largest
    token_ids = torch.randint(sizes["codebook_size"], (batch, sizes["num_tokens"]), device=device)
    found["curves"] = time_curves(net, sampler, curves, clock)
    tell(f"{dtype}: tokenizer")
    coder = deepcopy(tokenizer).to(device, dtype)
    found["decode"] = time_tokenizer(coder.decode, token_ids, clock)
    found["encode"] = time_tokenizer(coder.encode, coder.decode(token_ids), clock)
    flops = found["sampling"]["tflop_per_image"] + found["decode"]["tflop_per_image"]
    found["generation"] = time_generation(Generation(net, sampler(), batch, device), coder, flops, clock)
    del net, coder
    without = [
        lambda: sampling_variants(module.net, sampler, curves["batch"], clock),
        lambda: decoding_variants(tokenizer, token_ids[: curves["batch"]], clock),
    ]
    if train_batch is not None:
        tell(f"{dtype}: training, batch {train_batch}")
        found["train"] = time_training(deepcopy(module), train_batch, clock)
        without.append(lambda: training_variants(deepcopy(module), train_batch, clock))
    tell(f"{dtype}: what each optimisation gives")
    found["optimizations"] = leave_one_out(without if optimizations else [], clock)
    return {"peak_tflops": peak / 1e12, **found}


def check_options(
    precisions: list[str], batch_sizes: list[int], train_batch: int | None, curves_batch: int, seconds: float
) -> None:
    """Raises InputError for an unknown precision, or a size below 1."""
    if not precisions or set(precisions) - set(DTYPES):
        raise InputError(f"precisions={precisions}: expected some of {', '.join(DTYPES)}.")
    numbers = [curves_batch, *batch_sizes, *([] if train_batch is None else [train_batch])]
    if not batch_sizes or min(numbers) < 1 or seconds <= 0:
        given = f"batch_sizes={batch_sizes}, curves.batch={curves_batch}, train_batch={train_batch}"
        raise InputError(f"{given}, seconds={seconds}: expected all above 0.")


def benchmark(
    module: MaskedTokenModule,
    sampler: Callable[..., Sampler],
    tokenizer: Tokenizer,
    precisions: list[str],
    batch_sizes: list[int],
    train_batch: int | None,
    curves: dict[str, Any],
    optimizations: bool,
    seconds: float,
    fabric: Fabric,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Measures sampling, decoding, encoding and training with random weights, in each precision.

    Sampling and tokenizer have weights of that precision; training in less than float32 is by autocast.

    Args:
        module, sampler, tokenizer: of the experiment; the sampler with options to change.
        precisions: of `DTYPES`.
        batch_sizes: of sampling; 1 joins them, and the largest is that of the tokenizer.
        train_batch: samples of a training step; None for no training.
        curves: over `num_steps`, and over `resolution` in multiples of the experiment's, or None; at a `batch`, which
            is also that of what each optimisation gives.
        optimizations: whether that is measured.
        seconds: for which each work is repeated.
        fabric: one device.
        output: folder of `benchmark.png`, and `benchmark.json`, written after each precision.
        settings: the whole configuration.

    Raises:
        InputError: for an unknown precision, or a size below 1.
    """
    check_options(precisions, batch_sizes, train_batch, curves["batch"], seconds)
    by_precision: dict[str, dict[str, Any]] = {}
    for name in precisions:
        clock = Clock(fabric.device, DTYPES[name], seconds)
        by_precision[name] = measure(module, sampler, tokenizer, batch_sizes, train_batch, curves, optimizations, clock)
        write_atomically(Path(output) / "benchmark.json", json.dumps(by_precision, indent=1).encode())  # so far
    tell("the stream of shards")
    side = math.isqrt(module.net.num_tokens)
    data = {"samples_per_second": stream_rate(side, train_batch or max(batch_sizes), seconds)}
    steps, path = sampling_steps(module.net, sampler()), Path(output) / "benchmark.png"
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
        **provenance(fabric.device, 1),
    }


def print_tables(by_precision: Mapping[str, Mapping[str, Any]], data: float) -> None:
    """A row for each precision and kind of work, and for the data in samples/s; and one for each optimisation."""
    table = Table("", "precision", "per second", "TFLOP an image", "share of the peak", "")
    for precision, found in by_precision.items():
        for kind in [kind for kind in ("sampling", "decode", "generation", "encode", "train") if kind in found]:
            row = found[kind]
            rate = row.get("images_per_second", row.get("samples_per_second"))
            more = {"sampling": "latency_s", "train": "step_s"}.get(kind)
            flops = f"{row['tflop_per_image']:.3f}" if "tflop_per_image" in row else ""
            rest = f"{more.removesuffix('_s')} {1e3 * row[more]:.1f} ms" if more else ""
            table.add_row(kind, precision, f"{rate:,.2f}", flops, f"{row['utilization']:.1%}", rest)
        table.add_row("matrix product", precision, "", "", f"{found['peak_tflops']:.3f} TFLOP/s", "")
    table.add_row("data, one worker", "", f"{data:,.0f}", "", "", "")
    gains = Table("optimisation", "of", "precision", "without it, the time is")
    for precision, found in by_precision.items():
        for row in found["optimizations"]:
            gains.add_row(row["optimization"], row["kind"], precision, f"{row['ratio']:.2f}x")
    console = Console(width=max(Console().width, 100))
    console.print(table, *([gains] if gains.row_count else []))


XLABELS = {"batch": "batch", "num_steps": "steps", "resolution": "resolution, times the experiment's"}


def plot(by_precision: Mapping[str, Mapping[str, Any]], steps: Sequence[Mapping[str, float]], path: Path) -> None:
    """Seconds and memory over batch, steps and resolution, beside what is linear; and what each step computes."""
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    rows = figure.subplots(2, 4)
    for name, found in by_precision.items():
        curves = {"batch": found["sampling"]["by_batch"], **found["curves"]}
        for column, (x, points) in enumerate(curves.items()):
            if not points:
                continue
            places = [point[x] for point in points]
            size = [x**2 for x in places] if x == "resolution" else places  # its cost is by tokens
            speed, memory = rows[0][column], rows[1][column]
            (line,) = speed.plot(places, [point["seconds"] for point in points], "o-", label=name)
            linear = [points[0]["seconds"] * value / size[0] for value in size]
            speed.plot(places, linear, ":", color=line.get_color(), lw=1, label="linear" if not column else None)
            memory.plot(places, [point["memory_gb"] or float("nan") for point in points], "o-")
            for axes in (speed, memory):
                axes.set_xscale("log", base=2)
                axes.set_xticks(places, [f"{place:g}" for place in places])
                axes.minorticks_off()
                axes.grid(alpha=0.3)
            speed.set(yscale="log", title=f"Sampling over {x.replace('num_', '')}", ylabel="seconds")
            memory.set(xlabel=XLABELS[x], ylabel="memory (GB)")
    rows[0][0].legend(fontsize=8)
    tokens, cost = rows[0][3], rows[1][3]
    bottom = [0.0] * len(steps)
    for name in ("encoded", "reused", "decoded"):
        heights = [row[name] for row in steps]
        tokens.bar([row["step"] for row in steps], heights, bottom=bottom, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    tokens.set(ylabel="tokens", title="What a step computes")
    tokens.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    cost.plot([row["step"] for row in steps], [row["gflop"] for row in steps], "ko-")
    cost.set(xlabel="step", ylabel="GFLOP per image")
    for axes in rows[1]:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    figure.savefig(path, dpi=90)
