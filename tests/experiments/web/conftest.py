"""A folder of small weights, and what the page offers for it."""

import pytest

import enat
from experiments.web.choices import Choices


@pytest.fixture
def folder(make_pipeline, tmp_path):
    make_pipeline().save(tmp_path / "folder")
    return tmp_path / "folder"


@pytest.fixture
def choices(folder):
    return Choices(enat.load(folder))
