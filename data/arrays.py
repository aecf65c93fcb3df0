"""Reads arrays of files that may come from anybody."""

import io
import math

import numpy as np
from numpy.lib import format as npy

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def parse_npy(content: bytes) -> np.ndarray:
    """Returns the array of an .npy file as a view of its bytes, so that a header can't claim more memory than is there.

    Raises:
        ValueError: if these are not the bytes of such a file, whole and with plain numbers.
    """
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran_order, dtype = HEADERS[version](file)
    expected = math.prod(shape) * dtype.itemsize
    if fortran_order or dtype.hasobject or min(shape, default=1) < 0 or expected != len(content) - file.tell():
        raise ValueError(f"shape {shape} of {dtype} in {len(content)} bytes")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
