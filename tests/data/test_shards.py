"""Shards: reproducible bytes, nothing lost, an error for every fault; copies of remote shards."""

import functools
import json
import re
import shutil
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_convert

from data.fetch import fetch
from data.manifest import Manifest
from data.module import ShardsDataModule
from data.references import DecodedShards
from data.scored_images import ShardImages
from data.shards import ShardPacks, check_shards, map_packs, token_dtype, write_shard
from data.stream import StreamPositions, TokenStream
from data.tokenization import plan_shards
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


@given(
    shard_sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    pack_size=st.integers(1, 13),
    codebook_size=st.sampled_from([2, 2**16, 2**16 + 1]),
    views=st.integers(1, 3),
    num_tokens=st.integers(1, 9),
)
def test_round_trip(shard_sizes, pack_size, codebook_size, views, num_tokens):
    rng = np.random.default_rng(0)
    total = sum(shard_sizes)
    dtype = token_dtype(codebook_size)
    assert dtype is (np.uint32 if codebook_size > 2**16 else np.uint16)
    token_ids = rng.integers(codebook_size, size=(total, views, num_tokens)).astype(dtype)
    token_ids[0, 0, 0] = codebook_size - 1
    class_ids = rng.integers(3, size=total)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shards = [
            write_shard(folder / f"train-{number:05d}.tar", token_ids[rows], class_ids[rows], rows, pack_size)
            for number, rows in enumerate(np.split(np.arange(total), np.cumsum(shard_sizes)[:-1]))
        ]
        names = [str(view) for view in range(views)]
        Manifest(
            "VQGAN", "abc", 32, [1, num_tokens], codebook_size, list("abc"), names, pack_size, {"train": shards}
        ).save(folder)
        manifest = Manifest.load(folder)
        check_shards(folder, manifest, deep=True)
        packs = ShardPacks(folder, manifest, "train")
        assert packs.sizes.max() <= pack_size
        read = [packs.read(pack) for pack in range(len(packs.sizes))]
        assert [len(pack_class_ids) for _, pack_class_ids in read] == packs.sizes.tolist()
        read_in_packs = tuple(np.concatenate(arrays) for arrays in zip(*read, strict=True))
        unpacked = map_packs(folder, manifest, "train").read(0)
        mapped_again = map_packs(folder, manifest, "train").read(0)
        for read_token_ids, read_class_ids in (read_in_packs, unpacked, mapped_again):
            assert np.array_equal(read_token_ids, token_ids)
            assert np.array_equal(read_class_ids, class_ids)
            assert read_token_ids.dtype == dtype


@given(size=st.integers(1, 300), held_out=st.floats(0, 0.99), shard_size=st.integers(1, 40), seed=st.integers(0, 9))
def test_plans_have_each_sample_once(size, held_out, shard_size, seed):
    plans = plan_shards(size, held_out, shard_size, seed)
    numbers = np.concatenate([plan.numbers for plan in plans])
    assert sorted(numbers.tolist()) == list(range(size))
    assert sum(len(plan.numbers) for plan in plans if plan.split == "held_out") == round(size * held_out)
    assert all(1 <= len(plan.numbers) <= shard_size for plan in plans)
    assert len({plan.name for plan in plans}) == len(plans)


def test_bytes_depend_on_the_samples_alone(folder, tmp_path):
    packs = ShardPacks(folder, Manifest.load(folder), "train")
    tokens = np.concatenate([packs.read(pack)[0] for pack in range(4)])
    (tmp_path / "again").mkdir()
    write_shard(tmp_path / "again" / "train-00000.tar", tokens, np.arange(40) % 4, np.arange(40), 10)
    assert (tmp_path / "again" / "train-00000.tar").read_bytes() == (folder / "train-00000.tar").read_bytes()


def read_batches(folder, rank, num_workers, batches):
    packs = ShardPacks(folder, Manifest.load(folder), "train")
    stream = TokenStream(packs, null_class_id=4, class_dropout=0.3, seed=0, pool_bytes=3 * packs.pack_bytes)
    loader = DataLoader(
        stream,
        batch_sampler=StreamPositions(10, rank, 2, 0),
        collate_fn=default_convert,
        num_workers=num_workers,
    )
    return list(islice(iter(loader), batches))


def test_workers_read_the_same_batches(folder):
    """On two ranks, each with two workers: the same bits as without workers, and in an epoch each sample once."""
    by_rank = [read_batches(folder, rank, 2, batches=6) for rank in range(2)]
    for rank, batches in enumerate(by_rank):
        for batch, expected in zip(batches, read_batches(folder, rank, 0, batches=6), strict=True):
            assert torch.equal(batch[0], expected[0])
            assert torch.equal(batch[1], expected[1])
    in_order = [batch for pair in zip(*by_rank, strict=True) for batch in pair]
    numbers = torch.cat([token_ids[:, 0] for token_ids, _ in in_order])
    assert sorted(numbers[:103].tolist()) == list(range(103))


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
        (damage_missing, r"train-00001\.tar: the shard is missing; run the task=tokenize that wrote"),
        (damage_truncated_at_a_member, r"train-00001\.tar: 6144 bytes; the manifest says"),
        (damage_flipped_byte, r"altered; its sha256 is not the manifest's; run the task=tokenize that wrote"),
        (damage_foreign_manifest, r"manifest\.json: this is no manifest"),
        (damage_no_manifest, r"there is no manifest\.json"),
    ],
)
def test_faults_are_named(folder, damage, sentence):
    damage(folder)
    with pytest.raises(InputError, match=sentence):
        check_shards(folder, Manifest.load(folder))


def altered(content):
    """A token of the last sample is another, and the file as long as before."""
    return content[:-2] + bytes([content[-2] ^ 1, content[-1]])


def of_another_shape(content):
    return content.replace(b"(103,", b"(102,")


def of_another_type(content):
    return content.replace(b"'<u2'", b"'<i2'").replace(b"'<i4'", b"'<u4'")


DAMAGES = [altered, of_another_shape, of_another_type, lambda content: content[:-7], lambda content: content[:40]]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["tokens", "classes"])
def test_mapped_files_are_copies_of_the_shards(folder, damage, name):
    """A run refuses others before it trains, and so does the check; a file that was removed is made anew."""
    manifest = Manifest.load(folder)
    packs = ShardsDataModule(tokenizer=None, batch_size=1, shards=str(folder), reader=map_packs)
    packs.prepare_data()
    check_shards(folder, manifest, deep=True)
    (path,) = folder.glob(f"mapped/*-{name}.npy")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    for check in (packs.prepare_data, lambda: check_shards(folder, manifest, deep=True)):
        with pytest.raises(
            InputError, match=rf"-{name}\.npy: it is no copy of the shards; remove it, and the next run"
        ):
            check()
    path.unlink()
    packs.prepare_data()
    assert path.read_bytes() == content


def test_label_outside_the_classes(folder):
    manifest = Manifest.load(folder)
    manifest.class_names = ["a", "b", "c"]
    with pytest.raises(InputError, match=r"class ids from 0 to 3; the manifest says 0 to 2"):
        check_shards(folder, manifest, deep=True)


def test_no_space_left(folder, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr("enat.files.os.fsync", full)
    with pytest.raises(InputError, match=r"new\.tar: can't be written: No space left on device"):
        write_shard(folder / "new.tar", np.zeros((1, 1, 1), np.uint16), np.zeros(1), np.zeros(1), 1)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_urls(folder, tmp_path):
    cache = tmp_path / "cache"
    place = fetch(f"file://{folder}", cache)
    check_shards(place, Manifest.load(place))
    assert place.parent == cache
    assert fetch(str(folder), cache) == folder
    for bad in ("pipe:cat x", "nonsense://x", "filecache://x", "ssh://x/y", "github://a:b@c/d", "local:///etc"):
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
        with pytest.raises(InputError, match=r"nothing/manifest\.json: there is no such file on the server"):
            fetch(f"{url}/nothing", tmp_path / "cache")
        server.shutdown()


def test_an_access_key_in_a_url(folder, tmp_path):
    """It is sent with each file, and no error has it."""

    class Guarded(SimpleHTTPRequestHandler):
        def do_GET(self):
            path, _, query = self.path.partition("?")
            if query != "token=abc":
                self.send_error(403)
                return
            self.path = path
            super().do_GET()

        def log_message(self, *_):
            pass

    (folder / "other").mkdir()
    (folder / "other" / "manifest.json").write_text("{}")
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Guarded, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        place = fetch(f"{url}/?token=abc", tmp_path / "cache")
        check_shards(place, Manifest.load(place))
        damage_flipped_byte(folder)
        for bad, sentence in [
            ("/?token=abd", f"{url}/manifest.json?token=: can't be read: 403"),
            ("/none?token=abc", f"{url}/none/manifest.json?token=: there is no such file on the server."),
            ("/other?token=abc", f"{url}/other/manifest.json?token=: this is no manifest of token shards."),
            ("?token=abc", f"{url}/train-00001.tar?token=: the shard was altered"),
        ]:
            with pytest.raises(InputError) as refused:
                fetch(url + bad, tmp_path / "cache2")
            assert str(refused.value).startswith(sentence)
            assert not {"abc", "abd", "cache2"} & set(re.findall(r"\w+", str(refused.value)))
        server.shutdown()


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


def test_how_many_images_of_shards_are_read_is_in_their_identity(folder):
    """Or else an evaluation of six images would go on with the work of ten; as a reference, too."""
    tokenizer = SimpleNamespace(fingerprint=lambda: "abc", has_other_codes=lambda _: False, resolution=32)
    read = [ShardImages(str(folder), tokenizer, "train", num_images) for num_images in (None, 4, 10)]
    assert [images.num_images for images in read] == [103, 4, 10]
    for of in (lambda images: images, lambda images: DecodedShards(images, None)):
        identities = [dict(of(images).identity) for images in read]
        assert identities[0] != identities[1] != identities[2] != identities[0]
