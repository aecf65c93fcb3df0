"""Writes, checks and reads token shards: webdataset tars of packed samples, with a manifest of their sha256.

A folder holds `manifest.json` and shards such as `train-00000.tar`. A shard holds packs of about 1,000 samples, and
each pack is three arrays: `KEY.tokens.npy` (n, V, L), `KEY.classes.npy` (n,) and `KEY.sources.npy` (n,), the numbers
of the images among all images of the data set. Equal samples give equal bytes: a shard holds no times or host names.

Shapes: `n` samples of a pack or shard, `V` views of a sample, `L` tokens of a view.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from webdataset import TarWriter

from data.stream import OnePack
from enat.errors import InputError
from enat.files import sha256_of, write_atomically

VERSION = 1


@dataclass(frozen=True)
class Shard:
    """The entry of a shard in the manifest."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """Describes a folder of shards: what they hold and which tokenizer made them.

    `skipped` lists the images that could not be read, each with its `file` and the `reason`. `tokenizer_settings` are
    the options that made the tokenizer, with its class as `_target_`; training on the shards makes the same one.
    """

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
    tokenizer_settings: dict[str, Any] | None = None
    version: int = VERSION

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def all_shards(self) -> list[Shard]:
        """Returns the shards of all splits."""
        return list(chain(*self.splits.values()))

    def split_sha256(self, split: str) -> str:
        """Returns a sha256 that tells the samples of a split from others."""
        return hashlib.sha256("".join(shard.sha256 for shard in self.splits[split]).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `manifest.json`. It is written after the shards: a folder with a manifest is complete."""
        write_atomically(folder / "manifest.json", json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads `manifest.json`; raises InputError if it is missing, is not a manifest, or has another version."""
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
        for shard in manifest.all_shards():
            if Path(shard.name).name != shard.name:
                raise InputError(f"{path}: the shard name {shard.name!r} is no plain file name.")
        if manifest.version != VERSION:
            raise InputError(f"{path}: version {manifest.version}; expected {VERSION}.")
        return manifest


def token_dtype(codebook_size: int) -> type[np.unsignedinteger]:
    """Returns the smaller of uint16 and uint32 that can hold every token id."""
    return np.uint16 if codebook_size <= 2**16 else np.uint32


def write_shard(path: Path, token_ids: np.ndarray, class_ids: np.ndarray, sources: np.ndarray, pack_size: int) -> Shard:
    """Writes a shard atomically; raises InputError if the file can't be written.

    Args:
        path: file to write.
        token_ids: (n, V, L).
        class_ids, sources: (n,).
        pack_size: samples of a pack; the last pack of a shard may have fewer.
    """
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
    """Checks that every shard of a manifest exists and has the size and the sha256 that the manifest gives.

    With `deep`, it also reads the packs and checks their shapes and the ranges of token and class ids.

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
            if sha256_of(path) != shard.sha256:
                raise InputError(f"{path}: the shard was altered; its sha256 is not the manifest's.")
        if deep and shards:
            _check_packs(ShardPacks(folder, manifest, split), manifest)


def _check_packs(packs: "ShardPacks", manifest: Manifest) -> None:
    for pack, size in enumerate(packs.sizes.tolist()):
        token_ids, class_ids = packs.read(pack)
        expected_shape = (size, len(manifest.views), manifest.num_tokens)
        if token_ids.shape != expected_shape or class_ids.shape != (size,):
            raise InputError(f"{packs.name(pack)}: shape {token_ids.shape}; the manifest says {expected_shape}.")
        classes_fit = class_ids.min() >= 0 and class_ids.max() < len(manifest.class_names)
        if token_ids.max() >= manifest.codebook_size or not classes_fit:
            raise InputError(f"{packs.name(pack)}: token or class ids out of the range that the manifest says.")


class ShardPacks:
    """Reads the packs of a split, `train` or `held_out`, one at a time; implements `data.stream.Packs`.

    Raises:
        InputError: if the split has no shards, or a shard has another number of packs than the manifest says.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str):
        if not manifest.splits.get(split):
            hint = "; task=tokenize with a larger held_out makes some" if split == "held_out" else ""
            raise InputError(f"{folder}: there are no {split} shards{hint}.")
        # For each pack: the shard's path, and the offset and size in bytes of each array in it.
        self.locations: list[tuple[Path, dict[str, tuple[int, int]]]] = []
        sizes: list[int] = []
        for shard in manifest.splits[split]:
            packs: dict[str, dict[str, tuple[int, int]]] = {}
            with tarfile.open(folder / shard.name) as tar:
                for member in tar:
                    key, _, array = member.name.partition(".")
                    packs.setdefault(key, {})[array] = (member.offset_data, member.size)
            starts = range(0, shard.samples, manifest.pack_size)
            if len(packs) != len(starts):
                raise InputError(f"{folder / shard.name}: {len(packs)} packs; the manifest says {len(starts)}.")
            self.locations += [(folder / shard.name, arrays) for arrays in packs.values()]
            sizes += [min(manifest.pack_size, shard.samples - start) for start in starts]
        self.sizes = np.array(sizes, dtype=np.int64)
        sample_bytes = len(manifest.views) * manifest.num_tokens * token_dtype(manifest.codebook_size)().itemsize
        self.pack_bytes = manifest.pack_size * sample_bytes

    def name(self, pack: int) -> str:
        """Names a pack for error messages: its file, and its number in the split."""
        return f"{self.locations[pack][0]}, pack {pack}"

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token ids (n, V, L) and the class ids (n,) of a pack.

        Raises:
            InputError: if the shard is missing or damaged.
        """
        return self.read_array(pack, "tokens"), self.read_array(pack, "classes")

    def read_array(self, pack: int, name: str) -> np.ndarray:
        """Reads the array `tokens`, `classes` or `sources` of a pack; see `read`."""
        path, arrays = self.locations[pack]
        offset, size = arrays[f"{name}.npy"]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return np.load(io.BytesIO(file.read(size)), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise InputError(f"{self.name(pack)}: can't be read: {reason}.") from error


def write_array(file: IO[bytes], dtype: type, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """Writes an .npy file from parts along the first axis, of which only one has to be in memory at a time."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    for part in parts:
        file.write(part.astype(dtype).tobytes())


def map_packs(folder: Path, manifest: Manifest, split: str) -> OnePack:
    """Maps all samples of a split into memory that the processes of a machine share, as a single pack.

    The first call unpacks the shards to files in `mapped/` beside them. The operating system loads from these files
    what is used and drops it when memory is short.

    Raises:
        InputError: if the disk has no room for the files, or a shard is missing or damaged.
    """
    packs = ShardPacks(folder, manifest, split)
    token_shape = (int(packs.sizes.sum()), len(manifest.views), manifest.num_tokens)
    mapped = []
    for name, dtype, shape in (
        ("tokens", token_dtype(manifest.codebook_size), token_shape),
        ("classes", np.int32, token_shape[:1]),
    ):
        path = folder / "mapped" / f"{split}-{manifest.split_sha256(split)[:16]}-{name}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            parts = (packs.read_array(pack, name) for pack in range(len(packs.sizes)))
            write_atomically(path, partial(write_array, dtype=dtype, shape=shape, parts=parts))
        mapped.append(np.asarray(np.load(path, mmap_mode="r")))
    return OnePack(*mapped)
