"""Ten recorded training steps: a change that should not alter results leaves them alone."""

import csv

import pytest

# python run.py experiment=debug trainer.max_steps=10 trainer.val_check_interval=10, column train/loss
RECORDED = [
    2.7814598083496094,
    2.775283098220825,
    2.780296802520752,
    2.765824317932129,
    2.7623045444488525,
    2.755067825317383,
    2.7490909099578857,
    2.744276285171509,
    2.7418322563171387,
    2.7374627590179443,
]


def test_ten_steps(command, tmp_path):
    command("experiment=debug", "trainer.max_steps=10", "trainer.val_check_interval=10", f"output={tmp_path}")
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses == pytest.approx(RECORDED, rel=1e-5)
