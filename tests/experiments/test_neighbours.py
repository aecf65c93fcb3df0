"""task=neighbours on digits."""

from pathlib import Path

import pytest
import torch

from enat.metrics import neighbours as metrics
from experiments import neighbours

HELD_OUT = "{_target_:data.references.TensorImages,images:{_target_:data.toy.digits.digit_images,split:held_out}}"


@pytest.fixture
def checkpoint(command, tmp_path):
    assert command("experiment=debug", "callbacks.sample_grid=null", f"output={tmp_path}/run").status == 0
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def test_every_sample_is_another_one_in_blocks_of_any_size(command, checkpoint, monkeypatch, tmp_path):
    """Blocks read in another size than they are drawn in had the noise of each other, or lacked images."""
    seen = []

    def spy(images, *arguments):
        numbers, features = metrics.read_features(images, *arguments)
        seen.append((images.num_images, numbers, features))
        return numbers, features

    monkeypatch.setattr(neighbours, "read_features", spy)
    sizes = ["metrics.evaluation.block_size=20", "metrics.evaluation.batch_size=20"]
    outcome = command("task=neighbours", f"weights={checkpoint}", f"+metrics.held_out={HELD_OUT}", *sizes)
    assert outcome.status == 0, outcome.err
    (_, _, of_training), (count, numbers, features), _ = seen
    assert len(of_training) == 1297
    assert numbers.tolist() == [*range(count)]
    assert len(torch.unique(features, dim=0)) == count == 40
    assert all(Path(picture).is_file() for picture in outcome.results["pictures"])
    assert {"training", "held_out", "features_sha256"} <= outcome.results.keys()
