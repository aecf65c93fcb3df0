"""Checkpoints of others whose pickle takes much memory or time, or is damaged."""

import collections
import zipfile

import pytest
import torch

from enat.checkpoints.weights import read_file
from enat.errors import InputError

DAMAGED = "the file is truncated or no checkpoint"


def named(name):
    """Puts a class or a function on the stack."""
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def text(content):
    """Puts a text on the stack."""
    return b"X" + len(content.encode()).to_bytes(4, "little") + content.encode()


def number(value):
    """Puts a number on the stack."""
    return b"J" + value.to_bytes(4, "little", signed=True)


def copies(function, original, further=b"\x85"):
    """Calls a function of the same value again and again."""
    return named(function) + b"q\x01" + original + b"q\x02" + (b"h\x01h\x02" + further + b"R") * 4000


def written(path, pickled):
    """Writes an archive of torch.save with this pickle, and returns its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {
            "data.pkl": b"\x80\x02" + pickled + b".",
            "version": "3\n",
            "byteorder": "little",
        }.items():
            archive.writestr(f"archive/{name}", content)
    return path


NUMBERS = b"](" + b"".join(map(number, range(2000))) + b"e"
NAMES = b"}(" + b"".join(text(f"{value}") + b"N" for value in range(2000)) + b"u"
ENCODE = named("_codecs.encode")
BOMBS = {
    "a bytearray": (named("builtins.bytearray") + number(10**9) + b"\x85R", "(builtins.bytearray)"),
    "a bytearray of Python 2": (named("__builtin__.bytearray") + number(10**9) + b"\x85R", "(__builtin__.bytearray)"),
    "a tensor": (named("torch.FloatTensor") + number(10**9) + b"\x85R", "(torch.FloatTensor)"),
    "a storage": (named("torch.storage.UntypedStorage") + number(10**9) + b"\x85R", "holds more than plain weights"),
    "a conversion": (named("torch._utils._rebuild_device_tensor_from_cpu_tensor"), "_from_cpu_tensor)"),
    "another encoding": (ENCODE + text("a") + text("utf-32") + b"\x86R", "(_codecs.encode)"),
    "no encoding": (ENCODE + text("a") + b"\x85R", "(_codecs.encode)"),
    "arguments in a list": (ENCODE + b"](" + text("a") + text("utf-32") + b"eR", "holds more than plain weights"),
    "copies of a text": (copies("_codecs.encode", text("a" * 2000), text("latin1") + b"\x86"), "4,194,304 steps"),
    "copies of a set": (copies("builtins.set", NUMBERS), "4,194,304 steps"),
    "copies of a counter": (copies("collections.Counter", NUMBERS), "4,194,304 steps"),
    "copies of attributes": (
        named("collections.OrderedDict") + b"q\x01" + NAMES + b"q\x02" + b"h\x01)Rh\x02b" * 4000,
        "4,194,304 steps",
    ),
    "a key that doubles": (b")q\x01" + b"h\x01h\x01\x86q\x01" * 23 + b"}h\x01Ns", "4,194,304 steps"),
    "a list that doubles": (b"]q\x01Na" + b"](h\x01h\x01eq\x01" * 23 + named("builtins.set") + b"h\x01\x85R", "steps"),
    "a deep key": (b")" + b"\x85" * 100_000, "nests more than 50 levels deep"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_pickle_takes_little(tmp_path, bomb):
    pickled, sentence = BOMBS[bomb]
    with pytest.raises(InputError) as refused:
        read_file(written(tmp_path / "small.ckpt", pickled))
    assert str(refused.value).startswith(f"weights={tmp_path / 'small.ckpt'}: ")
    assert sentence in str(refused.value)


def test_many_empty_values(tmp_path, monkeypatch):
    """Each takes a byte of the file, and 216 of memory."""
    monkeypatch.setattr("enat.checkpoints.pickles.MAX_STEPS", 10_000)
    with pytest.raises(InputError, match="takes more than 10,000 steps to load"):
        read_file(written(tmp_path / "small.ckpt", b"\x8f" * 10_001))


def test_a_file_of_an_older_version_takes_little(tmp_path):
    """Which begins with several pickles."""
    path = tmp_path / "older.ckpt"
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for place in (0, whole.index(b"a", 100)):
        start = whole.rindex(b"\x80\x02", 0, place + 2)
        path.write_bytes(whole[:start] + b"\x80\x02" + BOMBS["a bytearray"][0] + b"." + whole[start:])
        with pytest.raises(InputError, match=r"\(builtins\.bytearray\); nothing in it was run"):
            read_file(path)


CONTENT = {
    "a": torch.nn.Parameter(torch.zeros(2)),
    "b": torch.zeros(2).to(torch.float8_e4m3fn),
    "state_dict": collections.OrderedDict(x=torch.zeros(2, 3).T),
    "numbers": {1, 2, 2**70},
    "milestones": collections.Counter([1, 1, 2]),
    "bytes": b"\xff\x00ab",
    "types": [torch.float32, torch.bfloat16, torch.bool, torch.uint16, torch.complex64],
    "others": (torch.Size([2, 3]), torch.device("cpu"), torch.strided, 1j, None, True),
}


@pytest.mark.parametrize("is_archive", [True, False])
def test_what_torch_saves_is_read(tmp_path, is_archive):
    content = {name: value for name, value in CONTENT.items() if is_archive or name != "b"}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=is_archive)
    read = read_file(tmp_path / "x.ckpt")
    assert {name: value for name, value in read.items() if name not in "ab" and name != "state_dict"} == {
        name: value for name, value in content.items() if name not in "ab" and name != "state_dict"
    }
    assert torch.equal(read["a"], content["a"])
    assert torch.equal(read["state_dict"]["x"], content["state_dict"]["x"])


DAMAGES = {
    "no argument": b"R",
    "nothing remembered": b"h\x05",
    "nothing": b"",
    "a key without a hash": b"}]Ns",
    "no list to add to": b"NNa",
    "a number that ends": b"J\x01",
    "a text that is none": b"X\x01\x00\x00\x00\xff",
    "other numbers of a weight": b"}" + text("a") + named("torch.FloatStorage") + b"Q",
    "a storage that is a number": b"K\x01Q",
    "a storage that is not there": b"("
    + text("storage")
    + named("torch.FloatStorage")
    + text("7")
    + text("cpu")
    + b"K\x05tQ",
    "a weight of a number": named("torch._utils._rebuild_tensor_v2") + b"(K\x05K\x05K\x05K\x05K\x05K\x05tR",
    "a counter of a number": named("collections.Counter") + b"K\x05\x85R",
    "another device": named("torch.device") + text("z") + b"\x85R",
    "another layout": named("torch.serialization._get_layout") + text("z") + b"\x85R",
    "a text beyond latin1": named("_codecs.encode") + text("\u20ac") + text("latin1") + b"\x86R",
    "marks without an end": b"(" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pickle(tmp_path, damage):
    path = written(tmp_path / "damaged.ckpt", DAMAGES[damage])
    with pytest.raises(
        InputError, match=r"damaged\.ckpt: (the file is truncated or|refused, since it is) no checkpoint"
    ):
        read_file(path)


def test_memory_that_is_missing_is_no_damage(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.ckpt")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        read_file(tmp_path / "x.ckpt")


def test_going_on_passes_over_a_damaged_pickle(command, tmp_path):
    run = ["experiment=debug", "metrics=none", f"output={tmp_path / 'run'}"]
    assert command(*run, "trainer.max_steps=1").status == 0
    damaged = written(tmp_path / "run/checkpoints/step_0000009.ckpt", DAMAGES["a key without a hash"])
    outcome = command(*run, "trainer.max_steps=2")
    assert outcome.status == 0, outcome.err
    assert f"{damaged}: the file is truncated or no checkpoint. Taking another checkpoint." in outcome.out.replace(
        "weights=", ""
    )
