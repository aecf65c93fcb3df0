"""Ten recorded training steps, which a change that should not alter results leaves as they are."""

import csv

import pytest

# python run.py experiment=debug trainer.max_steps=10 trainer.val_check_interval=10, column train/loss
RECORDED = [
    2.7773237228393555,
    2.782858371734619,
    2.7755682468414307,
    2.7722456455230713,
    2.7595038414001465,
    2.7509124279022217,
    2.7480483055114746,
    2.745230197906494,
    2.7379376888275146,
    2.740967035293579,
]


def test_ten_steps(command, tmp_path):
    no_scores = [
        "callbacks.generation_metrics=null",
        "callbacks.checkpoint.monitor=val/loss",
        "metrics.evaluation=null",
    ]
    options = ["experiment=debug", "trainer.max_steps=10", "trainer.val_check_interval=10", *no_scores]
    assert command(*options, f"output={tmp_path}").status == 0
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses == pytest.approx(RECORDED, rel=1e-5)
