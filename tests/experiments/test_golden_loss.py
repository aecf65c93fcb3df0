"""Ten recorded training steps: a change that should not alter results leaves them alone."""

import csv

import pytest

# python run.py experiment=debug trainer.max_steps=10 trainer.val_check_interval=10, column train/loss
RECORDED = []


def test_ten_steps(command, tmp_path):
    command("experiment=debug", "trainer.max_steps=10", "trainer.val_check_interval=10", f"output={tmp_path}")
    with (tmp_path / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses == pytest.approx(RECORDED, rel=1e-5)
