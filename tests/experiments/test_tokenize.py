"""task=tokenize: killed and restarted, shared by processes, from images and from the official cache."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.shards import Manifest, ShardPacks
from data.toy.photos import cut_photos
from enat.tokenizers.vqgan import VQGAN

ROOT = Path(__file__).parent.parent.parent
TINY = VQGAN(codebook_size=64, code_width=32, channels=32, multipliers=[1, 1, 2], num_blocks=1, resolution=32)
OPTIONS = ["task=tokenize", "tokenizer=vqgan_tiny", "shard_size=30", "pack_size=7", "held_out=0.1", "num_workers=0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    cut_photos(folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("*.tar"), folder / "manifest.json"]}


def test_tokens_are_the_tokenizers(command, photos, tmp_path):
    results = command(*OPTIONS, f"images={photos}", f"output={tmp_path}/a").results
    assert results["samples"] == {"held_out": 24, "train": 216}
    assert results["skipped"] == []
    manifest = Manifest.load(tmp_path / "a")
    packs = ShardPacks(tmp_path / "a", manifest, "train")
    token_ids, class_ids = packs.read(3)
    images = TINY.decode(torch.from_numpy(token_ids.astype(np.int64))[:, 0])
    assert images.shape == (len(class_ids), 3, 32, 32)
    from data.images import PlainAndFlipped, load_rgb

    views = [PlainAndFlipped(32)(load_rgb(path)) for path in sorted(photos.rglob("*.jpg"))]
    pixels = torch.from_numpy(np.stack(views)).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    expected = TINY.encode(pixels).unflatten(0, (-1, 2)).numpy()
    rows = {row.tobytes() for row in expected.astype(np.uint16)}
    assert all(row.tobytes() in rows for row in token_ids)
    assert command(*OPTIONS, f"output={tmp_path}/a", "check=true").results["shards"] == results["shards"]


def test_killed_five_times_and_restarted(command, photos, tmp_path):
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/whole")
    rng = random.Random(0)
    arguments = [sys.executable, "run.py", *OPTIONS, f"images={photos}", f"output={tmp_path}/killed"]
    killed = 0
    for wanted in range(1, 6):
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "killed").glob("*.tar"))) < wanted:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 4
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "work").glob("*.tar.json")}
    assert len(finished) >= 4
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/killed")
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())  # not done again
    assert content(tmp_path / "whole") == content(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob("*.partial"))


def test_two_processes_share_the_work(command, photos, tmp_path):
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/whole")
    arguments = [sys.executable, "run.py", *OPTIONS, f"images={photos}", f"output={tmp_path}/shared"]
    processes = [
        subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    assert content(tmp_path / "whole") == content(tmp_path / "shared")
    assert json.loads((tmp_path / "shared" / "results.json").read_text())["samples"]["train"] == 216


def test_unreadable_images_are_named(command, photos, tmp_path):
    folder = tmp_path / "images" / "kind"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (40, 40), (number * 50, 0, 0)).save(folder / f"{number}.png")
    (folder / "3.png").write_text("no picture")
    outcome = command(*OPTIONS, f"images={tmp_path}/images", f"output={tmp_path}/out", "held_out=0.0")
    assert outcome.results["samples"]["train"] == 4
    assert [image["file"] for image in outcome.results["skipped"]] == ["kind/3.png"]
    assert "Skipped" in outcome.out
    assert "3.png: unreadable" in outcome.out


def test_nothing_readable(command, tmp_path):
    (tmp_path / "images" / "kind").mkdir(parents=True)
    (tmp_path / "images" / "kind" / "a.png").write_text("no picture")
    outcome = command(*OPTIONS, f"images={tmp_path}/images", f"output={tmp_path}/out")
    assert outcome.status == 1
    assert "none of the images could be read" in outcome.err


def test_official_cache(command, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 10, (50, 1)), rng.integers(0, 64, (50, 64))], axis=1)
    np.save(tmp_path / "train.npy", rows)
    options = [*OPTIONS, f"images={tmp_path}/train.npy", "num_classes=10", "held_out=0.0"]
    assert command(*options, f"output={tmp_path}/out").results["samples"]["train"] == 50
    packs = ShardPacks(tmp_path / "out", Manifest.load(tmp_path / "out"), "train")
    read = [packs.read(pack) for pack in range(len(packs.sizes))]
    back = np.concatenate([np.concatenate([classes[:, None], tokens[:, 0]], axis=1) for tokens, classes in read])
    assert sorted(map(tuple, back.tolist())) == sorted(map(tuple, rows.tolist()))
    assert command(*OPTIONS, f"output={tmp_path}/out", "check=true").status == 0  # though nothing is held out
    np.save(tmp_path / "train.npy", rows[::-1])
    other = command(*options, f"output={tmp_path}/out")
    assert "holds shards of another source" in other.err
    refused = command(*options, f"output={tmp_path}/few", "num_classes=9")
    assert refused.status == 1
    assert "expected classes below 9" in refused.err


def test_bad_input(command, photos, tmp_path):
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/a")
    cases = {
        ("shard_size=31", f"images={photos}"): "holds shards of another shard_size",
        (f"images={tmp_path}/none",): "there is no such folder",
        (): "images=null: expected images=DIR",
        ("images=x.npy",): "missing, truncated, or no .npy file",
    }
    for arguments, sentence in cases.items():
        outcome = command(*OPTIONS, *arguments, f"output={tmp_path}/a")
        assert outcome.status == 1
        assert sentence in outcome.err
    missing = command(
        "task=tokenize", "tokenizer=vqgan", "tokenizer.weights=nowhere.ckpt", f"images={photos}", f"output={tmp_path}/b"
    )
    assert "weights=nowhere.ckpt: there is no such file" in missing.err


def test_photos_train_and_other_shards_are_refused(command, tmp_path):
    first = command("experiment=photos", f"output={tmp_path}/a", "trainer.max_steps=4", "trainer.val_check_interval=2")
    assert first.status == 0
    shards = f"data.shards={tmp_path}/a/shards"
    options = [
        "experiment=photos",
        "data=shards",
        "data.batch_size=16",
        shards,
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    for number, reader in enumerate(("packs", "mapped")):
        assert command(*options, f"reader@data.reader={reader}", f"output={tmp_path}/{number}").status == 0
    other = command(*options, "tokenizer.codebook_size=63", "module.net.codebook_size=63", f"output={tmp_path}/c")
    assert other.status == 1
    assert "made by another tokenizer" in other.err
    classes = command(*options, "module.net.num_classes=5", f"output={tmp_path}/d")
    assert "module.net.num_classes=5: the shards have 4." in classes.err
