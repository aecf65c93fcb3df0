"""Loggers write the scalars of a run."""

import csv
import json

import pytest
from wandb.proto import wandb_internal_pb2


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


def history(path):
    """The scalars of an offline run: a log of 32 kB blocks, as LevelDB writes them, of protocol buffers."""
    content, place, record, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            parsed = wandb_internal_pb2.Record.FromString(record)
            if parsed.history.item:
                items = {item.key or item.nested_key[0]: item.value_json for item in parsed.history.item}
                rows.append({name: json.loads(value) for name, value in items.items()})
            record = b""
    return rows


def test_wandb_offline_without_an_account(command, tmp_path, monkeypatch):
    """Killed after a checkpoint and started again: one run, each series once, steps aligned."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    run = ["experiment=debug", "logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}"]
    run += ["callbacks.checkpoint.every_n_steps=1"]
    assert command(*run, "trainer.max_steps=3").status == 0
    (tmp_path / "checkpoints" / "step_0000003.ckpt").unlink()
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    outcome = command(*run)
    assert "step 2; resume=false" in outcome.out
    records = sorted(tmp_path.rglob("*.wandb"), key=lambda path: path.stat().st_mtime)
    assert len(records) == 2
    assert len({path.name for path in records}) == 1  # the run's id
    rows = [row for path in records for row in history(path)]
    series = {}
    for row in rows:
        for name, value in row.items():
            series.setdefault(name, []).append((row.get("step"), value))
    assert [step for step, _ in series["train/loss"]] == [1, 2, 3, 4]
    assert [step for step, _ in series["val/fid"]] == [2, 4]
    for name in ("train/accuracy", "train/grad_norm", "train/learning_rate", "train/skipped_steps"):
        assert [step for step, _ in series[name]] == [1, 2, 3, 4], name
    assert series["val/fid"][-1][1] == pytest.approx(outcome.results["fid"], rel=1e-5)
    content = b"".join(path.read_bytes() for path in records)
    assert b"reuse_prob" in content  # the configuration
    assert len(list(tmp_path.rglob("media/images/samples*.png"))) == 4


def test_tensorboard_has_the_same_scalars(command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = command("experiment=debug", "logger=tensorboard", f"output={tmp_path}").results
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Scalars("val/fid")[-1].value == pytest.approx(results["fid"], rel=1e-5)
