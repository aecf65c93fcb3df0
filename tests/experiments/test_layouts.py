"""Training on several devices or with accumulated batches: the same as in one process, up to the order of sums."""

import csv
from pathlib import Path

import pytest

from enat.checkpoints.weights import read_file

STEPS = 12
ONE_PROCESS = (1, 1)
LAYOUTS = [(1, 2), (2, 2)]  # devices, accumulated batches
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true"]
NO_SCORES = ["callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss", "metrics.evaluation=null"]


@pytest.fixture
def train(command, separate_command):
    """Trains the debug experiment on a number of devices and accumulated batches; returns the run's folder."""

    def call(folder: Path, devices: int, accumulated: int, *options: str) -> Path:
        arguments = ["experiment=debug", *NO_SCORES, "callbacks.sample_grid=null", f"output={folder}"]
        arguments += [f"trainer.accumulate_grad_batches={accumulated}", f"trainer.max_steps={STEPS}"]
        arguments += [f"trainer.val_check_interval={STEPS * accumulated}", "trainer.limit_val_batches=1.0"]
        arguments += ["module.optimizer.lr=0.01", "data.class_dropout=0.3", "module.mask_groups=4", *options]
        if devices == 1:
            outcome = command(*arguments)
        else:
            outcome = separate_command(*DDP, *arguments, ranks=devices, environment={"OMP_NUM_THREADS": "1"})
        assert outcome.status == 0, outcome.err
        return folder

    return call


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.mark.slow
def test_layouts_agree(train, tmp_path):
    one = train(tmp_path / "one", *ONE_PROCESS)
    weights = read_file(one / "checkpoints" / "last.ckpt")["state_dict"]
    assert len(set(curve(one, "train/mask_ratio"))) > STEPS / 2
    for layout in LAYOUTS:
        other = train(tmp_path / "x".join(map(str, layout)), *layout)
        for name in ("train/loss", "train/accuracy", "train/mask_ratio", "train/grad_norm", "val/loss"):
            assert curve(other, name) == pytest.approx(curve(one, name), rel=1e-5), (layout, name)
        other_weights = read_file(other / "checkpoints" / "last.ckpt")["state_dict"]
        for name, tensor in weights.items():
            assert (other_weights[name] - tensor).abs().max() < 1e-4, (layout, name)
    ungrouped = train(tmp_path / "ungrouped", *ONE_PROCESS, "module.mask_groups=null")
    assert curve(ungrouped, "train/loss") != pytest.approx(curve(one, "train/loss"), rel=1e-3)


def test_groups_that_can_not_be_shared(command, tmp_path):
    options = ["experiment=debug", f"output={tmp_path}", "module.mask_groups=3"]
    outcome = command(*options, "trainer.accumulate_grad_batches=2")
    assert outcome.status == 1
    assert "module.mask_groups=3: expected a multiple of 2, the batches of a step." in outcome.err
    outcome = command(*options)
    assert outcome.status == 1
    assert "module.mask_groups=3: expected a divisor of data.batch_size" in outcome.err
