"""A run whose checkpoint an older version wrote goes on and ends with the same bits."""

import pytest
import torch

from enat.checkpoints.names import join_blocks
from enat.checkpoints.weights import read_file

DEBUG = "experiment=debug"


def in_older_names(content):
    """Renames the weights of a checkpoint to those of the version without an encoder and a decoder of their own."""
    state = content["state_dict"]
    ema = content["callbacks"]["EMA"]
    older_ema = {**ema, "net": join_blocks(ema["net"])}
    return {**content, "state_dict": join_blocks(state), "callbacks": {**content["callbacks"], "EMA": older_ema}}


@pytest.mark.slow
def test_resumed_run(command, tmp_path):
    command(DEBUG, f"output={tmp_path}/whole")
    command(DEBUG, "trainer.max_steps=2", f"output={tmp_path}/resumed")
    checkpoints = tmp_path / "resumed" / "checkpoints"
    older = in_older_names(read_file(checkpoints / "last.ckpt"))
    assert any(name.startswith("net.blocks.2.") for name in older["state_dict"])  # the decoder's
    assert not any("encoder." in name or "decoder." in name for name in older["callbacks"]["EMA"]["net"])
    for path in checkpoints.iterdir():
        path.unlink()
    torch.save(older, checkpoints / "last.ckpt")
    assert "step 2; resume=false starts anew" in command(DEBUG, f"output={tmp_path}/resumed").out
    whole, resumed = (read_file(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "resumed"))
    for one, other in (
        (whole["state_dict"], resumed["state_dict"]),
        (whole["callbacks"]["EMA"]["net"], resumed["callbacks"]["EMA"]["net"]),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    moments = [content["optimizer_states"][0]["state"] for content in (whole, resumed)]
    assert moments[0].keys() == moments[1].keys()
    for number, moment in moments[0].items():
        assert torch.equal(moment["exp_avg"], moments[1][number]["exp_avg"])
