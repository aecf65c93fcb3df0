"""Runs that go on in other circumstances: copied folders, other accumulation, other disks, two starts in one folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from enat.checkpoints.weights import read_file
from enat.errors import InputError
from experiments.runtime import lock as locks

DEBUG = "experiment=debug"
NO_SCORES = ["metrics=none", "callbacks.sample_grid=null"]


@pytest.mark.slow
def test_a_copied_folder_goes_on_from_the_latest_step(command, tmp_path):
    """A copy has other file times; here the oldest checkpoint has the newest one."""
    run = [DEBUG, *NO_SCORES, "callbacks.checkpoint.keep=3"]
    command(*run, f"output={tmp_path}/a", "trainer.max_steps=4")
    command(*run, f"output={tmp_path}/a", "trainer.max_steps=10")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for number, path in enumerate(sorted((tmp_path / "b" / "checkpoints").glob("*.ckpt"), reverse=True)):
        os.utime(path, (number, number))
    outcome = command(*run, f"output={tmp_path}/b", "trainer.max_steps=12")
    assert f"Going on from {tmp_path}/b/checkpoints/step_0000010.ckpt, step 10" in outcome.out


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4)])
def test_another_number_of_accumulated_batches_changes_no_step(command, tmp_path, before, after):
    run = [DEBUG, *NO_SCORES, "module.mask_groups=4", "trainer.val_check_interval=20", "callbacks.throughput=null"]

    def train(folder, accumulated, steps):
        options = [f"trainer.accumulate_grad_batches={accumulated}", f"trainer.max_steps={steps}"]
        assert command(*run, *options, f"output={tmp_path}/{folder}").status == 0

    train("whole", before, 9)
    train("parts", before, 5)
    train("parts", after, 9)
    losses = [
        pd.concat([pd.read_csv(path) for path in sorted((tmp_path / folder).glob("metrics/*/metrics.csv"))])
        .dropna(subset="train/loss")
        .set_index("step")["train/loss"]
        for folder in ("whole", "parts")
    ]
    assert list(losses[1].index) == list(range(1, 10))
    assert losses[1].to_list() == pytest.approx(losses[0].to_list(), rel=1e-5)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true: weights and their average would be rounded"),
        ("trainer.precision=16-true", "trainer.precision=16-true: weights and their average would be rounded"),
        ("trainer.max_steps=-1", "trainer.max_steps=-1: expected at least 1, for the data have no end."),
        ("+trainer.limit_train_batches=5", "trainer.limit_train_batches=5: the data have no epochs; expected"),
        ("+trainer.max_epochs=5", "trainer.max_epochs=5: the data have no epochs; expected"),
        (
            "~trainer.max_steps",
            "trainer.max_steps: it is missing, and Lightning's default is wrong here; expected no",
        ),
        ("~trainer.val_check_interval", "trainer.val_check_interval: it is missing, and Lightning's default is wrong"),
        ("~trainer.use_distributed_sampler", "trainer.use_distributed_sampler: it is missing, and Lightning's default"),
        ("trainer.use_distributed_sampler=true", "the data divide themselves already; expected false."),
        ("+trainer.check_val_every_n_epoch=2", "trainer.check_val_every_n_epoch=2: the data have no epochs, so that"),
        ("+trainer.barebones=true", "are not possible; expected callbacks.checkpoint=null to save nothing before"),
        ("+trainer.enable_checkpointing=false", "expected callbacks.checkpoint=null to save nothing before"),
        ("+trainer.overfit_batches=5", "trainer.overfit_batches=5: the data have no epochs; expected"),
    ],
)
def test_options_of_the_trainer_that_would_train_wrongly(command, tmp_path, option, sentence):
    refused = command(DEBUG, option, f"output={tmp_path}")
    assert refused.status == 1
    assert sentence in refused.err


def test_a_profiler_reports(command, tmp_path, caplog):
    command(DEBUG, *NO_SCORES, "+trainer.profiler=simple", f"output={tmp_path}")
    assert "run_training_batch" in caplog.text


def test_a_disk_without_links(command, monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert command(DEBUG, *NO_SCORES, f"output={tmp_path}").status == 0
    assert read_file(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_weights_that_are_not_numbers_are_refused(command, tmp_path):
    command(DEBUG, *NO_SCORES, f"output={tmp_path}/a")
    content = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")
    content["callbacks"]["EMA"]["net"]["head.1.weight"] = torch.full((32, 32), torch.nan)
    torch.save(content, tmp_path / "nan.ckpt")
    refused = command("task=sample", f"weights={tmp_path}/nan.ckpt")
    assert "weight head.1.weight holds NaN or infinite values" in refused.err


def test_two_starts_in_one_folder(command, tmp_path):
    """The second is refused while the first is at work; a lock whose process is gone does not count."""
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = int(Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19])
    lock = tmp_path / "in_use.json"
    holder = {"host": socket.gethostname(), "process": sleeper.pid, "job": None, "began": began}
    lock.write_text(json.dumps(holder))
    refused = command(DEBUG, *NO_SCORES, f"output={tmp_path}")
    assert refused.status == 1
    assert f"{tmp_path}: process {sleeper.pid} on {socket.gethostname()} is at work in this folder" in refused.err
    assert not (tmp_path / "checkpoints").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "in_use.json").write_text(json.dumps({**holder, "folder": str(tmp_path)}))
    assert command(DEBUG, *NO_SCORES, f"output={copy}").status == 0  # the process is at work in the other folder
    sleeper.communicate(b"\n")
    assert command(DEBUG, *NO_SCORES, f"output={tmp_path}").status == 0
    assert not lock.exists()
    lock.write_text(json.dumps({**holder, "host": "elsewhere"}))
    refused = command(DEBUG, *NO_SCORES, "trainer.max_steps=6", f"output={tmp_path}")
    assert (
        f"on elsewhere is at work in this folder; expected another output=DIR. If it is gone, delete {lock}"
        in refused.err
    )


GONE = 2**22 + 1  # above the largest number of a process


def holder_of(process: int) -> str:
    """Returns a lock of a process of this machine, as it is in a file."""
    own = {"host": socket.gethostname(), "process": process, "job": None}
    return json.dumps({**own, "began": locks._beginning(process)})


def test_a_lock_is_taken_over_by_one_of_two_starters(monkeypatch, tmp_path):
    """The other one takes the folder after this one has read that the old lock's process is gone."""
    path = tmp_path / "in_use.json"
    path.write_text(holder_of(GONE))
    alive, beginning = holder_of(os.getppid()), locks._beginning

    def other_is_faster(process):
        if process == GONE:
            path.write_text(alive)
        return beginning(process)

    monkeypatch.setattr(locks, "_beginning", other_is_faster)
    with pytest.raises(InputError, match=f"process {os.getppid()} on .* is at work"), locks.lock(tmp_path):
        pass
    assert path.read_text() == alive
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_process_that_takes_over_a_lock(tmp_path, is_alive):
    """While one is at it, no other one removes the old lock; one that was killed meanwhile leaves nothing behind."""
    path, removal = tmp_path / "in_use.json", tmp_path / "in_use.json.removal"
    path.write_text(holder_of(GONE))
    removal.write_text(holder_of(os.getppid() if is_alive else GONE))
    if is_alive:
        with pytest.raises(InputError, match=f"is at work in this folder; .* delete {removal}"), locks.lock(tmp_path):
            pass
        assert path.read_text() == holder_of(GONE)
        return
    with locks.lock(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()
        assert list(tmp_path.iterdir()) == [path]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_lock", [True, False])
def test_a_process_removes_no_lock_but_its_own(monkeypatch, tmp_path, is_lock):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    content = holder_of(os.getppid()) if is_lock else "[1]"
    path = tmp_path / "in_use.json"
    with locks.lock(tmp_path):
        path.write_text(content)
    assert path.read_text() == content


def test_two_starts_where_nothing_says_when_a_process_began(monkeypatch, tmp_path):
    """As on macOS, which has no /proc: a process that is there is at work, and one that is gone is not."""
    monkeypatch.setattr(locks, "_beginning", lambda process: None)
    path = tmp_path / "in_use.json"
    path.write_text(holder_of(os.getppid()))
    with pytest.raises(InputError, match=f"process {os.getppid()} on .* is at work"), locks.lock(tmp_path):
        pass
    path.write_text(holder_of(GONE))
    with locks.lock(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()


@pytest.mark.slow
def test_data_may_move_but_not_change(command, photos, tmp_path):
    """The samples are compared, not where they are or how they are read."""
    small = ["tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.1"]
    command("task=tokenize", *small, f"images={photos}", f"output={tmp_path}/shards")
    command("task=tokenize", *small, f"images={photos}", f"output={tmp_path}/others", "seed=1")
    shutil.copytree(tmp_path / "shards", tmp_path / "moved")
    run = [*NO_SCORES, "module.net.width=32", "trainer.val_check_interval=2", f"output={tmp_path}/run"]
    first = command(f"data.shards={tmp_path}/shards", *run, "trainer.max_steps=2")
    assert first.status == 0, first.err
    moved = [f"data.shards={tmp_path}/moved", "data.num_workers=0", "reader@data.reader=mapped"]
    assert "Going on from" in command(*moved, *run, "trainer.max_steps=4").out
    refused = command(f"data.shards={tmp_path}/others", *run, "trainer.max_steps=6")
    assert refused.status == 1
    assert "the folder holds a run on other samples (data.sha256: " in refused.err
