"""The benchmark counts what torch counts, and measures what it says."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from enat.masking import constant, cosine, falling, rising
from enat.sampler import Sampler
from experiments.benchmark import Clock, sampling_flops, sampling_steps


@pytest.mark.parametrize(("guidance", "schedule"), [(0.0, rising), (2.0, rising), (2.0, constant)])
@pytest.mark.parametrize("num_steps", [1, 4, 40])
def test_operations_of_sampling(small_net, guidance, schedule, num_steps):
    sampler = Sampler(num_steps, guidance, 1.0, 1.0, cosine, schedule, falling, falling)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler(small_net, torch.tensor([0, 1, 2]))
    assert counter.get_total_flops() == 3 * sampling_flops(small_net, sampler)
    rows = sampling_steps(small_net, sampler)
    assert sum(row["encoded"] for row in rows) + rows[-1]["decoded"] == small_net.num_tokens


def test_clock():
    """Twice the work is twice the time, and a matrix product is its own peak."""
    clock = Clock(torch.device("cpu"), torch.float32, 0.3)
    a = torch.randn(2048, 2048)
    seconds = clock.time(lambda: a @ a)
    assert 0.3 < clock.utilization(2 * 2048**3, seconds) < 1.5
    assert 1.3 < clock.time(lambda: a @ a @ a) / seconds < 3


def test_task(command, tmp_path):
    options = ["batch_sizes=[1,3]", "precisions=[float32]", "seconds=0.01", "train_batch=4", f"output={tmp_path}"]
    results = command("experiment=debug", "task=benchmark", "module.net.num_tokens=64", *options).results
    assert results["parameters"] == 82_066
    assert len(results["steps"]) == 3
    for kind, names in {
        "sampling": ("latency_s", "images_per_second", "tflop_per_image", "utilization"),
        "decode": ("images_per_second",),
        "train": ("step_s", "samples_per_second", "utilization"),
    }.items():
        assert all(results[kind][name] > 0 for name in names), kind
    assert results["sampling"]["images_per_second"] == pytest.approx(
        max(row["batch"] / row["seconds"] for row in results["sampling"]["by_batch"])
    )
    assert json.loads((Path(tmp_path) / "benchmark.json").read_text())["float32"]["peak_tflops"] > 1e-3
    with Image.open(results["plot"]) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 50
    wrong = command("experiment=debug", "task=benchmark", "precisions=[float8]", f"output={tmp_path}/w")
    assert (wrong.status, "precisions=['float8']: expected some of float32" in wrong.err) == (1, True)
