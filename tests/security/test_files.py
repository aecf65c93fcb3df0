"""Files of others: pipes, programs as pictures, labels, links, and folders that hold something else."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.arrays import parse_npy
from data.images import ImageList, find_images, load_rgb
from data.scored_images import ImageWriter
from enat.errors import InputError, printable
from enat.files import MARK, make_own_folder, remove_own_folder, write_atomically
from enat.images import Block


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_both_orders(tmp_path, order):
    array = np.asarray(np.arange(12.0).reshape(3, 4), order=order)
    np.save(tmp_path / "x.npy", array)
    assert np.array_equal(parse_npy((tmp_path / "x.npy").read_bytes()), array)


def test_a_pipe_in_a_folder_of_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    files, ignored = find_images(tmp_path)
    assert [file.name for file in files] == ["image.png"]
    assert ignored == [f"{tmp_path / 'pipe.png'}: a pipe or a device"]


def test_the_content_of_another_format(tmp_path):
    """Pillow would start Ghostscript for it."""
    (tmp_path / "image.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"image\.png: unreadable: cannot identify image file"):
        load_rgb(tmp_path / "image.png")


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname"])
def test_labels_name_no_files_elsewhere(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (tmp_path / "labels.csv").write_text(f"file,class\n{name},a\n")
    with pytest.raises(InputError, match="is not in the folder of the images"):
        ImageList.find(folder, tmp_path / "labels.csv")


def test_folders_of_others_stay(tmp_path):
    theirs = tmp_path / "unfinished"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    remove_own_folder(theirs)
    assert (theirs / "thesis.txt").exists()
    with pytest.raises(InputError, match="this exists already and is of another program; expected another output=DIR"):
        make_own_folder(theirs)
    own = tmp_path / "own"
    make_own_folder(own)
    make_own_folder(own)
    (own / "sub").mkdir()
    (own / "link").symlink_to(theirs)
    remove_own_folder(own)
    assert not own.exists()
    assert (theirs / "thesis.txt").exists()
    own.symlink_to(theirs)
    (theirs / MARK).touch()
    remove_own_folder(own)
    assert (theirs / "thesis.txt").exists()


def test_an_archive_that_is_complete_is_not_packed_again(tmp_path):
    """A process may be killed while it removes the images that it has packed."""
    writer = ImageWriter(tmp_path / "images_seed_0")
    writer.prepare(anew=True)
    writer.write(Block(torch.arange(3), torch.rand(3, 3, 8, 8)))
    archive = Path(writer.finish(3, npz=True, keep=True))
    before = archive.read_bytes()
    (tmp_path / "images_seed_0/000001.png").unlink()
    writer.prepare(anew=False)
    assert writer.finish(3, npz=True, keep=False) == str(archive)
    assert archive.read_bytes() == before
    assert not (tmp_path / "images_seed_0").exists()
    (tmp_path / "images_seed_1.npz").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"images_seed_1\.npz: this exists already; expected another output=DIR"):
        ImageWriter(tmp_path / "images_seed_1").prepare(anew=True)


@pytest.mark.parametrize("name", ["unfinished", "images_seed_0"])
def test_an_evaluation_removes_nothing_of_others(command, tmp_path, name):
    run = tmp_path / "run"
    assert command("experiment=debug", "metrics=none", "trainer.max_steps=1", f"output={run}").status == 0
    output = tmp_path / "scores"
    (output / name).mkdir(parents=True)
    (output / name / "thesis.txt").write_text("mine")
    outcome = command("task=evaluate", f"weights={run}", "metrics=digits", f"output={output}", "png=true")
    assert outcome.status == 1
    assert f"{output / name}: this exists already and is of another program" in outcome.err
    assert (output / name / "thesis.txt").exists()


def test_checkpoints_of_another_run_stay(command, tmp_path):
    options = ["experiment=debug", "metrics=none", "trainer.max_steps=2", "callbacks.checkpoint.keep=1"]
    assert command(*options, f"output={tmp_path / 'first'}").status == 0
    folder = tmp_path / "first/checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcome = command(*options, f"output={tmp_path / 'second'}", f"callbacks.checkpoint.folder={folder}", "seed=1")
    assert outcome.status == 1
    assert "checkpoints are looked for in" in outcome.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_name_is_no_path(command, tmp_path, monkeypatch):
    outcome = command("experiment=debug", "name=../../x", f"output={tmp_path / 'run'}")
    assert outcome.status == 1
    assert "name=../../x: expected a name without /; output=DIR says the folder." in outcome.err


def test_writing_follows_no_link(tmp_path):
    target = tmp_path / "target.txt"
    target.write_text("mine")
    (tmp_path / "config.yaml").symlink_to(target)
    write_atomically(tmp_path / "config.yaml", b"new")
    assert target.read_text() == "mine"
    assert (tmp_path / "config.yaml").read_text() == "new"


def test_control_characters_are_escaped():
    assert printable("a\x1b[31mb\x07\nc\x9b") == "a\\x1b[31mb\\x07\nc\\x9b"
