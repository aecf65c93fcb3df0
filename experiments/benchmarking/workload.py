"""What a benchmark times, and the clock: times are compared with what a large matrix product reaches meanwhile."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from enat.flops import product_speeds
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.randomness import rng_for
from enat.sampler import Sampler

Work = Callable[[], object]


class Clock:
    """Times work on a device, and what a matrix product reaches there, in turns.

    A machine that is shared with others is slower at times: of both, medians count.

    Args:
        device, dtype: of the work.
        seconds: for which each work is repeated, three times at least.
        with_peak: whether the matrix product is timed too.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float, with_peak: bool = True):
        self.device, self.dtype, self.seconds, self.with_peak = device, dtype, seconds, with_peak
        self.peak = math.nan  # operations per second of the matrix product, since the last work began

    def time(self, work: Work) -> float:
        """Median seconds of a call; the first one does not count."""
        return self.compare({"": work})[""]

    def compare(self, works: Mapping[str, Work]) -> dict[str, float]:
        """Median seconds of several kinds of work by name, called in turns."""
        for work in works.values():
            self._once(work)
        peaks = self._products()
        last = time.perf_counter()
        found: dict[str, list[float]] = {name: [] for name in works}
        while any(len(times) < 3 or sum(times) < self.seconds for times in found.values()):
            for name, work in works.items():
                found[name].append(self._once(work))
                if time.perf_counter() - last > max(self.seconds / 3, 1):
                    peaks += self._products()
                    last = time.perf_counter()
        self.peak = median(peaks + self._products()) if self.with_peak else math.nan
        return {name: median(times) for name, times in found.items()}

    def _products(self) -> list[float]:
        return product_speeds(self.device, self.dtype) if self.with_peak else []

    def _once(self, work: Work) -> float:
        begun = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def utilization(self, flops: float, seconds: float) -> float:
        """Share of the peak that was measured in between."""
        return flops / seconds / self.peak

    def memory(self, work: Work) -> float | None:
        """The most memory in use during a call, weights included, in GB; on a CPU that of the process, if it tells."""
        high_water, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._once(work)
            return torch.cuda.max_memory_allocated(self.device) / 1e9
        if not high_water.exists():  # not Linux
            return None
        high_water.write_text("5")  # resets VmHWM, see proc(5)
        work()
        return next(int(line.split()[1]) * 1024 / 1e9 for line in status.read_text().splitlines() if "VmHWM" in line)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the clock for weights in float32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


class Generation:
    """Sampling with random numbers of its own: `sampler(net, class ids of a batch)`."""

    def __init__(self, net: Any, sampler: Callable[..., Any], batch_size: int, device: torch.device):
        self.net, self.sampler = net, sampler
        self.class_ids = torch.arange(batch_size, device=device) % net.num_classes
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self) -> torch.Tensor:
        ids: torch.Tensor = self.sampler(self.net, self.class_ids, self.generator)
        return ids


def at_resolution(net: ENAT, factor: int) -> ENAT:
    """The network for images whose sides are so many times as long; it shares all weights but those of positions."""
    other = copy(net)
    other._modules, other.sizes = dict(net._modules), {**net.sizes, "num_tokens": factor**2 * net.num_tokens}
    other.num_tokens = other.sizes["num_tokens"]
    positions = net.position_embedding.weight
    other.position_embedding = nn.Embedding(other.num_tokens, net.width).to(positions.device, positions.dtype)
    return other


def sampling_cost(
    net: ENAT, sampler: Sampler, batch_size: int, context: Callable[[], AbstractContextManager[Any]]
) -> dict[str, float]:
    """What an image costs, without decoding: `parameters`, `gflop_per_image`, and `images_per_second` at a batch.

    Operations are counted by torch while one image is sampled, attention included; `context` sets the precision.
    """
    device = net.head_bias.device
    eager = copy(sampler)
    eager.compile = False  # the counter sees no compiled operations
    with context(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Generation(net, eager, 1, device)()
    clock = Clock(device, net.head_bias.dtype, 0.5, with_peak=False)
    with context():
        seconds = clock.time(Generation(net, sampler, batch_size, device))
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "gflop_per_image": counter.get_total_flops() / 1e9,
        "images_per_second": batch_size / seconds,
    }


class TrainingSteps:
    """Steps on random tokens with the masks of training: forward, backward, optimiser and average; fp16's loss scaled.

    Args:
        module: is trained.
        batch_size: images of a step.
        clock: says where, and in which precision.
    """

    steps = range(8)  # of a call; the same masks each time

    def __init__(self, module: MaskedTokenModule, batch_size: int, clock: Clock):
        self.module, self.clock = module.to(clock.device).train(), clock
        self.net: Any = module.net
        self.averaged: Any = deepcopy(module.net).eval().requires_grad_(False)
        self.parameters = list(self.averaged.parameters()), list(self.net.parameters())
        self.optimizer = module.optimizer(self.parameters[1])
        self.average: Callable[..., None] = get_ema_multi_avg_fn(0.9999)
        self.scaler = torch.amp.GradScaler(clock.device.type, enabled=clock.dtype == torch.float16)
        if module.compile_blocks:
            module.__dict__["ema_net"] = self.averaged
            module.compile_networks()
        token_ids = torch.randint(self.net.codebook_size, (batch_size, self.net.num_tokens), device=clock.device)
        self.batch = token_ids, torch.arange(batch_size, device=clock.device) % self.net.num_classes

    def changed(self, **attributes: Any) -> "TrainingSteps":
        """The same work on the same weights, but for some attributes."""
        other = copy(self)
        vars(other).update(attributes)
        return other

    def __call__(self) -> None:
        self.module.flops = 0.0
        self.module.__dict__["ema_net"] = self.averaged
        for step in self.steps:
            rng = rng_for("training", self.module.seed, 0, step, 0)
            with self.clock.autocast():
                loss = self.module.predict_masked(self.net, self.batch, rng)["loss"]
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.average(*self.parameters, step)
