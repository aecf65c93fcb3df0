"""The benchmark counts what torch counts, and measures what it says."""

import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from enat import flops
from enat.flops import sampling_flops, sampling_steps
from enat.sampler import Sampler
from enat.schedules import constant, cosine, falling, rising
from enat.variants import NAT
from experiments.benchmark import time_sampling
from experiments.benchmarking import workload
from experiments.benchmarking.workload import Clock, TrainingSteps, at_resolution


@pytest.mark.parametrize(("guidance", "schedule"), [(0.0, rising), (2.0, rising), (2.0, constant)])
@pytest.mark.parametrize(("num_steps", "share"), [(1, 1.0), (4, 1.0), (40, 1.0), (6, 0.5), (6, 0.0)])
def test_operations_of_sampling(small_net, guidance, schedule, num_steps, share):
    sampler = Sampler(num_steps, guidance, 1.0, 1.0, cosine, schedule, falling, falling, share)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler(small_net, torch.tensor([0, 1, 2]))
    assert counter.get_total_flops() == 3 * sampling_flops(small_net, sampler)
    rows = sampling_steps(small_net, sampler)
    assert rows[-1]["encoded"] + rows[-1]["reused"] + rows[-1]["decoded"] == small_net.num_tokens
    assert all(row["reused"] == 0 for row in rows) or share


def test_clock(monkeypatch):
    """Medians of several calls in turns, without the first, over what a matrix product reaches meanwhile."""
    now, of_a = [0.0], iter([9.0, 2.0, 7.0, 3.0])
    calls = []

    def spend(name, seconds):
        calls.append(name)
        now[0] += seconds

    monkeypatch.setattr(workload, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(workload, "product_speeds", lambda *_: [1e9, 4e9, 9e9])
    clock = Clock(torch.device("cpu"), torch.float32, 3.0)
    works = {"a": lambda: spend("a", next(of_a)), "b": lambda: spend("b", 1.0)}
    assert clock.compare(works) == {"a": 3.0, "b": 1.0}
    assert "".join(calls) == "abababab"
    assert clock.utilization(6e9, 2.0) == 0.75


def test_product_speeds(monkeypatch):
    """Two operations a multiply-add; here each product takes a second."""
    monkeypatch.setattr(flops, "time", SimpleNamespace(perf_counter=count().__next__))
    assert flops.product_speeds(torch.device("cpu"), torch.float32, size=64) == [2 * 64**3] * 4


def test_a_batch_that_does_not_fit_ends_the_row(monkeypatch, small_net):
    def out_of_memory(self, work):
        if len(work.class_ids) > 2:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(Clock, "time", out_of_memory)
    sampler = Sampler(4, 2.0, 1.0, 1.0, cosine, rising, falling, falling)
    clock = Clock(torch.device("cpu"), torch.float32, 0.1)
    results = time_sampling(small_net, sampler, [2, 4, 8], clock)
    assert [row["batch"] for row in results["by_batch"]] == [1, 2]


def test_fp16_training_scales_its_loss(compose_config):
    """Gradients that only the scale makes infinite in 16 bits skip their step, and halve it."""
    module = instantiate(compose_config("experiment=debug").module)
    cross_entropy = module.loss
    module.loss = lambda logits, targets: 1e5 * cross_entropy(logits, targets)
    before = module.net.head_bias.detach().clone()
    TrainingSteps(module, 4, Clock(torch.device("cpu"), torch.bfloat16, 0.1, with_peak=False))()
    assert not torch.equal(module.net.head_bias, before)
    before = module.net.head_bias.detach().clone()
    steps = TrainingSteps(module, 4, Clock(torch.device("cpu"), torch.float16, 0.1, with_peak=False))
    steps()
    assert steps.scaler.get_scale() == 2.0 ** (16 - len(steps.steps))
    assert torch.equal(module.net.head_bias, before)


@pytest.mark.parametrize("option", ["variant=key_values", "variant=separate", "masking@module.masking=per_sample"])
def test_other_networks(command, tmp_path, option):
    sizes = ["batch_sizes=[1]", "precisions=[float32]", "seconds=0.01", "train_batch=4", "curves.num_steps=[2]"]
    results = command("experiment=debug", "task=benchmark", *sizes, option, f"output={tmp_path}").results
    (once, _), (same,) = results["curves"]["resolution"], results["curves"]["num_steps"]
    assert once["tflop_per_image"] == pytest.approx(results["sampling"]["tflop_per_image_with_attention"])
    assert same["tflop_per_image"] < once["tflop_per_image"]


def test_a_network_at_another_resolution(make_net):
    net = make_net(NAT, interactions=["visible_to_masked"])
    other = at_resolution(net, 2)
    assert (other.num_tokens, net.num_tokens, other.interactions) == (64, 16, net.interactions)
    assert (other.position_embedding.weight.shape[0], net.position_embedding.weight.shape[0]) == (64, 16)
    assert other.encoder is net.encoder
    assert other.sizes == {**net.sizes, "num_tokens": 64}


@pytest.mark.slow
def test_task(command, tmp_path):
    options = ["batch_sizes=[1,3]", "precisions=[float32]", "seconds=0.01", "train_batch=4", f"output={tmp_path}"]
    options += ["curves.num_steps=[2,4]"]
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
    assert results["data"]["samples_per_second"] > 0  # no test looks at the speed
    sampling = results["sampling"]
    assert 0.5 < sampling["tflop_per_image"] / sampling["tflop_per_image_with_attention"] <= 1
    curves = results["curves"]
    assert [row["num_steps"] for row in curves["num_steps"]] == [2, 4]
    # Four times the tokens are more than four times the operations, for attention's sake.
    first, second = (row["tflop_per_image"] for row in curves["resolution"])
    assert 4 < second / first < 8
    with Image.open(results["plot"]) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 50
    wrong = command("experiment=debug", "task=benchmark", "precisions=[float8]", f"output={tmp_path}/w")
    assert (wrong.status, "precisions[0]=float8: expected" in wrong.err) == (1, True)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["task=benchmark", "+preset=autonat"], "curves.num_steps=[4, 8, 16, 32]: mask_schedule="),
        (["task=benchmark", "order@sampler.order=entropy_bound"], "operations can't be counted ahead"),
        (["task=latency", "order@sampler.order=entropy_bound"], "operations can't be counted ahead"),
        (["task=latency", "~networks.enat_b", "networks.enat_l.num_tokens=64"], "the tokenizer has 1024 and 256"),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_is(command, monkeypatch, tmp_path, options, sentence):
    monkeypatch.setattr(workload.Clock, "compare", lambda *_: pytest.fail("measured for nothing"))
    for name in ("enat_s", "enat_l", "enat_b") if "task=latency" in options else ():
        if f"~networks.{name}" not in options:
            options = [*options, f"networks.{name}.width=32", f"networks.{name}.num_heads=4"]
    outcome = command("experiment=debug", *options, f"output={tmp_path}/x")
    assert (outcome.status, sentence in outcome.err) == (1, True)


def test_the_clock_waits_for_gpus_of_apple(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    clock = Clock(torch.device("mps"), torch.float32, 0.0, with_peak=False)
    clock.time(lambda: None)
    assert waited == [torch.device("mps")] * 4


@pytest.mark.slow
def test_latency(command, tmp_path):
    """A row for each network and number of steps, with the decoder; a network that does not fit it is refused."""
    options = ["task=latency", "~networks.enat_b", "num_steps=[1,2]", "seconds=0.01", f"output={tmp_path}"]
    options += ["decoder.channels=32", "decoder.multipliers=[1,1,1,1,1]", "decoder.num_blocks=1"]
    for name in ("enat_s", "enat_l"):
        options += [f"networks.{name}.width=32", f"networks.{name}.num_heads=4", f"networks.{name}.encoder_depth=1"]
    outcome = command(*options, "batch_size=2")
    rows = outcome.results["latency"]
    assert [(row["network"], row["num_steps"]) for row in rows] == [
        ("enat_s", 1), ("enat_s", 2), ("enat_l", 1), ("enat_l", 2),
    ]  # fmt: skip
    assert all(row["images_per_second"] == pytest.approx(2 / row["seconds"]) for row in rows)
    assert "Seconds for 2 images, with the decoder, in float32, by the number of steps:" in outcome.out
    with Image.open(outcome.results["plot"]) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 30
    refused = command(*options, "networks.enat_l.num_tokens=64", f"output={tmp_path}/w")
    assert "module.net: codebook_size=1024, num_tokens=64; the tokenizer has 1024 and 256." in refused.err
