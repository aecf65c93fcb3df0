"""Shards: reproducible bytes, nothing lost, every fault named; the data module that reads them."""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader, default_convert

from data import shards as shards_module
from data.fetch import fetch
from data.shards import Manifest, ShardPacks, check_shards, map_packs, write_shard
from data.stream import StreamPositions, TokenStream
from enat.errors import InputError

L, VIEWS = 6, 2


@pytest.fixture
def folder(tmp_path):
    """103 samples in three shards of packs of ten; the first token is the number of the sample."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (103, VIEWS, L)).astype(np.uint16)
    tokens[:, :, 0] = np.arange(103)[:, None]
    numbers = np.arange(103)
    written = [
        write_shard(tmp_path / f"train-{i:05d}.tar", tokens[rows], numbers[rows] % 4, numbers[rows], 10)
        for i, rows in enumerate(np.split(numbers, [40, 80]))
    ]
    manifest = Manifest("VQGAN", "abc", 32, [2, 3], 200, list("abcd"), ["plain", "flipped"], 10, {"train": written})
    manifest.save(tmp_path)
    return tmp_path


def test_round_trip(folder):
    manifest = Manifest.load(folder)
    check_shards(folder, manifest, deep=True)
    packs = ShardPacks(folder, manifest, "train")
    assert packs.sizes.tolist() == [10] * 10 + [3]
    read = [packs.read(pack) for pack in range(11)]
    assert np.concatenate([tokens for tokens, _ in read])[:, 0, 0].tolist() == list(range(103))
    assert np.concatenate([classes for _, classes in read]).tolist() == [i % 4 for i in range(103)]
    mapped = map_packs(folder, manifest, "train")
    assert np.array_equal(mapped.token_ids, np.concatenate([tokens for tokens, _ in read]))
    assert np.array_equal(map_packs(folder, manifest, "train").class_ids, mapped.class_ids)


def test_bytes_depend_on_the_samples_alone(folder, tmp_path):
    packs = ShardPacks(folder, Manifest.load(folder), "train")
    tokens = np.concatenate([packs.read(pack)[0] for pack in range(4)])
    (tmp_path / "again").mkdir()
    write_shard(tmp_path / "again" / "train-00000.tar", tokens, np.arange(40) % 4, np.arange(40), 10)
    assert (tmp_path / "again" / "train-00000.tar").read_bytes() == (folder / "train-00000.tar").read_bytes()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_once_over_ranks_and_workers(folder, world_size, num_workers):
    seen = []
    for rank in range(world_size):
        packs = ShardPacks(folder, Manifest.load(folder), "train")
        stream = TokenStream(packs, null_class_id=4, class_dropout=0.0, seed=0, pool_bytes=3 * packs.pack_bytes)
        loader = DataLoader(
            stream,
            batch_sampler=StreamPositions(103 // world_size, rank, world_size, 0),
            collate_fn=default_convert,
            num_workers=num_workers,
        )
        # 103 is no multiple of 2: over 103 batches of 51 each rank sees its part of 51 x 2 epochs.
        batches = list(islice(iter(loader), 103 if world_size == 2 else 2))
        seen += [number for tokens, _ in batches for number in tokens[:, 0].tolist()]
    counts = np.bincount(seen, minlength=103)
    assert set(counts.tolist()) == {102 if world_size == 2 else 2}


def damage_missing(folder):
    (folder / "train-00001.tar").unlink()


def damage_truncated_at_a_member(folder):
    path = folder / "train-00001.tar"
    path.write_bytes(path.read_bytes()[: 512 * 12])


def damage_flipped_byte(folder):
    content = bytearray((folder / "train-00001.tar").read_bytes())
    content[3000] ^= 1
    (folder / "train-00001.tar").write_bytes(content)


def damage_foreign_manifest(folder):
    (folder / "manifest.json").write_text(json.dumps({"images": 3}))


def damage_no_manifest(folder):
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_missing, r"train-00001\.tar: the shard is missing"),
        (damage_truncated_at_a_member, r"train-00001\.tar: 6144 bytes; the manifest says"),
        (damage_flipped_byte, r"train-00001\.tar: the shard was altered"),
        (damage_foreign_manifest, r"manifest\.json: this is no manifest"),
        (damage_no_manifest, r"there is no manifest\.json"),
    ],
)
def test_faults_are_named(folder, damage, sentence):
    damage(folder)
    with pytest.raises(InputError, match=sentence):
        check_shards(folder, Manifest.load(folder))


def test_label_outside_the_classes(folder):
    manifest = Manifest.load(folder)
    manifest.class_names = ["a", "b", "c"]
    with pytest.raises(InputError, match="token or class ids out of the range"):
        check_shards(folder, manifest, deep=True)


def test_no_space_left(folder, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(shards_module.os, "fsync", full)
    with pytest.raises(InputError, match=r"new\.tar: can't be written: No space left on device"):
        write_shard(folder / "new.tar", np.zeros((1, 1, 1), np.uint16), np.zeros(1), np.zeros(1), 1)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_urls(folder, tmp_path):
    cache = tmp_path / "cache"
    place = fetch(f"file://{folder}", cache)
    check_shards(place, Manifest.load(place))
    assert place.parent == cache
    assert fetch(str(folder), cache) == folder
    for bad in ("pipe:cat x", "nonsense://x"):
        with pytest.raises(InputError, match="expected a folder, or a URL"):
            fetch(bad, cache)
    damage_flipped_byte(folder)
    shutil.rmtree(cache)
    with pytest.raises(InputError, match=r"train-00001\.tar: the shard was altered"):
        fetch(f"file://{folder}", cache)


def test_http(folder, tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        place = fetch(url, tmp_path / "cache")
        check_shards(place, Manifest.load(place), deep=True)
        with pytest.raises(InputError, match=r"nothing/manifest\.json: can't be read"):
            fetch(f"{url}/nothing", tmp_path / "cache")
        server.shutdown()


def test_large_codebooks_take_four_bytes(tmp_path):
    assert shards_module.token_dtype(2**16) is np.uint16
    tokens = np.array([[[2**16, 3]]], dtype=shards_module.token_dtype(2**16 + 1))
    shard = write_shard(tmp_path / "train-00000.tar", tokens, np.zeros(1), np.zeros(1), 1)
    manifest = Manifest("VQGAN", "abc", 32, [1, 2], 2**16 + 1, ["a"], ["plain"], 1, {"train": [shard], "held_out": []})
    check_shards(tmp_path, manifest, deep=True)
    assert ShardPacks(tmp_path, manifest, "train").read(0)[0].tolist() == [[[2**16, 3]]]


def test_a_manifest_can_not_name_other_places(folder, tmp_path):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"][0]["name"] = "../victim.txt"
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is no plain file name"):
        fetch(f"file://{folder}", tmp_path / "cache")


def test_a_stale_copy_is_fetched_again(folder, tmp_path):
    place = fetch(f"file://{folder}", tmp_path / "cache")
    (place / "train-00001.tar").write_bytes(bytes((place / "train-00001.tar").stat().st_size))
    check_shards(fetch(f"file://{folder}", tmp_path / "cache"), Manifest.load(folder))
