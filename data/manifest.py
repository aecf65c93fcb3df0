"""The manifest of a folder of token shards: what they hold, and which tokenizer made them."""

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len, MaxLen, MinLen
from pydantic import Strict, TypeAdapter, ValidationError

from enat.checkpoints.description import MAX_NAME, PlainText, Sha256, parse_json
from enat.errors import InputError
from enat.files import write_atomically

VERSION = 1
# No shards of this project come near to these limits; a network of the sizes in a manifest has to fit into memory.
MAX_TABLE = 2**20  # classes or codes: the network has a row for each
MAX_TOKENS = 2**16  # of an image
MAX_COUNT = 2**40  # samples or bytes of a shard
ARRAYS = {"tokens.npy", "classes.npy", "sources.npy"}  # of each pack
MAX_ITEM = 8  # bytes of a value in a shard
MAX_HEADERS = 2**14  # bytes of the headers of an array, and of what fills up its last block
MAX_END = 2**16  # bytes at the end of a tar file
Positive = Annotated[int, Strict(), Ge(1)]
Count = Annotated[int, Strict(), Ge(1), Le(MAX_COUNT)]
Side = Annotated[int, Strict(), Ge(1), Le(MAX_TOKENS)]


@dataclass(frozen=True)
class Shard:
    """The entry of a shard in the manifest."""

    name: PlainText
    samples: Annotated[int, Strict(), Ge(0), Le(MAX_COUNT)]
    bytes: Count
    sha256: Sha256


@dataclass
class Manifest:
    """Describes a folder of shards: what they hold and which tokenizer made them, by its two fingerprints.

    `skipped` lists the images that could not be read, each with its `file` and the `reason`. `tokenizer_settings` are
    the options that made the tokenizer, with its class as `_target_`; training on the shards makes the same one.
    """

    tokenizer: PlainText
    tokenizer_sha256: PlainText
    resolution: Side
    grid: Annotated[list[Side], Len(2, 2)]
    codebook_size: Annotated[int, Strict(), Ge(1), Le(MAX_TABLE)]
    class_names: Annotated[list[PlainText], MaxLen(MAX_TABLE)]
    views: Annotated[list[PlainText], MinLen(1)]
    pack_size: Count
    splits: dict[PlainText, list[Shard]]
    skipped: list[dict[str, str]] = field(default_factory=list)
    tokenizer_settings: dict[str, Any] | None = None
    codes_sha256: PlainText | None = None
    version: int = VERSION

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def all_shards(self) -> list[Shard]:
        """Returns the shards of all splits."""
        return list(chain(*self.splits.values()))

    def most_bytes(self, shard: Shard) -> int:
        """Returns how many bytes the samples of a shard can need: in each pack three arrays, which have headers."""
        packs = -(-shard.samples // self.pack_size)
        values = shard.samples * (len(self.views) * self.num_tokens + 2)  # with a class and a number of the image
        return MAX_ITEM * values + packs * len(ARRAYS) * MAX_HEADERS + MAX_END

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
            manifest = TypeAdapter(cls).validate_python(parse_json(path.read_bytes(), path))
        except ValueError as error:  # an InputError is one, too
            if not isinstance(error, ValidationError):
                raise InputError(f"{path}: this is no manifest of token shards.") from error
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = f"{place}: {first['msg']}" if place else first["msg"]
            raise InputError(f"{path}: this is no manifest of token shards. {reason}.") from error
        if manifest.num_tokens > MAX_TOKENS:
            raise InputError(f"{path}: grid={manifest.grid}: expected at most {MAX_TOKENS:,} tokens.")
        shards = manifest.all_shards()
        for shard in shards:
            if Path(shard.name).name != shard.name or len(os.fsencode(shard.name)) > MAX_NAME:
                raise InputError(f"{path}: the shard name {shard.name!r} is no plain file name.")
            if shard.bytes > (most := manifest.most_bytes(shard)):
                raise InputError(
                    f"{path}: the shard {shard.name} has {shard.bytes:,} bytes; expected at most {most:,} for its "
                    f"{shard.samples:,} samples."
                )
        # Shards without a readable image are alike.
        hashes = [shard.sha256 for shard in shards if shard.samples]
        for values in ([shard.name for shard in shards], hashes):
            value, count = Counter(values).most_common(1)[0] if values else ("", 1)
            if count > 1:
                raise InputError(f"{path}: it has the shard {value} {count} times.")
        if manifest.version != VERSION:
            raise InputError(f"{path}: version {manifest.version}; expected {VERSION}.")
        return manifest
