"""task=tokenize: equal bytes however it was killed or shared, from images and from the official token cache."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import ImageList, PlainAndFlipped, load_rgb
from data.manifest import Manifest
from data.shards import ShardPacks
from data.sources import ImageSource
from data.tokenization import plan_shards, split_numbers, write_shards
from enat.tokenizers.vqgan import VQGAN
from experiments import tokenize

TINY = VQGAN(codebook_size=64, code_width=32, channels=32, multipliers=[1, 1, 2], num_blocks=1, resolution=32)
OPTIONS = ["task=tokenize", "tokenizer=vqgan_tiny", "shard_size=8", "pack_size=3", "held_out=0.1", "num_workers=0"]
SHARDS = ["held_out-00000.tar", *(f"train-{number:05d}.tar" for number in range(7))]  # of 60 photos


def read_set(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("*.tar"), folder / "manifest.json"]}


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    packs = ShardPacks(folder, Manifest.load(folder), split)
    token_ids, class_ids = zip(*(packs.read(pack) for pack in range(len(packs.sizes))), strict=True)
    return np.concatenate(token_ids), np.concatenate(class_ids)


def test_tokens_are_the_tokenizers(command, photos, tmp_path):
    results = command(*OPTIONS, f"images={photos}", f"output={tmp_path}/a").results
    assert results["samples"] == {"held_out": 6, "train": 54}
    assert results["skipped"] == []
    images = ImageList.find(photos)
    views = np.stack([PlainAndFlipped(32)(load_rgb(photos / file)) for file in images.files])
    pixels = torch.from_numpy(views).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    expected = TINY.encode(pixels).unflatten(0, (-1, 2)).numpy()
    for split in ("held_out", "train"):
        plans = plan_shards(60, held_out=0.1, shard_size=8, seed=0)
        numbers = np.concatenate([plan.numbers for plan in plans if plan.split == split])
        token_ids, class_ids = read_split(tmp_path / "a", split)
        assert np.array_equal(token_ids, expected[numbers])
        assert np.array_equal(class_ids, images.class_ids[numbers])
    assert command(*OPTIONS, f"output={tmp_path}/a", "check=true").results["shards"] == len(SHARDS)


@pytest.mark.slow
def test_killed_five_times_and_restarted(command, killed, photos, tmp_path):
    """Kills at an image, while a shard is written, before a record, before a shard, and before the manifest."""
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/whole")
    folder = tmp_path / "killed"
    moments = [  # a function, the number of its call, and how many shards and temporary files there are at that moment
        ("data.images:load_rgb", 10, 1, 0),
        ("enat.files:os.fsync", 1, 1, 1),
        ("data.tokenization:write_atomically", 3, 3, 1),
        ("data.tokenization:write_shard", 3, 5, 1),
        ("data.tokenization:Manifest.save", 1, 8, 0),
    ]
    finished: dict[str, tuple[int, int]] = {}
    for function, call, num_finished, num_temporary in moments:
        killed(*OPTIONS, f"images={photos}", f"output={folder}", at=function, number=call)
        records = sorted((folder / "work").glob("*.tar.json"))
        assert [record.name for record in records] == [f"{shard}.json" for shard in SHARDS[:num_finished]]
        files = {path.name: path.stat() for path in (folder / shard for shard in SHARDS[:num_finished])}
        identities = {name: (status.st_ino, status.st_mtime_ns) for name, status in files.items()}
        assert identities.items() >= finished.items()  # finished shards were not written again
        finished = identities
        assert len(list(folder.glob("*.partial"))) == num_temporary
        assert not (folder / "manifest.json").exists()
    command(*OPTIONS, f"images={photos}", f"output={folder}")
    assert read_set(folder) == read_set(tmp_path / "whole")


def test_replaced_images_are_encoded_again(command, photos, tmp_path):
    """Of the same size in bytes, so that only the content differs; other shards are left alone."""
    for number in range(20):
        path = tmp_path / "images" / "any" / f"{number:02d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 10, 0, 0)).save(path)
    run = [*OPTIONS, f"images={tmp_path}/images", f"output={tmp_path}/shards"]
    command(*run)
    first = read_set(tmp_path / "shards")
    Image.new("RGB", (40, 40), (0, 255, 255)).save(tmp_path / "images" / "any" / "07.bmp")
    again = command(*run)
    second = read_set(tmp_path / "shards")
    changed = [name for name in first if first[name] != second[name]]
    assert len(changed) == 2  # a shard, and the manifest
    (shard,) = (name for name in changed if name.endswith(".tar"))
    assert f"{shard}: its images have changed, so that they are encoded again." in again.out
    command(*OPTIONS, f"images={tmp_path}/images", f"output={tmp_path}/fresh")
    assert second == read_set(tmp_path / "fresh")


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)


def test_altered_shards_are_written_again(photos, tmp_path, capsys):
    """Of the same size, of another size, or gone; the others are left alone."""
    source = ImageSource(ImageList.find(photos), PlainAndFlipped(32), batch_size=32, num_workers=0)
    options = (source, TINY, tmp_path, 0.1, 8, 3, 0)
    write_shards(*options)
    first = read_set(tmp_path)
    intact = tmp_path / SHARDS[4]
    identity = (intact.stat().st_ino, intact.stat().st_mtime_ns)
    alter(tmp_path / SHARDS[1])
    (tmp_path / SHARDS[2]).write_bytes(first[SHARDS[2]][:-512])
    (tmp_path / SHARDS[3]).unlink()
    counts = []
    write_shards(*options, on_images=counts.append)
    assert read_set(tmp_path) == first
    assert (intact.stat().st_ino, intact.stat().st_mtime_ns) == identity
    assert sum(counts) == 60
    out = capsys.readouterr().out
    for shard in SHARDS[1:3]:
        assert f"{shard}: the shard was altered, so that its images are encoded again." in out
    assert out.count("encoded again") == 2


def test_two_processes_share_the_work(command, monkeypatch, photos, tmp_path):
    """Rank 0 writes every second shard and waits; rank 1 does the rest while it waits."""
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/whole")
    folder = tmp_path / "shared"
    source = ImageSource(ImageList.find(photos), PlainAndFlipped(32), batch_size=32, num_workers=0)
    shards_of_rank_0 = []

    def work_of_rank_1(seconds: float) -> None:
        shards_of_rank_0.append(sorted(path.name for path in folder.glob("*.tar")))
        sizes = {"held_out": 0.1, "shard_size": 8, "pack_size": 3}
        write_shards(source, TINY, folder, **sizes, seed=0, rank=1, world_size=2)

    monkeypatch.setattr(tokenize, "time", SimpleNamespace(sleep=work_of_rank_1))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = command(*OPTIONS, f"images={photos}", f"output={folder}").results
    assert shards_of_rank_0 == [SHARDS[0::2]]
    assert read_set(folder) == read_set(tmp_path / "whole")
    assert results["samples"]["train"] == 54


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


def test_several_shards_without_a_readable_image(command, tmp_path):
    """They are alike to the byte, and the set is complete all the same."""
    folder = tmp_path / "images" / "kind"
    folder.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (40, 40), (number * 50, 0, 0)).save(folder / f"{number}.png")
    for number in (1, 3):
        (folder / f"{number}.png").write_text("no picture")
    options = [*OPTIONS, "shard_size=1", "held_out=0.0", f"output={tmp_path}/out"]
    assert command(*options, f"images={tmp_path}/images").results["samples"]["train"] == 3
    assert command(*options, "check=true").status == 0
    assert len(read_split(tmp_path / "out", "train")[0]) == 3


def test_a_class_without_a_readable_image_is_named(command, photos, tmp_path):
    images = shutil.copytree(photos, tmp_path / "images")
    (images / "broken").mkdir()
    (images / "broken/x.png").write_bytes(b"no image")
    outcome = command(
        "task=tokenize", "tokenizer=vqgan_tiny", f"images={images}", "num_workers=0", f"output={tmp_path}/s"
    )
    assert outcome.status == 0, outcome.err
    assert "The class broken has no image that can be read." in outcome.out


def test_nothing_readable(command, tmp_path):
    (tmp_path / "images" / "kind").mkdir(parents=True)
    (tmp_path / "images" / "kind" / "a.png").write_text("no picture")
    outcome = command(*OPTIONS, f"images={tmp_path}/images", f"output={tmp_path}/out")
    assert outcome.status == 1
    assert "none of the images could be read" in outcome.err


@pytest.mark.parametrize(("split", "held_out", "hint"), [("train", 0.75, "smaller"), ("held_out", 0.25, "larger")])
def test_nothing_readable_of_a_split(command, tmp_path, split, held_out, hint):
    """The shards of the other split alone would train no network, which the user would learn hours later."""
    folder = tmp_path / "images" / "kind"
    folder.mkdir(parents=True)
    files = [folder / f"{number}.png" for number in range(4)]
    for file in files:
        Image.new("RGB", (40, 40)).save(file)
    (broken,) = split_numbers(4, held_out, 0)[split]
    files[broken].write_text("no picture")
    outcome = command(*OPTIONS, f"images={tmp_path}/images", f"held_out={held_out}", f"output={tmp_path}/out")
    assert outcome.status == 1
    kind = split.replace("train", "training").replace("_", "-")
    assert f"the only {kind} image can't be read; {files[broken]}: unreadable" in outcome.err
    assert f"a {hint} held_out" in outcome.err
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.slow
def test_official_cache(command, tmp_path):
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.integers(0, 10, (50, 1)), rng.integers(0, 64, (50, 64))], axis=1)
    np.save(tmp_path / "train.npy", rows)
    options = [*OPTIONS, f"images={tmp_path}/train.npy", "num_classes=10", "held_out=0.0"]
    assert command(*options, f"output={tmp_path}/out").results["samples"]["train"] == 50
    token_ids, class_ids = read_split(tmp_path / "out", "train")
    back = np.concatenate([class_ids[:, None], token_ids[:, 0]], axis=1)
    assert sorted(map(tuple, back.tolist())) == sorted(map(tuple, rows.tolist()))
    assert command(*OPTIONS, f"output={tmp_path}/out", "check=true").status == 0  # though nothing is held out
    np.save(tmp_path / "train.npy", rows[::-1])
    other = command(*options, f"output={tmp_path}/out")
    assert "the folder holds shards made with other settings (images: " in other.err
    refused = command(*options, f"output={tmp_path}/few", "num_classes=9")
    assert refused.status == 1
    assert "expected classes below 9" in refused.err


@pytest.mark.slow
def test_bad_input(command, photos, tmp_path):
    images = f"images={photos}"
    command(*OPTIONS, images, f"output={tmp_path}/a")
    cases = [
        (["shard_size=9", images], "(shard_size: 8 before, 9 now); expected the same settings, or another output=DIR"),
        ([f"images={tmp_path}/none"], "there is no such folder"),
        ([], "images=null: expected images=DIR"),
        (["images=x.npy"], "images=x.npy: can't be read: No such file or directory."),
        (["held_out=1", images], "held_out=1: expected a value less than 1"),
        (["pack_size=0", images], "pack_size=0: expected a value greater than or equal to 1"),
        (["tokenizer.weights=nowhere.ckpt", images], "weights=nowhere.ckpt: there is no such file"),
    ]
    for arguments, sentence in cases:
        outcome = command(*OPTIONS, *arguments, f"output={tmp_path}/a")
        assert outcome.status == 1
        assert sentence in outcome.err


def test_an_attempt_without_shards_stands_in_no_way(command, photos, tmp_path):
    """Without a tokenizer for photos; the right command then finds nothing to refuse."""
    wrong = ["task=tokenize", "num_workers=0", f"images={photos}", f"output={tmp_path}/a"]
    assert "tokenizer=pixels: it makes tokens of grey images" in command(*wrong).err
    assert command(*OPTIONS, f"images={photos}", f"output={tmp_path}/a").status == 0


def test_shards_whose_record_was_not_copied_are_not_replaced(command, photos, tmp_path):
    """The manifest would still be of the first ones if the command were killed, and they would be lost."""
    folder = tmp_path / "a"
    assert command(*OPTIONS, f"images={photos}", f"output={folder}").status == 0
    shutil.rmtree(folder / "work")
    before = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    refused = command(*OPTIONS, f"images={photos}", "seed=1", f"output={folder}")
    assert f"{folder}: the folder holds shards, and {folder}/work/settings.json, the record of" in refused.err
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert (folder / "manifest.json").exists()


def test_a_check_leaves_the_results(command, photos, tmp_path):
    command(*OPTIONS, f"images={photos}", f"output={tmp_path}/a")
    before = (tmp_path / "a" / "results.json").read_text()
    checked = command("task=tokenize", f"output={tmp_path}/a", "check=true")
    assert checked.results["samples"] == {"train": 54, "held_out": 6}
    assert "shards are intact." in checked.out
    assert (tmp_path / "a" / "results.json").read_text() == before


@pytest.mark.slow
def test_photos_train_and_other_shards_are_refused(command, monkeypatch, tmp_path):
    monkeypatch.setattr("data.toy.photos.CROPS", 15)
    options = ["experiment=photos", "trainer.max_steps=1", "trainer.val_check_interval=1"]
    first = command(*options, f"output={tmp_path}/a")
    assert first.status == 0, first.err
    options += ["data=shards", "data.batch_size=16", f"data.shards={tmp_path}/a/shards", "callbacks.sample_grid=null"]
    losses = []
    for reader in ("packs", "mapped"):
        still = ["module.optimizer.lr=0", f"reader@data.reader={reader}", f"output={tmp_path}/{reader}"]
        assert command(*options, *still).status == 0
        with (tmp_path / reader / "metrics" / "version_0" / "metrics.csv").open() as file:
            losses += [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert len(losses) == 2
    assert losses[0] == losses[1]  # the held-out samples are the same, whoever reads them
    other = command(*options, "tokenizer.codebook_size=63", "module.net.codebook_size=63", f"output={tmp_path}/c")
    assert other.status == 1
    assert "made by another tokenizer" in other.err
    classes = command(*options, "module.net.num_classes=5", f"output={tmp_path}/d")
    assert classes.status == 1
    assert "module.net.num_classes=5: the data have 4; expected as many, or 0 to train without classes." in classes.err


def test_pixels_are_no_tokens_of_colours(command, photos, tmp_path):
    outcome = command("task=tokenize", f"images={photos}", f"output={tmp_path}")
    assert outcome.status == 1
    assert "expected tokenizer.weights=FILE, which experiment=tokenizer trains, or tokenizer=vqgan." in outcome.err
    assert "cropped and scaled" not in outcome.out
