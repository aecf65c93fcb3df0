"""Loads files of torch.save, after a look at their pickle, so that a small file can't take all memory or time.

torch calls only functions of a list of its own when it loads weights. Some of these make much out of little, such as
`bytearray(10**10)`, and others copy what they get, again and again. Here, the list is shorter, and copies are counted.
For that, a pickle is gone through as torch would do it, on a stack of sizes in place of values.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from enat.errors import InputError
from enat.files import MAX_DEPTH

# Classes of other libraries that checkpoints name beside their weights: callbacks and options. None of them is made.
OTHER_LIBRARIES = ("pytorch_lightning.", "lightning.", "omegaconf.", "typing.", "collections.")
CALLED = re.compile(
    r"collections\.(OrderedDict|Counter)|(builtins|__builtin__)\.(set|complex)|_codecs\.encode|"
    r"torch\._utils\._rebuild_(tensor(_v[23])?|parameter|meta_tensor_no_storage)|torch\.nn\.parameter\.Parameter|"
    r"torch\.(Size|device)|torch\.serialization\._get_layout"
)
NAMED = re.compile(
    r"torch\.(cuda\.)?\w+Storage|torch\.storage\.UntypedStorage|torch\.(bool|(u?int|b?float|complex)\d\w*)"
)
ENCODED = ("_codecs.encode", "latin1")  # how pickles of protocol 2 have bytes; other encodings multiply them
MAX_STEPS = 2**22  # of a pickle, and items that it copies; a checkpoint of ours has some ten thousand
MAX_BYTES = 2**27  # of a pickle, without the numbers of the weights
OF_OLDER_FILES = 5  # pickles at the beginning of a file that an older version of torch wrote
SAVE_ALONE = "save the weights alone: torch.save(model.state_dict(), FILE)"
LARGEST = 2**40  # sizes beyond this are all the same


def load_pickle(path: Path) -> Any:
    """Loads a file of torch.save. Nothing in it is executed.

    Raises:
        InputError: if it is damaged, or wants to run code or to take much memory or time.
    """
    try:
        is_archive = _is_archive(path)  # then torch reads a weight when it is used
        others = [name for name in _names_in_pickle(path, is_archive) if name.startswith(OTHER_LIBRARIES)]
        with torch.serialization.safe_globals([(_Nothing, name) for name in others]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except (InputError, MemoryError):  # the memory of this machine, since what the pickle takes has been counted
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(path, "is no checkpoint or holds more than plain weights") from error
    except Exception as error:  # of a damaged file, torch and the functions that it calls raise errors of any kind
        raise InputError(f"weights={path}: the file is truncated or no checkpoint.") from error


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(
        f"weights={path}: refused, since it {reason}; nothing in it was run. A program that you trust can {SAVE_ALONE}."
    )


class _Nothing:
    """Stands in for a class of another library that a file names beside its weights."""

    def __init__(self, *_: Any):
        pass


def _is_archive(path: Path) -> bool:
    """Says, as torch does, whether a file is an archive, as torch writes them now.

    Raises:
        InputError: for an archive with a compressed member, whose bytes torch would take for weights.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"weights={path}: {member.filename} is compressed; expected a file of torch.save.")
    return True


def _names_in_pickle(path: Path, is_archive: bool) -> set[str]:
    """Returns the names of the classes and functions in a file, after a check of what loading it would take.

    Raises:
        InputError: for a name that weights do not need, and for a pickle that would take much memory or time.
    """
    scan = _Scan(path)
    if is_archive:
        # The reader of torch.load, which has no public name: another one might find another pickle in the archive.
        content = torch._C.PyTorchFileReader(str(path)).get_record("data.pkl")
        scan.go_through(io.BytesIO(content[:MAX_BYTES]))
        return scan.names
    with path.open("rb") as file:
        content = file.read(MAX_BYTES)
    if content and not content.startswith(pickle.PROTO):
        raise pickle.UnpicklingError("no pickle")
    stream = io.BytesIO(content)
    for _ in range(OF_OLDER_FILES):
        scan.go_through(stream)
    return scan.names


@dataclass(slots=True, eq=False)
class _Value:
    """Stands for a value of a pickle.

    Attributes:
        size: the number of values in it, with those inside of others when they were put there.
        parts: the values in a tuple; None for anything else.
        depth: of tuples in one another.
        literal: a text or a number, or the name of a class or function.
    """

    size: int = 1
    parts: Sequence["_Value"] | None = None
    depth: int = 0
    literal: Any = None


class _Scan:
    """Goes through pickles, and counts what loading them would take.

    Args:
        path: of the file, for errors.
    """

    def __init__(self, path: Path):
        self.path = path
        self.names: set[str] = set()
        self.steps = 0

    def go_through(self, stream: io.BytesIO) -> None:
        """Goes through one pickle, to its end."""
        self.stack: list[_Value] = []
        self.below: list[list[_Value]] = []  # what is below each mark
        self.memo: dict[int, _Value] = {}
        for opcode, argument, _ in pickletools.genops(stream):
            self._count(1)
            self._step(opcode, argument)

    def _count(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise _refusal(self.path, f"takes more than {MAX_STEPS:,} steps to load")

    def _step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        if opcode.name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif opcode.name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif opcode.name == "GLOBAL":
            self.stack.append(_Value(literal=self._checked_name(argument.replace(" ", ".", 1))))
        elif opcode.stack_after:
            values = self._popped(opcode)
            self.stack.append(self._result(opcode.name, values, argument))

    def _checked_name(self, name: str) -> str:
        if not (name.startswith(OTHER_LIBRARIES) or CALLED.fullmatch(name) or NAMED.fullmatch(name)):
            raise _refusal(self.path, f"is no checkpoint or holds more than plain weights ({name[:100]})")
        self.names.add(name)
        return name

    def _popped(self, opcode: pickletools.OpcodeInfo) -> list[_Value]:
        """Takes from the stack what an opcode works on."""
        count = len(opcode.stack_before)
        above: list[_Value] = []
        if pickletools.markobject in opcode.stack_before:
            count -= 2  # the mark, and what is above it
            above = self.stack
            self.stack = self.below.pop()
        start = len(self.stack) - count
        if start < 0:
            raise IndexError(opcode.name)
        values = self.stack[start:] + above
        del self.stack[start:]
        return values

    def _result(self, name: str, values: list[_Value], argument: Any) -> _Value:
        """Returns what an opcode leaves on the stack, and counts what it copies."""
        if "TUPLE" in name:
            return self._tuple(values)
        if name in ("REDUCE", "NEWOBJ"):
            self._check_call(*values)
            return _Value(size=values[1].size)
        if name == "BUILD":
            self._count_copy(values[1])
            return values[0]
        if name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            if name.startswith("SET"):
                self._count(sum(key.size for key in values[1::2]))  # which are hashed
            values[0].size = min(LARGEST, values[0].size + sum(value.size for value in values[1:]))
            return values[0]
        return _Value(literal=argument)

    def _tuple(self, values: list[_Value]) -> _Value:
        depth = 1 + max((value.depth for value in values), default=0)
        if depth > MAX_DEPTH:
            raise InputError(f"weights={self.path}: what it says of itself nests more than {MAX_DEPTH} levels deep.")
        return _Value(min(LARGEST, 1 + sum(value.size for value in values)), values, depth)

    def _check_call(self, called: _Value, arguments: _Value) -> None:
        """Refuses calls of other functions, and counts what a call copies."""
        name = str(called.literal)
        if arguments.parts is None or not (CALLED.fullmatch(name) or name.startswith(OTHER_LIBRARIES)):
            raise pickle.UnpicklingError("a call of something else")
        texts = [part.literal for part in arguments.parts]
        if name == ENCODED[0] and texts[1:] != [ENCODED[1]]:
            raise _refusal(self.path, f"holds more than plain weights ({name})")
        self._count_copy(arguments)

    def _count_copy(self, value: _Value) -> None:
        """Counts a value that is copied, which has grown since it was put where it is, and the texts in it."""
        parts = value.parts or ()
        texts = (part.literal for part in parts if isinstance(part.literal, str))
        self._count(value.size + sum(part.size for part in parts) + sum(map(len, texts)))
