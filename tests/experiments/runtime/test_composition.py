"""Jobs of a multirun have the settings of the first file that the command names, so that others have to be alike."""

import re

import pytest

from data.manifest import Manifest
from enat.errors import InputError
from experiments.runtime.composition import primary_config


def test_shards_of_other_sizes_are_refused(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, classes in zip(folders, ("xy", "vw", "xyz"), strict=True):
        folder.mkdir()
        Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, list(classes), ["plain"], 100, {"train": []}).save(folder)
    first, same, other = folders
    assert primary_config(["-m", f"data.shards={first},{same}"]) == "config_of_files"
    sentence = (
        f"data.shards={first},{other}: num_classes is 2 in the one and 3 in the other; expected a command for each."
    )
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        primary_config(["-m", f"data.shards={first},{same},{other}"])


def test_options_whose_values_are_not_listed(tmp_path):
    """A search draws values of an interval, and Hydra finds those of a glob."""
    Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, ["x"], ["plain"], 100, {"train": []}).save(tmp_path)
    options = ["sampler.guidance_scale=interval(0,1)", "+preset=glob(*)"]
    assert primary_config(["-m", f"data.shards={tmp_path}", *options]) == "config_of_files"
