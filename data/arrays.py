"""Reads arrays of files that may come from anybody."""

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
MAX_UNPACKED = 2**30  # bytes of a compressed array, so that a small file can't fill the memory
MAX_TOTAL = 2**31  # of all compressed arrays that are read from a file
MAX_RATIO = 1032  # of what DEFLATE unpacks to what is packed


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Reads the header of an .npy file; returns the shape, whether the order is Fortran's, and the type.

    Raises:
        ValueError: if it is no such header.
    """
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the .npy format")
    try:
        shape, fortran_order, dtype = HEADERS[version](file)
    except (SyntaxError, TokenError, RecursionError, MemoryError, TypeError, KeyError) as error:  # NumPy parses Python
        raise ValueError("a damaged header") from error
    if dtype.hasobject or min(shape, default=1) < 0:
        raise ValueError(f"shape {shape} of {dtype}")
    return shape, fortran_order, dtype


def map_npy(path: Path) -> np.ndarray:
    """Maps the array of an .npy file into memory.

    Raises:
        OSError: if the file can't be read.
        ValueError: if it is no such file, whole and with plain numbers or texts.
    """
    with path.open("rb") as file:
        shape, fortran_order, dtype = read_npy_header(file)
        start = file.tell()
    if start + math.prod(shape) * dtype.itemsize != path.stat().st_size:
        raise ValueError(f"shape {shape} of {dtype} in {path.stat().st_size - start} bytes")
    if not math.prod(shape):
        return np.zeros(shape, dtype)  # nothing can't be mapped
    return np.asarray(np.memmap(path, dtype, "r", start, shape, "F" if fortran_order else "C"))


def parse_npy(content: bytes | bytearray) -> np.ndarray:
    """Returns the array of an .npy file as a view of its bytes, so that a header can't claim more memory than is there.

    Raises:
        ValueError: if these are not the bytes of such a file, whole and with plain numbers or texts.
    """
    file = io.BytesIO(content)
    shape, fortran_order, dtype = read_npy_header(file)
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise ValueError(f"shape {shape} of {dtype} in {len(content)} bytes")
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Reads those arrays of an .npz file whose name, or its part after `/`, is wanted; returns them and all names.

    Raises:
        ValueError: if an array is damaged, or compressed so that it unpacks to more than `MAX_UNPACKED` bytes, or all
            of them to more than `MAX_TOTAL`.
        zipfile.BadZipFile: if the file is no archive, or a damaged one.
        RuntimeError: if it is encrypted, or of a later version of the format.
    """
    arrays = {}
    total = 0
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        for name, member in members.items():
            if name.rpartition("/")[2] not in wanted:
                continue
            check_member(member, path)
            if is_packed(member):
                total += member.file_size
            if total > MAX_TOTAL or (is_packed(member) and member.file_size > MAX_UNPACKED):
                raise ValueError(f"{name} unpacks to {member.file_size} bytes")
            arrays[name] = parse_npy(bytearray(archive.read(member)))  # torch wants arrays that can be written to
    return arrays, list(members)


def check_member(member: zipfile.ZipInfo, path: Path) -> None:
    """Checks what an archive says of one of its arrays, before anything of that size is read.

    Raises:
        ValueError: for an array that is compressed in another way than NumPy does, or that can't have its size.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename} is compressed in another way than NumPy does")
    if member.file_size > (MAX_RATIO if is_packed(member) else 1) * path.stat().st_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes")


def is_packed(member: zipfile.ZipInfo) -> bool:
    """Says whether an array in an archive is compressed."""
    return member.compress_type != zipfile.ZIP_STORED
