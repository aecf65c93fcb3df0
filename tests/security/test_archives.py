"""Archives of arrays from others: what they claim, what they unpack to, and what can't be read."""

import zipfile

import numpy as np
import pytest
import torch

from data.arrays import read_npz
from data.references import ArchivedImages, StatisticsFile
from data.sources import TokenCacheSource
from enat.errors import InputError
from enat.metrics.accumulation import STATE, _restore
from enat.processes import Processes


def npy(shape: str, content: bytes = b"") -> bytes:
    """Returns an .npy file of bytes, whose header may claim any shape."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + content


def with_field(content: bytes, offsets: tuple[int, int], value: int) -> bytes:
    """Changes a byte of each header of an archive's members, where they are in the archive and in its list."""
    changed = bytearray(content)
    for mark, offset in zip((b"PK\x03\x04", b"PK\x01\x02"), offsets, strict=True):
        place = -1
        while (place := content.find(mark, place + 1)) >= 0:
            changed[place + offset] = value
    return bytes(changed)


ARCHIVES = {
    "encrypted": ("(60, 8, 8, 3)", 60 * 192, (6, 8), 1),
    "another compression": ("(60, 8, 8, 3)", 60 * 192, (8, 10), 99),
    "a later version": ("(60, 8, 8, 3)", 60 * 192, (4, 6), 99),
    "no rows": ("(60, 0, 8, 3)", 0, None, None),
    "huge sides": ("(2, 4294967296, 4294967296, 3)", 0, None, None),
    "many images": ("(10000000000000, 8, 8, 3)", 0, None, None),
    "huge images": ("(50, 9000, 9000, 3)", 2**20, None, None),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives_of_images_that_claim_too_much(tmp_path, kind):
    shape, size, offsets, value = ARCHIVES[kind]
    path = tmp_path / "images.npz"
    with pytest.raises(InputError, match=r"images\.npz: there is no such file\."):
        ArchivedImages(str(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", npy(shape, bytes(size)))
    if offsets:
        path.write_bytes(with_field(path.read_bytes(), offsets, value))
    with pytest.raises(InputError, match=r"images\.npz: expected an \.npz file with arr_0, uint8 images"):
        ArchivedImages(str(path))
    with pytest.raises(InputError, match=r"images\.npz: expected an \.npz file with"):
        StatisticsFile(str(path))


@pytest.mark.parametrize("kind", ["encrypted", "a later version"])
def test_statistics_that_are_encrypted(tmp_path, kind):
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4))
    path.write_bytes(with_field(path.read_bytes(), *ARCHIVES[kind][2:]))
    with pytest.raises(InputError, match="with mu and sigma"):
        StatisticsFile(str(path))


def test_arrays_that_unpack_to_too_much_together(monkeypatch, tmp_path):
    monkeypatch.setattr("data.arrays.MAX_TOTAL", 2**21)
    path = tmp_path / "statistics.npz"
    arrays = {f"p{number}/features": np.zeros((2**9, 2**8)) for number in range(4)}  # 1 MiB each
    np.savez_compressed(path, mu=np.zeros(4), sigma=np.eye(4), **arrays)
    with pytest.raises(InputError, match="with mu and sigma"):
        StatisticsFile(str(path))


def test_only_the_arrays_that_are_needed_are_unpacked(tmp_path):
    path = tmp_path / "statistics.npz"
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", b"0" * 2**20)
        archive.writestr("mu_s.npy", b"0" * 100)
    arrays, names = read_npz(path, {"mu", "sigma"})
    assert set(arrays) == {"mu", "sigma"}
    assert set(names) == {"mu", "sigma", "other", "mu_s"}
    with pytest.raises(InputError, match="with mu and sigma"):
        StatisticsFile(str(path))


def test_an_array_that_unpacks_to_too_much(monkeypatch, tmp_path):
    monkeypatch.setattr("data.arrays.MAX_UNPACKED", 2**20)
    path = tmp_path / "statistics.npz"
    np.savez_compressed(path, mu=np.zeros(2**18), sigma=np.eye(4))
    assert path.stat().st_size < 2**14
    with pytest.raises(InputError, match="with mu and sigma"):
        StatisticsFile(str(path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", npy("(9, 5)", b"x" * 44), npy("(2**60, 5)")])
def test_caches_of_tokens_that_are_none(tmp_path, content):
    (tmp_path / "train.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"train\.npy: truncated, or no \.npy file"):
        TokenCacheSource(tmp_path / "train.npy", 10)


def test_an_archive_in_place_of_a_cache_of_tokens(tmp_path):
    np.savez(tmp_path / "train.npz", tokens=np.zeros((2, 5), int))
    (tmp_path / "train.npz").rename(tmp_path / "train.npy")
    with pytest.raises(InputError, match=r"train\.npy: truncated, or no \.npy file"):
        TokenCacheSource(tmp_path / "train.npy", 10)


@pytest.mark.parametrize("content", [b"", b"no scores", b"\x80\x02}]K\x01s."])
def test_unfinished_scores_that_are_damaged(tmp_path, content):
    (tmp_path / STATE).write_bytes(content)
    with pytest.raises(InputError, match=r"the unfinished scores in it are damaged; delete it to score anew"):
        _restore({}, tmp_path, Processes(), torch.device("cpu"))
