"""Token shards: webdataset tars of packed samples, and the manifest that vouches for them.

A folder holds `manifest.json` and shards such as `train-00000.tar`. A member of a shard is one array of a pack of
about 1,000 samples: `KEY.tokens.npy` (n, V, L), `KEY.classes.npy` (n,), `KEY.sources.npy` (n,), the last being the
number of the image among all that were tokenised. The bytes depend on the samples alone.

Shapes: `n` samples of a pack, `V` views of a sample, `L` tokens of a view.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from webdataset import TarWriter

from data.stream import OnePack
from enat.errors import InputError
from enat.files import write_atomically

VERSION = 1


@dataclass(frozen=True)
class Shard:
    """What the manifest knows of a shard."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """What a folder of shards holds, and what made it. `skipped` lists unreadable images with the reason."""

    tokenizer: str
    tokenizer_sha256: str
    resolution: int
    grid: list[int]
    codebook_size: int
    class_names: list[str]
    views: list[str]
    pack_size: int
    splits: dict[str, list[Shard]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    version: int = VERSION

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`, last of all and at once."""
        write_atomically(folder / "manifest.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json`.

        Raises:
            InputError: if it is missing, no manifest, or of another version.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise InputError(f"{folder}: there is no manifest.json; expected a folder that task=tokenize has finished.")
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            content["splits"] = {
                split: [Shard(**shard) for shard in shards] for split, shards in content["splits"].items()
            }
            manifest = cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: this is no manifest of token shards.") from error
        for shard in (shard for shards in manifest.splits.values() for shard in shards):
            if Path(shard.name).name != shard.name:
                raise InputError(f"{path}: the shard name {shard.name!r} is no plain file name.")
        if manifest.version != VERSION:
            raise InputError(f"{path}: version {manifest.version}; expected {VERSION}.")
        return manifest


def token_dtype(codebook_size: int) -> type[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds every token id."""
    return np.uint16 if codebook_size <= 2**16 else np.uint32


def write_shard(path: Path, token_ids: np.ndarray, class_ids: np.ndarray, sources: np.ndarray, pack_size: int) -> Shard:
    """Writes a shard at once, from token ids (n, V, L), class ids (n,) and source numbers (n,)."""
    buffer = io.BytesIO()
    with TarWriter(buffer, mtime=0) as tar:
        for pack, start in enumerate(range(0, len(class_ids), pack_size)):
            rows = slice(start, start + pack_size)
            tar.write(
                {
                    "__key__": f"{path.stem}-{pack:05d}",
                    "tokens.npy": token_ids[rows],
                    "classes.npy": class_ids[rows].astype(np.int32),
                    "sources.npy": sources[rows].astype(np.int64),
                }
            )
    content = buffer.getvalue()
    write_atomically(path, content)
    return Shard(path.name, len(class_ids), len(content), hashlib.sha256(content).hexdigest())


def check_shards(folder: Path, manifest: Manifest, deep: bool = False) -> None:
    """Checks that every shard of a manifest is there, whole and unaltered.

    Args:
        deep: also look into the packs: counts, token ids and class ids in range.

    Raises:
        InputError: naming the shard.
    """
    for split, shards in manifest.splits.items():
        for shard in shards:
            path = folder / shard.name
            if not path.is_file():
                raise InputError(f"{path}: the shard is missing.")
            if path.stat().st_size != shard.bytes:
                raise InputError(f"{path}: {path.stat().st_size} bytes; the manifest says {shard.bytes}.")
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    raise InputError(f"{path}: the shard was altered; its sha256 is not the manifest's.")
        if deep and shards:
            _check_packs(ShardPacks(folder, manifest, split), manifest)


def _check_packs(packs: "ShardPacks", manifest: Manifest) -> None:
    for pack in range(len(packs.sizes)):
        token_ids, class_ids = packs.read(pack)
        expected = (packs.sizes[pack], len(manifest.views), manifest.num_tokens)
        if token_ids.shape != expected or class_ids.shape != expected[:1]:
            raise InputError(f"{packs.name(pack)}: shape {token_ids.shape}; the manifest says {expected}.")
        if token_ids.max() >= manifest.codebook_size or not 0 <= class_ids.min() <= class_ids.max() < len(
            manifest.class_names
        ):
            raise InputError(f"{packs.name(pack)}: token or class ids out of the range that the manifest says.")


class ShardPacks:
    """The packs of a split, read from the shards one at a time; a `data.stream.Packs`."""

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        if not manifest.splits.get(split):
            raise InputError(f"{folder}: there are no {split} shards.")
        self.folder = folder
        shards = manifest.splits.get(split, [])
        self.places: list[tuple[str, Mapping[str, tuple[int, int]]]] = []  # shard, offset and size by array
        sizes: list[int] = []
        for shard in shards:
            packs = self._index(folder / shard.name)
            full, rest = divmod(shard.samples, manifest.pack_size)
            counts = [manifest.pack_size] * full + [rest] * (rest > 0)
            if len(packs) != len(counts):
                raise InputError(f"{folder / shard.name}: {len(packs)} packs; the manifest says {len(counts)}.")
            self.places += [(shard.name, pack) for pack in packs]
            sizes += counts
        self.sizes = np.array(sizes, dtype=np.int64)
        sample_bytes = len(manifest.views) * manifest.num_tokens * token_dtype(manifest.codebook_size)().itemsize
        self.pack_bytes = manifest.pack_size * sample_bytes

    @staticmethod
    def _index(path: Path) -> list[dict[str, tuple[int, int]]]:
        packs: dict[str, dict[str, tuple[int, int]]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, array = member.name.partition(".")
                packs.setdefault(key, {})[array] = (member.offset_data, member.size)
        return list(packs.values())

    def name(self, pack: int) -> str:
        """The file and the place in it, for messages."""
        return f"{self.folder / self.places[pack][0]}, pack {pack}"

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (n, V, L) and class ids (n,) of a pack.

        Raises:
            InputError: if the shard is gone or damaged.
        """
        shard, arrays = self.places[pack]
        loaded = []
        try:
            with (self.folder / shard).open("rb") as file:
                for array in ("tokens.npy", "classes.npy"):
                    offset, size = arrays[array]
                    file.seek(offset)
                    loaded.append(np.load(io.BytesIO(file.read(size)), allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise InputError(f"{self.name(pack)}: can't be read: {reason}.") from error
        return loaded[0], loaded[1]


def map_packs(folder: Path, manifest: Manifest, split: str) -> OnePack:
    """The packs of a split as one array in memory that all processes of a machine share.

    The first call unpacks them to `mapped/` beside the shards; the operating system keeps in memory what is used.
    """
    shards = manifest.splits.get(split, [])
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:16]
    paths = [folder / "mapped" / f"{split}-{digest}-{array}.npy" for array in ("tokens", "classes")]
    if not all(path.exists() for path in paths):
        packs = ShardPacks(folder, manifest, split)
        total = int(packs.sizes.sum())
        shapes = [(total, len(manifest.views), manifest.num_tokens), (total,)]
        dtypes = [token_dtype(manifest.codebook_size), np.int32]
        paths[0].parent.mkdir(exist_ok=True)
        needed = total * (packs.pack_bytes // manifest.pack_size + 4)
        if shutil.disk_usage(folder).free < needed:  # a full disk would end a mapped write without a word
            raise InputError(
                f"{paths[0].parent}: {needed} bytes are needed for the mapped set; there is no such space."
            )
        temporary = [path.with_name(f"{path.name}.{os.getpid()}.partial") for path in paths]
        arrays = [
            np.lib.format.open_memmap(path, "w+", dtype, shape)
            for path, dtype, shape in zip(temporary, dtypes, shapes, strict=True)
        ]
        start = 0
        for pack, size in enumerate(packs.sizes):
            for array, part in zip(arrays, packs.read(pack), strict=True):
                array[start : start + size] = part
            start += size
        for array, partial, path in zip(arrays, temporary, paths, strict=True):
            array.flush()
            partial.replace(path)
    return OnePack(*(np.load(path, mmap_mode="r") for path in paths))
