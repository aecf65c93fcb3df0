"""Loggers write the scalars of a run."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from callbacks.loggers import StepWandbLogger
from experiments.dashboard import layout
from experiments.reporting.figures import PANELS
from experiments.reporting.runs import read_scalars
from experiments.runtime.provenance import commit

ROOT = Path(__file__).parents[2]


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


def records_of(path):
    """The records of an offline run: a log of 32 kB blocks, as LevelDB writes them, of protocol buffers."""
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def history(path):
    """The scalars of an offline run, a row for each time that they were logged."""
    rows = []
    for record in records_of(path):
        items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        rows += [{name: json.loads(value) for name, value in items.items()}] if items else []
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
    for name in (name for section in PANELS.values() for panel in section.values() for name in panel):
        steps = [1, 2, 3, 4] if name.startswith("train/") else [2, 4]
        assert [step for step, _ in series[name]] == steps, name
    assert all(0 <= value < 1 for name in ("data_wait", "utilization") for _, value in series[f"train/{name}"])
    assert all(value > 0.1 for _, value in series["train/memory_gb"] + series["train/samples_per_second"])
    assert series["val/fid"][-1][1] == pytest.approx(outcome.results["fid"], rel=1e-5)
    content = b"".join(path.read_bytes() for path in records)
    assert b"reuse_prob" in content  # the configuration
    assert commit().encode() in content
    run = next(record.run for record in records_of(records[0]) if record.run.run_id)
    assert (run.run_group, run.job_type, run.display_name) == ("", "train", "debug")
    for picture in ("samples", "reveal"):  # of two validations
        assert len(list(tmp_path.rglob(f"media/images/{picture}*.png"))) == 2


def test_tensorboard_has_the_same_scalars(command, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = command("experiment=debug", "logger=tensorboard", f"output={tmp_path}").results
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert events.Scalars("val/fid")[-1].value == pytest.approx(results["fid"], rel=1e-5)


def test_a_sweep_is_a_group(command, tmp_path):
    """Each run of a multirun is one of the group, with a name of its own."""
    options = ["logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=1", "trainer.val_check_interval=1"]
    options += ["metrics.evaluation=null", "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss"]
    assert command("-m", "experiment=debug", "seed=0,1", *options, f"output={tmp_path}/runs").status == 0
    runs = [
        next(record.run for record in records_of(path) if record.run.run_id)
        for path in sorted(tmp_path.rglob("*.wandb"))
    ]
    assert {run.run_group for run in runs} == {"runs-sweep"}
    assert {run.job_type for run in runs} == {"sweep"}
    assert {run.display_name for run in runs} == {"debug-0", "debug-1"}


@pytest.mark.slow
def test_report_and_dashboard_have_the_same_panels(command, tmp_path):
    run = ["experiment=debug", f"output={tmp_path}/a", "callbacks.checkpoint.every_n_steps=1"]
    command(*run, "trainer.max_steps=3")
    for path in (tmp_path / "a" / "checkpoints").iterdir():
        if "2" not in path.name:
            path.unlink()
    command(*run)  # from step 2: the third step is logged twice
    scalars = read_scalars(tmp_path / "a")
    assert list(scalars["train/loss"].dropna().index) == [1, 2, 3, 4]
    assert list(scalars["val/fid"].dropna().index) == [2, 4]
    results = command("task=report", f"runs={tmp_path}").results
    assert results["runs"] == [f"{tmp_path}/a"]
    with Image.open(results["panels"]) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 50
    shown = str(layout("someone", "enat", "ENAT")._to_model())
    assert all(name in shown for section in PANELS.values() for panel in section.values() for name in panel)
    nothing = command("task=report", f"runs={tmp_path}/a/samples", f"output={tmp_path}/none")
    assert (nothing.status, "there is no run in it" in nothing.err) == (1, True)


def test_the_id_of_a_run_is_its_folders(tmp_path):
    """Drawn once: a moved folder goes on with its run, and a new folder of the same name is a new run."""
    options = {"project": "enat", "name": "any", "offline": True}
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "last.ckpt").touch()
    first = StepWandbLogger(save_dir=str(tmp_path / "a"), **options).version
    assert StepWandbLogger(save_dir=str(tmp_path / "a"), **options).version == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert StepWandbLogger(save_dir=str(tmp_path / "b"), **options).version == first
    assert StepWandbLogger(save_dir=str(tmp_path / "a"), **options).version != first


def test_a_copy_of_a_folder_is_a_run_of_its_own(tmp_path, capsys):
    options = {"project": "enat", "name": "any", "offline": True}
    (tmp_path / "a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a" / "checkpoints" / "last.ckpt").touch()
    first = StepWandbLogger(save_dir=str(tmp_path / "a"), **options).version
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copied = StepWandbLogger(save_dir=str(tmp_path / "b"), **options).version
    assert (
        f"{tmp_path}/b is a copy of {tmp_path}/a, so that it becomes a run of its own on W&B."
        in capsys.readouterr().out
    )
    assert copied != first
    for name, identity in (("a", first), ("b", copied)):
        assert StepWandbLogger(save_dir=str(tmp_path / name), **options).version == identity


@pytest.mark.parametrize("choice", ["csv", "wandb", "tensorboard", "[wandb,tensorboard]"])
def test_every_choice_keeps_the_csv(compose_config, choice):
    """task=report reads it."""
    loggers = compose_config(f"logger={choice}").logger
    assert loggers.csv._target_ == "lightning.pytorch.loggers.CSVLogger"
    assert set(loggers) == {"csv", *choice.strip("[]").split(",")}


def test_the_terminal(command, tmp_path):
    """Sizes at the start; then lines with loss, speed and time left."""
    options = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4", f"output={tmp_path}"]
    err = command("experiment=debug", *options, "callbacks.progress.seconds_between_lines=0").err
    assert "82,066" in err
    assert "1 x CPU, precision 32-true" in err
    assert "16 = 1 (devices) x 2 (accumulated) x 8" in err
    assert re.search(r"step 2 of 4: loss \d\.\d+, [\d.]+ steps/s, 0:00:\d\d left", err)
