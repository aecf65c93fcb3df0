"""Checkpoints of older versions, whose blocks are in one numbering, load into encoder and decoder."""

import pytest
import torch
from safetensors.torch import save_file

from enat.checkpoints.names import join_blocks, split_blocks
from enat.checkpoints.weights import load_weights
from enat.errors import InputError
from enat.module import MaskedTokenModule


def test_names():
    names = [
        "encoder.0.mlp.0.bias",
        "encoder.1.mlp.0.bias",
        "decoder.0.mlp.0.bias",
        "decoder.10.mlp.0.bias",
        "head.0.bias",
    ]
    state = {name: torch.tensor(number) for number, name in enumerate(names)}
    older = join_blocks(state)
    assert list(older) == [*(f"blocks.{i}.mlp.0.bias" for i in (0, 1, 2, 12)), "head.0.bias"]
    assert split_blocks(older, 2) == state
    assert split_blocks(state, 2) == state
    assert split_blocks({"net.blocks.2.mlp.0.bias": 0}, 2) == {"net.decoder.0.mlp.0.bias": 0}


@pytest.mark.parametrize("kind", ["EMA", "raw", "safetensors"])
def test_weights_of_older_versions(make_net, tmp_path, kind):
    """They load from a checkpoint with and without EMA, and from an exported file."""
    net, other = make_net(encoder_depth=3, decoder_depth=2), make_net(encoder_depth=3, decoder_depth=2)
    older = join_blocks({name: tensor + 1 for name, tensor in net.state_dict().items()})
    raw = {f"net.{name}": tensor for name, tensor in join_blocks(net.state_dict()).items()}
    path = tmp_path / f"older.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file(older, path)
    elif kind == "EMA":
        torch.save({"state_dict": raw, "callbacks": {"EMA": {"net": older}}, "net_sizes": net.sizes}, path)
    else:
        torch.save({"state_dict": {f"net.{name}": x for name, x in older.items()}, "net_sizes": net.sizes}, path)
    assert load_weights(other, str(path))["kind"] == ("EMA" if kind == "EMA" else "raw")
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor + 1)


def test_another_depth_is_told(make_net, tmp_path, capsys):
    """Names of this version show where the decoder starts, those of older files do not."""
    net, other = make_net(encoder_depth=3, decoder_depth=2), make_net(encoder_depth=2, decoder_depth=3)
    save_file(net.state_dict(), tmp_path / "new.safetensors")
    with pytest.raises(InputError, match="encoder_depth 3 instead of 2, decoder_depth 2 instead of 3"):
        load_weights(other, str(tmp_path / "new.safetensors"))
    save_file(join_blocks(net.state_dict()), tmp_path / "older.safetensors")
    load_weights(other, str(tmp_path / "older.safetensors"))
    assert "does not say its num_heads=4, encoder_depth=2, decoder_depth=3" in capsys.readouterr().out
    with pytest.raises(InputError, match="depth 5 instead of 6"):
        load_weights(make_net(encoder_depth=5, decoder_depth=1), str(tmp_path / "older.safetensors"))


def test_a_module_takes_weights_of_older_versions(make_net):
    net, other = make_net(), make_net()
    older = {f"net.{name}": tensor + 1 for name, tensor in join_blocks(net.state_dict()).items()}
    checkpoint = {"state_dict": older}
    module = MaskedTokenModule(other, None, None, None, None)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor + 1)
