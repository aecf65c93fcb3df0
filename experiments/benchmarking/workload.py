"""What a benchmark times, and the clock, which also times a large matrix product meanwhile, for comparison."""

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

from enat.compilation import compile_blocks
from enat.flops import paper_operations, product_speeds, training_flops
from enat.generation import balanced_classes
from enat.module import MaskedTokenModule
from enat.net import ENAT
from enat.randomness import rng_for
from enat.sampler import Sampler

Work = Callable[[], object]
COST_SECONDS = 0.5  # for which `sampling_cost` repeats its work


class Clock:
    """Times work on a device, and a large matrix product there, in turns.

    A machine that is shared with others is slower at times, so that the medians of both are compared.

    Args:
        device, dtype: of the work.
        seconds: how long each work is repeated, at least three times.
        with_peak: whether the matrix product is timed too.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float, with_peak: bool = True):
        self.device = device
        self.dtype = dtype
        self.seconds = seconds
        self.with_peak = with_peak
        self.peak = math.nan  # operations per second of the matrix product while the last work was timed

    def time(self, work: Work) -> float:
        """Returns the median seconds of a call; the first call does not count."""
        return self.compare({"": work})[""]

    def compare(self, works: Mapping[str, Work]) -> dict[str, float]:
        """Returns the median seconds of several kinds of work by name, called in turns."""
        for work in works.values():
            self._once(work)
        peaks = self._products()
        last = time.perf_counter()
        seconds: dict[str, list[float]] = {name: [] for name in works}
        while any(len(times) < 3 or sum(times) < self.seconds for times in seconds.values()):
            for name, work in works.items():
                seconds[name].append(self._once(work))
                if time.perf_counter() - last > max(self.seconds / 3, 1):
                    peaks += self._products()
                    last = time.perf_counter()
        self.peak = median(peaks + self._products()) if self.with_peak else math.nan
        return {name: median(times) for name, times in seconds.items()}

    def _products(self) -> list[float]:
        return product_speeds(self.device, self.dtype) if self.with_peak else []

    def _once(self, work: Work) -> float:
        begun = time.perf_counter()
        work()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - begun

    def utilization(self, flops: float, seconds: float) -> float:
        """Returns the share of the peak, as it was while the last work was timed."""
        return flops / seconds / self.peak

    def memory(self, work: Work) -> float | None:
        """Returns the highest memory use during a call in GB: of the GPU, or else of the process on Linux."""
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
        """Returns a context in which weights in float32 compute in the precision of the clock."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, self.dtype)


class Generation:
    """Samples a batch of classes each time that it is called, with its own random numbers."""

    def __init__(self, net: Any, sampler: Callable[..., Any], batch_size: int, device: torch.device):
        self.net, self.sampler = net, sampler
        self.class_ids = balanced_classes(net, torch.arange(batch_size, device=device))
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self) -> torch.Tensor:
        ids: torch.Tensor = self.sampler(self.net, self.class_ids, self.generator)
        return ids


def at_resolution(net: ENAT, factor: int) -> ENAT:
    """Copies a network for images whose sides are `factor` times as long; it shares all weights except positions."""
    other = copy(net)
    other._modules = dict(net._modules)  # `copy` shares the dictionary of submodules
    other.num_tokens = factor**2 * net.num_tokens
    positions = net.position_embedding.weight
    other.position_embedding = nn.Embedding(other.num_tokens, net.width).to(positions.device, positions.dtype)
    return other


def sampling_cost(
    net: ENAT, sampler: Sampler, batch_size: int, context: Callable[[], AbstractContextManager[Any]]
) -> dict[str, float | None]:
    """Measures what sampling costs, without decoding the tokens.

    `gflop_per_image` counts two operations for a multiply-add, and what is computed. `paper_gop_per_image` counts, in
    10^9 operations, as the paper does: see `enat.flops.paper_operations`. It is None for an order whose numbers of
    tokens depend on the image, and `gflop_per_image` is of one image then.

    Args:
        net: the network, in evaluation mode.
        sampler: generates its token ids.
        batch_size: images at a time, for the speed.
        context: sets the precision.

    Returns:
        `parameters`, `gflop_per_image`, `paper_gop_per_image` and `images_per_second`.
    """
    device = net.head_bias.device
    eager = copy(sampler)
    eager.compile = False  # torch can't count compiled operations
    with context(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Generation(net, eager, 1, device)()
    clock = Clock(device, net.head_bias.dtype, COST_SECONDS, with_peak=False)
    with context():
        seconds = clock.time(Generation(net, sampler, batch_size, device))
    return {
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "gflop_per_image": counter.get_total_flops() / 1e9,
        "paper_gop_per_image": None if sampler.is_adaptive else paper_operations(net, sampler) / 1e9,
        "images_per_second": batch_size / seconds,
    }


class TrainingSteps:
    """Does training steps on random tokens: masks, forward, backward, optimiser and average; fp16 with a scaled loss.

    Args:
        module: is trained.
        batch_size: images of a step.
        clock: sets the device and the precision.
    """

    steps = range(8)  # of a call; the same masks each time

    def __init__(self, module: MaskedTokenModule, batch_size: int, clock: Clock):
        self.module = module.to(clock.device).train()
        self.clock = clock
        self.net: Any = module.net
        self.averaged: Any = deepcopy(module.net).eval().requires_grad_(False)
        self.parameters = list(self.averaged.parameters()), list(self.net.parameters())
        self.optimizer = module.optimizer(self.parameters[1])
        self.average: Callable[..., None] = get_ema_multi_avg_fn(0.9999)
        self.scaler = torch.amp.GradScaler(clock.device.type, enabled=clock.dtype == torch.float16)
        if module.is_compiled:
            compile_blocks(self.net, self.averaged)
        token_ids = torch.randint(self.net.codebook_size, (batch_size, self.net.num_tokens), device=clock.device)
        self.batch = token_ids, balanced_classes(self.net, torch.arange(batch_size, device=clock.device))

    def changed(self, **attributes: Any) -> "TrainingSteps":
        """Copies the work, on the same weights, with some attributes changed."""
        other = copy(self)
        vars(other).update(attributes)
        return other

    def __call__(self) -> None:
        self.module.__dict__["ema_net"] = self.averaged
        for step in self.steps:
            partition = self.partition(step)
            with self.clock.autocast():
                loss = self.module.group_loss(self.net, self.batch, partition)["loss"]
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
            self.average(*self.parameters, step)

    def partition(self, step: int) -> Any:
        """Draws the masks of a step, as in training."""
        rng = rng_for("training", self.module.seed, 0, step, 0)
        return self.module.masking(rng, len(self.batch[0]), self.net.num_tokens, self.clock.device)

    def flops(self) -> int:
        """Counts the operations of a call, see `enat.flops.training_flops`."""
        batch_size = len(self.batch[0])
        return sum(training_flops(self.module.net, self.partition(step).counts, batch_size) for step in self.steps)
