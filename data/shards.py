"""Writes, checks and reads token shards: webdataset tars of packed samples, with a manifest of their sha256.

A folder holds `manifest.json` and shards such as `train-00000.tar`. A shard holds packs of about 1,000 samples, and
each pack is three arrays: `KEY.tokens.npy` (n, V, L), `KEY.classes.npy` (n,) and `KEY.sources.npy` (n,), the numbers
of the images among all images of the data set. Equal samples give equal bytes: a shard holds no times or host names.

Shapes: `n` samples of a pack or shard, `V` views of a sample, `L` tokens of a view.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from webdataset import TarWriter

from data.arrays import map_npy, parse_npy
from data.manifest import ARRAYS, Manifest, Shard
from data.stream import OnePack
from enat.errors import InputError
from enat.files import sha256_of, write_atomically

NO_COPY = "it is no copy of the shards; remove it, and the next run makes it anew."
AGAIN = "run the task=tokenize that wrote the shards again, or copy the shard again from where it came"


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

    With `deep`, it also reads the packs, whose values `ShardPacks.read` checks, and the files of `map_packs` if any.

    Raises:
        InputError: naming the shard.
    """
    for split, shards in manifest.splits.items():
        for shard in shards:
            path = folder / shard.name
            if not path.is_file():
                raise InputError(f"{path}: the shard is missing; {AGAIN}.")
            if path.stat().st_size != shard.bytes:
                raise InputError(f"{path}: {path.stat().st_size} bytes; the manifest says {shard.bytes}; {AGAIN}.")
            if sha256_of(path) != shard.sha256:
                raise InputError(f"{path}: the shard was altered; its sha256 is not the manifest's; {AGAIN}.")
        if deep and shards:
            packs = ShardPacks(folder, manifest, split)
            for pack in range(len(packs.sizes)):
                packs.read(pack)
            if all(path.exists() for path in mapped_files(folder, manifest, split)):
                map_packs(folder, manifest, split).check()


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
            packs = _locate_arrays(folder / shard.name)
            starts = range(0, shard.samples, manifest.pack_size)
            if len(packs) != len(starts):
                raise InputError(f"{folder / shard.name}: {len(packs)} packs; the manifest says {len(starts)}.")
            self.locations += [(folder / shard.name, arrays) for arrays in packs.values()]
            sizes += [min(manifest.pack_size, shard.samples - start) for start in starts]
        self.sizes = np.array(sizes, dtype=np.int64)
        self.manifest = manifest
        self.checked: set[int] = set()  # packs whose values were looked at
        sample_bytes = len(manifest.views) * manifest.num_tokens * token_dtype(manifest.codebook_size)().itemsize
        self.pack_bytes = manifest.pack_size * sample_bytes

    def name(self, pack: int) -> str:
        """Names a pack for error messages: its file, and its number in the split."""
        return f"{self.locations[pack][0]}, pack {pack}"

    def read(self, pack: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token ids (n, V, L) and the class ids (n,) of a pack; their values are checked the first time.

        Raises:
            InputError: if the shard is missing or damaged, or holds something else than the manifest says.
        """
        token_ids, class_ids = self._read_array(pack, "tokens"), self._read_array(pack, "classes")
        if pack not in self.checked:
            size = (int(self.sizes[pack]),)
            per_sample = (len(self.manifest.views), self.manifest.num_tokens)
            self._check(pack, "token ids", token_ids, (*size, *per_sample), self.manifest.codebook_size)
            num_classes = len(self.manifest.class_names) or 2**31  # a manifest may name no classes
            self._check(pack, "class ids", class_ids, size, num_classes)
            self._check(pack, "numbers of images", self._read_array(pack, "sources"), size, 2**63)
            self.checked.add(pack)
        return token_ids, class_ids

    def read_sources(self) -> np.ndarray:
        """Reads the numbers (n,) of the images of all packs, among all images that were tokenised."""
        return np.concatenate([self._read_array(pack, "sources") for pack in range(len(self.sizes))])

    def _check(self, pack: int, what: str, values: np.ndarray, shape: tuple[int, ...], end: int) -> None:
        if values.shape != shape or values.dtype.kind not in "iu":
            raise InputError(
                f"{self.name(pack)}: {what} of shape {values.shape} and type {values.dtype}; the manifest says "
                f"integers of shape {shape}."
            )
        if values.min() < 0 or values.max() >= end:
            raise InputError(
                f"{self.name(pack)}: {what} from {values.min()} to {values.max()}; the manifest says 0 to {end - 1}."
            )

    def _read_array(self, pack: int, name: str) -> np.ndarray:
        path, arrays = self.locations[pack]
        offset, size = arrays[f"{name}.npy"]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return parse_npy(file.read(size))
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it is damaged"
            raise InputError(f"{self.name(pack)}: can't be read: {reason}.") from error


def _locate_arrays(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Returns the offset and size in bytes of each array of each pack of a shard.

    Raises:
        InputError: if the shard is missing, is no tar file, or a pack does not have each array once.
    """
    packs: dict[str, dict[str, tuple[int, int]]] = {}
    for member in _members_of(path):
        key, _, array = member.name.partition(".")
        if array not in ARRAYS or array in packs.setdefault(key, {}):
            raise InputError(f"{path}: it has {member.name} where each pack should have each array once.")
        packs[key][array] = (member.offset_data, member.size)
    for key, arrays in packs.items():
        if missing := sorted(ARRAYS - arrays.keys()):
            raise InputError(f"{path}: pack {key} has no {missing[0]}.")
    return packs


def _members_of(path: Path) -> list[tarfile.TarInfo]:
    """Returns what the headers of a tar file say of the files in it.

    Raises:
        InputError: if the file is missing, or is no tar file.
    """
    members: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.size < 0 or (members and member.offset <= members[-1].offset):  # would be read forever
                    raise tarfile.TarError("a negative size")
                members.append(member)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}.") from error
    except Exception as error:  # whatever tarfile raises on a header that was made up, such as a RecursionError
        raise InputError(f"{path}: this is no tar file, or a damaged one.") from error
    return members


def write_array(file: IO[bytes], dtype: type, shape: tuple[int, ...], parts: Iterable[np.ndarray]) -> None:
    """Writes an .npy file from parts along the first axis, of which only one has to be in memory at a time."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    for part in parts:
        file.write(part.astype(dtype).tobytes())


def mapped_files(folder: Path, manifest: Manifest, split: str) -> list[Path]:
    """Returns the files of `map_packs`, of token ids and of class ids, whether they are there or not."""
    stem = f"{split}-{manifest.split_sha256(split)[:16]}"
    return [folder / "mapped" / f"{stem}-{name}.npy" for name in ("tokens", "classes")]


class MappedPacks(OnePack):
    """Offers all samples of a split as a single pack, from files that are mapped into memory.

    Args:
        paths: of the token ids and the class ids.
        samples: their arrays.
        shards: what they were unpacked from.
    """

    def __init__(self, paths: list[Path], samples: Iterable[np.ndarray], shards: ShardPacks):
        super().__init__(*samples)
        self.paths = paths
        self.shards = shards

    def check(self) -> None:
        """Compares all samples with those of the shards.

        Raises:
            InputError: naming the file that has others.
        """
        ends = self.shards.sizes.cumsum()
        for pack, (size, end) in enumerate(zip(self.shards.sizes, ends, strict=True)):
            for path, samples, wanted in zip(self.paths, self.samples, self.shards.read(pack), strict=True):
                if not np.array_equal(samples[end - size : end], wanted):
                    raise InputError(f"{path}: {NO_COPY}")


def _map_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """Maps a file that `write_array` wrote into memory; raises InputError for one that was cut or is another."""
    try:
        array = map_npy(path)
        if (array.shape, array.dtype) != (shape, np.dtype(dtype)):
            raise ValueError("another array")
        return array
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path}: {NO_COPY}") from error


def map_packs(folder: Path, manifest: Manifest, split: str) -> MappedPacks:
    """Maps all samples of a split into memory that the processes of a machine share, as a single pack.

    The first call unpacks the shards to files in `mapped/` beside them. The operating system loads from these files
    what is used and drops it when memory is short. Each call looks at their sizes; `MappedPacks.check` at all samples.

    Raises:
        InputError: if the disk has no room for the files, or a shard or a file is missing or damaged.
    """
    packs = ShardPacks(folder, manifest, split)
    token_shape = (int(packs.sizes.sum()), len(manifest.views), manifest.num_tokens)
    arrays: list[tuple[type, tuple[int, ...]]] = [
        (token_dtype(manifest.codebook_size), token_shape),
        (np.int32, token_shape[:1]),
    ]
    paths = mapped_files(folder, manifest, split)
    mapped = []
    for number, (path, (dtype, shape)) in enumerate(zip(paths, arrays, strict=True)):
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            parts = (packs.read(pack)[number] for pack in range(len(packs.sizes)))
            write_atomically(path, partial(write_array, dtype=dtype, shape=shape, parts=parts))
        mapped.append(_map_array(path, dtype, shape))
    return MappedPacks(paths, mapped, packs)
