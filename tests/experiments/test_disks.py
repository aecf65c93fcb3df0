"""Disks that are full, read-only or lose files: an error of one sentence, and the same command can go on later."""

import os
import subprocess
from functools import partial

import pytest

from data import module
from data.stream import TokenStream
from enat.checkpoints.weights import read_file
from enat.module import MaskedTokenModule

DEBUG = ["experiment=debug", "callbacks.sample_grid=null", "callbacks.checkpoint.every_n_steps=1"]


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of 3 MB; skips the test where the user has no right to."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def sentence(outcome) -> str:
    assert outcome.status == 1
    assert outcome.err.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in outcome.err
    return outcome.err


@pytest.mark.slow
def test_a_full_disk(command, same_training, small_disk, tmp_path):
    """The disk has room for two checkpoints of 1.3 MB; a third is written before the oldest is removed."""
    command(*DEBUG, f"output={tmp_path}/expected")
    run = [*DEBUG, f"output={small_disk}/run"]
    assert "ckpt: can't be written: No space left on device" in sentence(command(*run))
    kept = sorted(path.name for path in (small_disk / "run" / "checkpoints").iterdir())
    assert kept == ["best.ckpt", "last.ckpt", "step_0000001.ckpt", "step_0000002.ckpt"]
    assert read_file(small_disk / "run" / "checkpoints" / "last.ckpt")["global_step"] == 2
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    outcome = command(*run)
    assert ".ckpt, step 2; resume=false" in outcome.out
    assert same_training(tmp_path / "expected", small_disk / "run")


def test_a_disk_that_becomes_read_only(command, small_disk):
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    run = [*DEBUG, f"output={small_disk}/run"]
    command(*run, "trainer.max_steps=2")
    files = {path: path.read_bytes() for path in (small_disk / "run" / "checkpoints").iterdir()}
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in sentence(command(*run))
    assert {path: path.read_bytes() for path in (small_disk / "run" / "checkpoints").iterdir()} == files


@pytest.mark.parametrize("name", ["", "checkpoints", "samples", "metrics"])
def test_a_link_to_a_folder_that_is_gone(command, tmp_path, name):
    """As after a scratch disk was cleared: told before the training, whose steps would be lost."""
    link = tmp_path / "run" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "gone")
    run = [*DEBUG, "metrics=none", "trainer.max_steps=2", f"output={tmp_path}/run"]
    refused = command(*run)
    assert f"{link}: a link to {tmp_path}/gone, which does not exist" in sentence(refused)
    assert "step" not in refused.out
    (tmp_path / "gone").mkdir()
    assert command(*run).status == 0
    assert link.is_symlink()


def test_a_file_in_the_place_of_checkpoints(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").touch()
    refused = command(*DEBUG, "metrics=none", f"output={tmp_path}/run")
    assert f"{tmp_path}/run/checkpoints: this is no folder" in sentence(refused)
    assert "step" not in refused.out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(command, tmp_path):
    tmp_path.chmod(0o555)
    assert "Permission denied" in sentence(command(*DEBUG, f"output={tmp_path}/run"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_while_training(command, same_training, photos, monkeypatch, tmp_path, workers):
    """All shards vanish at step 3, while later packs are still to be read; once they are back, training goes on."""
    command(
        "task=tokenize", "tokenizer=vqgan_tiny", f"images={photos}", f"output={tmp_path}/shards",
        "held_out=0.1", "shard_size=25", "pack_size=5", "num_workers=0",
    )  # fmt: skip
    shards = sorted((tmp_path / "shards").rglob("*train*.tar"))
    assert len(shards) > 1
    monkeypatch.setattr(module, "TokenStream", partial(TokenStream, pool_bytes=1))
    run = ["experiment=photos", "data=shards", f"data.shards={tmp_path}/shards", "data.batch_size=16"]
    run += [f"data.num_workers={workers}", "trainer.val_check_interval=100", "callbacks.checkpoint.every_n_steps=1"]
    run += ["trainer.max_steps=12", "callbacks.sample_grid=null"]
    command(*run, f"output={tmp_path}/expected")
    step = MaskedTokenModule.training_step

    def lose(self, batch, batch_idx):
        if self.global_step == 3 and shards[0].exists():
            for shard in shards:
                shard.rename(shard.with_suffix(".away"))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(MaskedTokenModule, "training_step", lose)
    error = sentence(command(*run, f"output={tmp_path}/run"))
    assert "can't be read: No such file or directory." in error
    assert str(tmp_path / "shards") in error
    assert len(error.strip().splitlines()[-1]) < 300
    assert read_file(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] >= 3
    monkeypatch.setattr(MaskedTokenModule, "training_step", step)
    for shard in shards:
        shard.with_suffix(".away").rename(shard)
    assert command(*run, f"output={tmp_path}/run").results["steps"] == 12
    assert same_training(tmp_path / "expected", tmp_path / "run")
