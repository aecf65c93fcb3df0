"""Devices and accumulated batches are a matter of speed: any layout is the same training, up to the order of sums."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from enat.checkpoints.weights import read_file

ROOT = Path(__file__).parents[2]
STEPS = 12
LAYOUTS = [(1, 1), (1, 2), (2, 1), (2, 2)]  # devices, accumulated batches


def train(folder: Path, devices: int, accumulated: int, *options: str) -> subprocess.CompletedProcess[str]:
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={devices}", "trainer.precision=32-true"]
    arguments = [sys.executable, "run.py", "experiment=debug", *(ddp if devices > 1 else [])]
    arguments += [f"trainer.accumulate_grad_batches={accumulated}", f"trainer.max_steps={STEPS}", f"output={folder}"]
    arguments += [f"trainer.val_check_interval={STEPS * accumulated}", "trainer.limit_val_batches=1.0"]
    arguments += ["module.optimizer.lr=0.01", "data.class_dropout=0.3", "module.mask_groups=4", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as many in each layout
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics" / "version_0" / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_layouts_agree(tmp_path):
    for layout in LAYOUTS:
        ran = train(tmp_path / "x".join(map(str, layout)), *layout)
        assert ran.returncode == 0, ran.stderr
    one = tmp_path / "1x1"
    expected = read_file(one / "checkpoints" / "last.ckpt")["state_dict"]
    assert len(set(curve(one, "train/mask_ratio"))) > STEPS / 2
    for layout in LAYOUTS[1:]:
        other = tmp_path / "x".join(map(str, layout))
        for name in ("train/loss", "train/accuracy", "train/mask_ratio", "train/grad_norm", "val/loss"):
            assert curve(other, name) == pytest.approx(curve(one, name), rel=1e-5), (layout, name)
        found = read_file(other / "checkpoints" / "last.ckpt")["state_dict"]
        for name, tensor in expected.items():
            assert (found[name] - tensor).abs().max() < 1e-4, (layout, name)
    ungrouped = train(tmp_path / "ungrouped", 1, 1, "module.mask_groups=null")
    assert ungrouped.returncode == 0
    assert curve(tmp_path / "ungrouped", "train/loss") != pytest.approx(curve(one, "train/loss"), rel=1e-3)


def test_groups_that_can_not_be_shared(command, tmp_path):
    options = ["experiment=debug", f"output={tmp_path}", "trainer.accumulate_grad_batches=2"]
    outcome = command(*options, "module.mask_groups=3")
    assert (outcome.status, "module.mask_groups=3: expected a multiple of 1 devices x 2" in outcome.err) == (1, True)
    outcome = command("experiment=debug", f"output={tmp_path}", "module.mask_groups=3")
    assert (outcome.status, "module.mask_groups=3: expected a divisor of data.batch_size" in outcome.err) == (1, True)
