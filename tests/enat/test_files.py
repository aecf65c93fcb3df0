"""Work in a folder goes on with the same settings only, and what differs is named."""

import re
from pathlib import Path

import pytest

from enat.errors import InputError
from enat.files import refuse_other_work, write_atomically
from enat.images import read_facts

SETTINGS = {
    "seed": 0,
    "module": {"_target_": "enat.module.MaskedTokenModule", "net": {"width": 96, "dropout": 0.1}},
    "betas": (0.9, 0.99),
    "sizes": [{"_target_": "data.shards.Shard", "n": 1}],
}


def test_the_same_settings_go_on():
    refuse_other_work(Path("run"), SETTINGS, SETTINGS, "another run")
    moved = {**SETTINGS, "betas": [0.9, 0.99], "sizes": [{"_target_": "elsewhere.Shard", "n": 1}], "new": None}
    moved["module"] = {**SETTINGS["module"], "_target_": "enat.lightning.MaskedTokenModule"}
    refuse_other_work(Path("run"), SETTINGS, moved, "another run")


def test_every_setting_that_differs_is_named():
    wanted = {**SETTINGS, "seed": 5, "resume": True, "betas": [0.9], "sizes": [{"_target_": "data.Shards", "n": 1}]}
    wanted["module"] = {"_target_": "enat.module.MaskedTokenModule", "net": {"width": 128, "dropout": 0.1}}
    sentence = (
        "run: the folder holds another run (betas: [0.9, 0.99] before, [0.9] now; module.net.width: 96 before, "
        "128 now; resume: null before, true now; seed: 0 before, 5 now; sizes[0]._target_: Shard before, Shards now); "
        "expected the same settings, another output=DIR, or resume=false for a new folder."
    )
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        refuse_other_work(Path("run"), SETTINGS, wanted, "another run")


def test_the_choices_can_be_others():
    with pytest.raises(InputError, match=r"expected the same settings, or patience\.$"):
        refuse_other_work(Path("run"), {"a": 1}, {"a": 2}, "another run", "or patience")


def test_a_hash_is_shown_in_short():
    """Two of them would fill the terminal."""
    with pytest.raises(InputError, match=r"\(sha256: aaaaaaaa\.\.\. before, bbbbbbbb\.\.\. now\)"):
        refuse_other_work(Path("run"), {"sha256": "a" * 64}, {"sha256": "b" * 64}, "another run")
    with pytest.raises(InputError, match=f"name: {'a' * 63} before, null now"):
        refuse_other_work(Path("run"), {"name": "a" * 63}, {}, "another run")


@pytest.mark.parametrize(("name", "reason"), [("file/x", "Not a directory"), ("x" * 255, "File name too long")])
def test_a_file_that_can_not_be_written_is_named(tmp_path, name, reason):
    """And not the temporary one, which can't be removed either."""
    (tmp_path / "file").write_text("whole")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: can't be written: {reason}; an earlier file")):
        write_atomically(tmp_path / name, b"")


def test_two_processes_of_the_same_number_write_the_same_file(tmp_path):
    """As in containers on two machines: each writes a whole file, and the last one stays."""
    path = tmp_path / "file"

    def write(file):
        file.write(b"fir")
        write_atomically(path, b"second")
        assert path.read_bytes() == b"second"
        file.write(b"st")

    write_atomically(path, write)
    assert path.read_bytes() == b"first"
    assert [path] == list(tmp_path.iterdir())


def test_the_facts_of_a_picture_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"x\.png: can't be read: No such file or directory\.$"):
        read_facts(tmp_path / "x.png")
