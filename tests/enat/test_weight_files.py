"""Weights as other programs and other states of a network save them."""

import pytest
import torch

from enat.checkpoints.weights import load_exactly, read_file, select_state
from enat.errors import InputError
from enat.tokenizers.vqgan import VQGAN


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
        lambda state: {name.replace("encoder.0.", "encoder.0._orig_mod."): tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"net.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"ema": state, "model": {name: tensor + 1 for name, tensor in state.items()}},
        lambda state: {"model_ema": state},
    ],
)
def test_what_is_unambiguous_is_loaded(small_net, make_net, tmp_path, wrap):
    torch.save(wrap(small_net.state_dict()), tmp_path / "weights.pth")
    state, _ = select_state(read_file(tmp_path / "weights.pth"))
    other = make_net()
    torch.nn.init.zeros_(other.head_bias)
    load_exactly(other, state, "x")
    for name, tensor in small_net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(small_net, value):
    state = {**small_net.state_dict(), "head_bias": torch.full((13,), value)}
    with pytest.raises(InputError, match="weight head_bias holds NaN or infinite values"):
        load_exactly(small_net, state, "x")


def test_a_vqgan_with_the_networks_of_its_loss(tmp_path):
    sizes = {"codebook_size": 8, "code_width": 32, "channels": 32, "multipliers": [1, 1], "num_blocks": 1}
    state = VQGAN(**sizes, resolution=8).state_dict()
    torch.save({"state_dict": {**state, "loss.discriminator.weight": torch.zeros(3)}}, tmp_path / "vqgan.ckpt")
    loaded = VQGAN(**sizes, resolution=8, weights=str(tmp_path / "vqgan.ckpt"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    broken = {**state, "quantize.embedding.weight": torch.full((8, 32), torch.nan)}
    torch.save(broken, tmp_path / "nan.ckpt")
    with pytest.raises(InputError, match="holds NaN"):
        VQGAN(**sizes, resolution=8, weights=str(tmp_path / "nan.ckpt"))
