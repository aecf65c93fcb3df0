"""The notebook runs from its first cell to its last, and shows the pictures that it speaks of."""

import base64
import io
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import enat

ROOT = Path(__file__).parent.parent
STEPS = enat.load(ROOT / "examples" / "emoji").sampler.num_steps
PATH = ROOT / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def pictures():
    """The pictures among the outputs of each cell, by the number of the cell."""
    notebook = nbformat.read(PATH, as_version=4)
    nbformat.validate(notebook)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(PATH.parent)}}).execute()
    return {
        number: [
            Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
            for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})
        ]
        for number, cell in enumerate(notebook.cells)
    }


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(PATH, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
    assert PATH.stat().st_size < 20_000


@pytest.mark.slow
def test_it_shows_its_pictures(pictures):
    grid, settings, reveal, saved = (found for found in pictures.values() if found)
    assert [picture.size for picture in grid] == [(8 * 68, 3 * 68)]
    assert [picture.size for picture in settings] == [(8 * 68, 68)] * 3
    assert len({picture.tobytes() for picture in settings}) == 3  # settings change the images
    assert [picture.size for picture in reveal] == [((STEPS + 1) * 68, 68)] * 2
    assert [picture.size for picture in saved] == [(2 * 68, 68)]


@pytest.mark.slow
def test_faces_are_yellow_and_reveals_begin_dark(pictures):
    grid, _, reveal, saved = (np.asarray(found[0]).astype(int) for found in pictures.values() if found)
    face = grid[68:132, :64]
    red, _, blue = face[20:44, 20:44].mean((0, 1))
    assert red > blue + 50
    assert (reveal[:64, :64] == [41, 56, 107]).all()  # all tokens are masked
    assert not (reveal[:64, STEPS * 68 : STEPS * 68 + 64] == [41, 56, 107]).all(2).any()
    assert (saved[:64, :64] == saved[:64, 68:132]).all()  # a folder that is saved loads to the bit
