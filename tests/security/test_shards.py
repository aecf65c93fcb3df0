"""Shards of others: values outside of their range, damaged files, and manifests that ask for too much."""

import io
import json
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.fetch import fetch_manifest
from data.manifest import Manifest
from data.shards import ShardPacks, check_shards, map_packs, write_shard
from enat.errors import InputError
from enat.files import sha256_of

SIZE, VIEWS, TOKENS, CODES, CLASSES = 12, 2, 4, 50, ["a", "b", "c"]


def values() -> dict[str, np.ndarray]:
    """Returns arrays of a pack as they should be."""
    token_ids = np.arange(SIZE * VIEWS * TOKENS, dtype=np.uint16).reshape(SIZE, VIEWS, TOKENS) % CODES
    return {"tokens": token_ids, "classes": np.arange(SIZE) % 3, "sources": np.arange(SIZE)}


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape: str, dtype: str = "'<u2'") -> bytes:
    """Returns an .npy file that is no more than a header."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def write_folder(folder, members: list[tuple[str, bytes]], **changes) -> None:
    """Writes a folder of a single shard that has these members, with a manifest that fits the file."""
    path = folder / "train-00000.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    shard = {"name": path.name, "samples": SIZE, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
    manifest = {
        "tokenizer": "VQGAN", "tokenizer_sha256": "abc", "resolution": 8, "grid": [2, 2], "codebook_size": CODES,
        "class_names": CLASSES, "views": ["plain", "flipped"], "pack_size": SIZE, "splits": {"train": [shard]},
        **changes,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))


def members(**changes: np.ndarray | bytes) -> list[tuple[str, bytes]]:
    arrays = {**values(), **changes}
    return [
        (f"x.{name}.npy", content if isinstance(content, bytes) else npy(content)) for name, content in arrays.items()
    ]


def test_good_ones_pass(tmp_path):
    write_folder(tmp_path, members())
    check_shards(tmp_path, Manifest.load(tmp_path), deep=True)


def changed(name: str, value: float, dtype: type) -> np.ndarray:
    array = values()[name].astype(dtype)
    array.flat[-1] = value
    return array


FAULTS = {
    "negative tokens": (members(tokens=changed("tokens", -1, np.int64)), "token ids from -1 to 49"),
    "tokens that would wrap to 0": (
        members(tokens=changed("tokens", -(2**40), np.int64)),
        "token ids from -10995",
    ),
    "the id of the mask": (members(tokens=changed("tokens", CODES, np.int64)), "token ids from 0 to 50"),
    "tokens with fractions": (
        members(tokens=changed("tokens", 0.5, np.float32)),
        "and type float32",
    ),
    "NaN": (members(tokens=changed("tokens", np.nan, np.float64)), "and type float64"),
    "the null class": (members(classes=changed("classes", 3, np.int64)), "class ids from 0 to 3"),
    "a negative class": (members(classes=changed("classes", -1, np.int64)), "class ids from -1 to 2"),
    "other tokens a sample": (members(tokens=values()["tokens"][:, :, :2]), "of shape (12, 2, 2)"),
    "a huge header": (members(tokens=header("(12, 2, 1000000000000)")), "it is damaged"),
    "a negative shape": (members(tokens=header("(12, -2, -4)")), "it is damaged"),
    "objects": (members(tokens=header("(12, 2, 4)", "'|O'")), "it is damaged"),
    "an array twice": ([*members(), *members()[:1]], "it has x.tokens.npy where each pack should have each array once"),
    "a missing array": (members()[:2], "pack x has no sources.npy"),
    "another file": ([*members(), ("x.run.sh", b"")], "it has x.run.sh where"),
    "no tar": (None, "this is no tar file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_shards_are_named(tmp_path, fault):
    """By the check, and when a pack is first read, streamed or mapped."""
    content, sentence = FAULTS[fault]
    write_folder(tmp_path, content or members())
    if content is None:
        (tmp_path / "train-00000.tar").write_bytes(b"x" * 2000)
    for read in (
        lambda: ShardPacks(tmp_path, Manifest.load(tmp_path), "train").read(0),
        lambda: map_packs(tmp_path, Manifest.load(tmp_path), "train"),
        lambda: check_shards(tmp_path, Manifest.load(tmp_path), deep=True),
    ):
        with pytest.raises(InputError) as refused:
            read()
        assert "train-00000.tar" in str(refused.value)
    assert content is None or sentence in str(refused.value)


def tar_header(kind: bytes, size: int) -> bytes:
    entry = tarfile.TarInfo("x")
    entry.type = kind
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(record: bytes) -> bytes:
    """Returns an extended header with a record."""
    return tar_header(tarfile.XHDTYPE, len(record)) + record.ljust(-(-len(record) // 512) * 512, b"\0")


TAR_HEADERS = {
    "long names": (tar_header(tarfile.GNUTYPE_LONGNAME, 1) + b"x".ljust(512, b"\0")) * 3000,
    "extended headers": pax(b"11 a=bcdef\n") * 3000,
    "a length of many digits": pax(b"1" * 5000 + b" a=bcdef\n"),
    "a sparse map": pax(b"22 GNU.sparse.map=a,b\n"),
    "a sparse map in the file": pax(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
    "a sparse size": pax(b"25 GNU.sparse.size=abcde\n22 GNU.sparse.map=1,2\n"),
    "a negative header": tar_header(tarfile.XHDTYPE, -1024),
    "a file that leads back to itself": pax(b"13 size=-512\n"),
    "a sparse file that leads back": (
        tar_header(tarfile.REGTYPE, 0) + pax(b"21 GNU.sparse.size=5\n") + tar_header(tarfile.REGTYPE, -1536)
    ),
}


@pytest.mark.parametrize("kind", TAR_HEADERS)
def test_headers_of_a_tar_that_are_made_up(tmp_path, kind):
    write_folder(tmp_path, members())
    path = tmp_path / "train-00000.tar"
    path.write_bytes(TAR_HEADERS[kind] + path.read_bytes())
    with pytest.raises(InputError, match=r"train-00000\.tar: this is no tar file, or a damaged one\."):
        ShardPacks(tmp_path, Manifest.load(tmp_path), "train")


def test_extended_headers_of_other_programs(tmp_path):
    """Python writes some for a file's time, when a shard is packed anew."""
    write_folder(tmp_path, members())
    path = tmp_path / "train-00000.tar"
    path.write_bytes(pax(b"14 mtime=12.5\n") + path.read_bytes())
    assert len(ShardPacks(tmp_path, Manifest.load(tmp_path), "train").read(0)[0]) == SIZE


MANIFESTS = {
    "pack_size": (0, "pack_size: Input should be greater than or equal to 1"),
    "grid": ([2, "2"], "grid.1: Input should be a valid integer"),
    "codebook_size": (1.5, "codebook_size: Input should be a valid integer"),
    "class_names": ("abc", "class_names: Input should be a valid list"),
    "class_names of no text": (["\ud800"], "class_names.0: Value error, it is no valid Unicode"),
    "a shard of no text": (
        {"train": [{"name": "\ud800", "samples": 1, "bytes": 1, "sha256": "0" * 64}]},
        "splits.train.0.name: Value error, it is no valid Unicode",
    ),
    "a sha256": (
        {"train": [{"name": "a", "samples": 1, "bytes": 1, "sha256": "\ud800"}]},
        "splits.train.0.sha256: Input should be a valid string",
    ),
    "tokenizer_sha256": ("\ud800", "tokenizer_sha256: Value error, it is no valid Unicode"),
    "tokenizer": ("\x1b[31m", "tokenizer: Value error, it has control characters"),
    "a split": ({"\ud800": []}, "it is no valid Unicode"),
    "views": ([], "views: List should have at least 1 item"),
    "splits": ({"train": [{"name": "a", "samples": -1, "bytes": 1, "sha256": "x"}]}, "splits.train.0.samples: Input"),
}
OPTIONS = {"a shard of no text": "splits", "a sha256": "splits", "a split": "splits"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_faulty_manifests_are_named(command, tmp_path, name):
    value, sentence = MANIFESTS[name]
    write_folder(tmp_path, members(), **{OPTIONS.get(name, name.partition(" ")[0]): value})
    with pytest.raises(InputError, match="this is no manifest of token shards") as refused:
        Manifest.load(tmp_path)
    assert sentence in str(refused.value)
    outcome = command(f"data.shards={tmp_path}", f"output={tmp_path / 'run'}")
    assert outcome.status in (1, 2)
    assert outcome.err.startswith("Error: ")


TOKENIZER = {
    "_target_": "enat.tokenizers.vqgan.VQGAN", "codebook_size": 64, "code_width": 32, "channels": 32,
    "multipliers": [1, 1], "num_blocks": 1, "resolution": 8, "batch_size": 4, "compile": False, "weights": None,
}  # fmt: skip
QUANTIZER = {"_target_": "enat.tokenizers.quantizers.AveragedCodebook", "codebook_size": 2**20, "code_width": 2**14}
CONV = {name: TOKENIZER[name] for name in ("channels", "multipliers", "num_blocks", "resolution", "weights")}
CONV |= {"_target_": "enat.tokenizers.vqgan.ConvTokenizer", "quantizer": QUANTIZER}
SHARD = {"name": "train-00000.tar", "samples": 10**30, "bytes": 1, "sha256": "0" * 64}
LARGE = {**SHARD, "samples": SIZE, "bytes": 2**40}
TOO_MUCH = {
    "samples": ({"splits": {"train": [SHARD]}, "pack_size": 1}, "splits.train.0.samples: Input should be less than"),
    "bytes": ({"splits": {"train": [LARGE]}}, "the shard train-00000.tar has 1,099,511,627,776 bytes; expected at"),
    "samples of a pack": ({"pack_size": 10**30}, "pack_size: Input should be less than"),
    "codes": ({"codebook_size": 2**32}, "codebook_size: Input should be less than or equal to 1048576"),
    "tokens": ({"grid": [2**9, 2**9]}, "grid=[512, 512]: expected at most 65,536 tokens"),
    "a grid": ({"grid": [10**30, 10**30]}, "grid.0: Input should be less than"),
    "pixels": ({"resolution": 10**30}, "resolution: Input should be less than"),
    "classes": ({"class_names": ["x"] * (2**20 + 1)}, "class_names: List should have at most 1048576 items"),
    "channels": (
        {"tokenizer_settings": {**TOKENIZER, "channels": 2**20}},
        "weights; expected at most 1,073,741,824",
    ),
    "codes of the tokenizer": (
        {"tokenizer_settings": {**TOKENIZER, "codebook_size": 2**31}},
        "tokenizer_settings.codebook_size is beyond 16,777,216",
    ),
    "a quantiser": ({"tokenizer_settings": CONV}, "a codebook of 1048576 x 16384"),
    "a part": (
        {"tokenizer_settings": {**TOKENIZER, "_partial_": True}},
        "tokenizer._partial_=true: expected false, since tokenizer is used as it is and not called",
    ),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_manifests_that_ask_for_too_much(command, tmp_path, kind):
    """They are refused before a network or a tokenizer of their sizes is built."""
    changes, sentence = TOO_MUCH[kind]
    write_folder(tmp_path, members(), **changes)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2_000_000_000, limits[1]))
    try:
        outcome = command(f"data.shards={tmp_path}", "module.net.width=32", f"output={tmp_path / 'run'}")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (outcome.status, sentence in outcome.err) == (1, True), outcome.err


def test_a_manifest_of_a_server_is_checked_when_it_comes(tmp_path):
    write_folder(tmp_path, members(), codebook_size=2**32)
    with pytest.raises(InputError, match=r"manifest\.json: this is no manifest of token shards\. codebook_size"):
        fetch_manifest(f"file://{tmp_path}", tmp_path / "cache")


def test_deep_json(command, tmp_path):
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    outcome = command(f"data.shards={tmp_path}", f"output={tmp_path / 'run'}")
    assert outcome.status in (1, 2)
    assert "this is no manifest of token shards" in outcome.err


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "held_out")])
def test_a_shard_twice(tmp_path, splits):
    data = values()
    shard = write_shard(tmp_path / "train-00000.tar", data["tokens"], data["classes"], data["sources"], SIZE)
    content = {name: [shard] * splits.count(name) for name in set(splits)}
    Manifest("VQGAN", "abc", 8, [2, 2], CODES, CLASSES, ["plain", "flipped"], SIZE, content).save(tmp_path)
    with pytest.raises(InputError, match=r"manifest\.json: it has the shard train-00000\.tar 2 times"):
        Manifest.load(tmp_path)
