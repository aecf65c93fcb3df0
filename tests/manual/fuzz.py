"""Damages manifests, shards, checkpoints and .npz files in many ways: each has to end in a sentence or a right result.

python tests/manual/fuzz.py [CASES]: bytes are changed, cut and repeated, and values of JSON and of checkpoints are
replaced by others. Anything but an `InputError` is printed as a fault, and so is a case that takes more than ten
seconds. The process may use 2 GB more than torch itself needs.
"""

import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.manifest import Manifest
from data.references import StatisticsFile
from data.shards import ShardPacks, write_shard
from enat.checkpoints.selection import select_state
from enat.checkpoints.warm_start import warm_start
from enat.checkpoints.weights import load_weights, read_file
from enat.errors import InputError
from enat.net import ENAT
from enat.tokenizers.pixels import PixelTokenizer

SIZES = {
    "codebook_size": 12,
    "num_classes": 3,
    "num_tokens": 16,
    "width": 32,
    "num_heads": 4,
    "encoder_depth": 1,
    "decoder_depth": 1,
}
ODD: list[Any] = [
    None,
    -1,
    0,
    2**70,
    1e308,
    float("nan"),
    "",
    "\x1b[31m",
    "../x",
    "x" * 400,
    [],
    {},
    [[]],
    {"a": None},
    True,
    b"x",
]
MEMORY = 2 * 2**30  # bytes


def make_shards(folder: Path) -> None:
    """Writes a folder of two small shards."""
    tokens = np.arange(10 * 2 * 4, dtype=np.uint16).reshape(10, 2, 4) % 50
    numbers = np.arange(10)
    shards = [
        write_shard(folder / f"train-0000{i}.tar", tokens + i, numbers % 3, numbers + 10 * i, 4) for i in range(2)
    ]
    Manifest("VQGAN", "abc", 8, [2, 2], 60, list("abc"), ["plain", "flipped"], 4, {"train": shards}).save(folder)


def make_checkpoint(folder: Path) -> None:
    """Writes a checkpoint with an average, facts and settings."""
    net = ENAT(**SIZES)
    state = net.state_dict()
    content = {
        "state_dict": {f"net.{name}": tensor for name, tensor in state.items()},
        "callbacks": {"EMA": {"net": state}},
    }
    facts = {
        "net_sizes": net.sizes,
        "class_names": list("abc"),
        "settings": {"module": {"net": SIZES}},
        "global_step": 1,
    }
    torch.save({**content, **facts}, folder / "last.ckpt")


def make_statistics(folder: Path) -> None:
    """Writes statistics as task=statistics does."""
    np.savez(folder / "statistics.npz", mu=np.zeros(8), sigma=np.eye(8), num_images=9, size=[8, 8], protocol="adm")


def read_shards(folder: Path) -> None:
    manifest = Manifest.load(folder)
    for split in manifest.splits:
        packs = ShardPacks(folder, manifest, split)
        for pack in range(len(packs.sizes)):
            packs.read(pack)


def read_checkpoint(folder: Path) -> None:
    content = read_file(folder / "last.ckpt")
    select_state(content)
    load_weights(ENAT(**SIZES), str(folder / "last.ckpt"))
    warm_start(ENAT(**SIZES), str(folder / "last.ckpt"), PixelTokenizer(SIZES["codebook_size"], 4))


def read_statistics(folder: Path) -> None:
    StatisticsFile(str(folder / "statistics.npz")).num_images("adm")


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "shards": (make_shards, read_shards),
    "checkpoint": (make_checkpoint, read_checkpoint),
    "statistics": (make_statistics, read_statistics),
}


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Changes, cuts, repeats or inserts bytes."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 30])):
        place = rng.randrange(len(changed) + 1)
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[place % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place:place] = rng.randbytes(rng.randrange(1, 50))
        elif kind == 3:
            changed[place : place + 8] = (2 ** rng.randrange(63)).to_bytes(8, "little")
        else:
            changed += changed[place : place + 100]
    return bytes(changed)


def change_values(node: Any, rng: random.Random) -> Any:
    """Replaces, removes or adds values somewhere in nested dictionaries and lists."""
    if isinstance(node, dict) and node and rng.random() < 0.8:
        name = rng.choice(list(node))
        kind = rng.random()
        if kind < 0.1:
            return {key: value for key, value in node.items() if key != name}
        if kind < 0.15:
            return {**node, rng.choice([1, "", "extra"]): rng.choice(ODD)}
        return {**node, name: change_values(node[name], rng)}
    if isinstance(node, list) and node and rng.random() < 0.6:
        place = rng.randrange(len(node))
        return [*node[:place], change_values(node[place], rng), *node[place + 1 :]]
    if isinstance(node, torch.Tensor) and rng.random() < 0.8:
        ways: list[Callable[[torch.Tensor], Any]] = [
            lambda x: x.to(rng.choice([torch.int8, torch.bool, torch.complex64, torch.float64, torch.float16])),
            lambda x: x * float("nan"), lambda x: x.double() * 1e300, lambda x: x[..., :1], lambda x: x.to("meta"),
            lambda x: x.to_sparse(), lambda x: x.expand(3, *x.shape), lambda x: x.reshape(-1),
        ]  # fmt: skip
        return rng.choice(ways)(node)
    return rng.choice(ODD)


def damage(folder: Path, rng: random.Random) -> None:
    """Damages one file of a folder."""
    path = rng.choice(sorted(folder.iterdir()))
    if path.suffix == ".json" and rng.random() < 0.7:
        changed = change_values(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(changed, default=str))
    elif path.suffix == ".ckpt" and rng.random() < 0.7:
        torch.save(change_values(torch.load(path, weights_only=True), rng), path)
    elif path.suffix == ".npz" and rng.random() < 0.5:
        arrays = {name: np.array(array) for name, array in np.load(path).items()}
        name = rng.choice(list(arrays))
        others = [np.zeros(0), np.array("x"), np.array([[1j]]), np.full(3, np.nan), np.array(-1), np.zeros((2, 2, 2))]
        arrays[name] = rng.choice(others)
        np.savez(path, **arrays)
    else:
        path.write_bytes(change_bytes(path.read_bytes(), rng))


def too_slow(number: int, frame: Any) -> None:
    raise TimeoutError("ten seconds")


def main(cases: int) -> int:
    """Tries so many cases; returns the number of faults."""
    signal.signal(signal.SIGALRM, too_slow)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    faults = refused = 0
    with tempfile.TemporaryDirectory() as temporary:
        for kind, (make, _) in KINDS.items():
            (Path(temporary) / kind).mkdir()
            make(Path(temporary) / kind)
        for case in range(cases):
            rng = random.Random(case)
            kind = rng.choice(list(KINDS))
            folder = Path(temporary) / "case"
            shutil.copytree(Path(temporary) / kind, folder)
            damage(folder, rng)
            signal.alarm(10)
            output, sys.stdout = sys.stdout, io.StringIO()
            try:
                KINDS[kind][1](folder)
            except InputError:
                refused += 1
            except Exception:
                faults += 1
                print(f"case {case}, {kind}:", traceback.format_exc(limit=-3), sep="\n", file=sys.stderr)
            finally:
                signal.alarm(0)
                sys.stdout = output
            shutil.rmtree(folder)
    print(f"{cases} cases: {refused} refused with a sentence, {cases - refused - faults} read, {faults} faults")
    return faults


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000) > 0)
