"""Loggers write the scalars of a run."""

import csv


def test_csv(command, tmp_path):
    results = command("experiment=debug", f"output={tmp_path}").results
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}
    assert len(values["train/loss"]) == 4
    assert all(
        0 <= x <= 1 for x in values["train/accuracy"] + values["train/mask_ratio"] + values["val/class_accuracy"]
    )
    assert len(values["val/fid"]) == 2
    assert abs(values["val/fid"][-1] - results["fid"]) < 1e-4 * results["fid"]  # the same images


def test_wandb_offline_without_an_account(command, tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    outcome = command("experiment=debug", "logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}")
    assert outcome.status == 0
    (record,) = tmp_path.rglob("*.wandb")
    content = record.read_bytes()
    assert all(name in content for name in (b"val/fid", b"train/loss", b"reuse_prob"))
    assert len(list(tmp_path.rglob("media/images/samples*.png"))) == 4
