"""Weights as other programs and other states of a network save them."""

import pytest
import torch

from enat.checkpoints.warm_start import warm_start
from enat.checkpoints.weights import load_exactly, load_weights, read_file, select_state
from enat.errors import InputError
from enat.reuse import AllTokensReuse
from enat.tokenizers.pixels import PixelTokenizer
from enat.tokenizers.vqgan import VQGAN
from enat.variants import NAT, ContextReuse


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
        lambda state: {"ema": state, "state_dict": {name: tensor + 1 for name, tensor in state.items()}},
        lambda state: {"ema": {"decay": 0.9, "shadow": None}, "state_dict": state},
        lambda state: {"state_dict_ema": state, "state_dict": {name: tensor + 1 for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {f"student.backbone.{name}": tensor for name, tensor in state.items()},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: tensor.to(torch.float64) for name, tensor in state.items()},
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


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda bias: bias.long(), "weight head_bias is of type torch.int64; expected floating-point numbers"),
        (lambda bias: bias.to_sparse(), "weight head_bias is sparse; expected floating-point numbers"),
    ],
)
def test_weights_of_other_types(small_net, change, sentence):
    state = small_net.state_dict()
    with pytest.raises(InputError, match=sentence):
        load_exactly(small_net, {**state, "head_bias": change(state["head_bias"])}, "x")
    small = {**state, "head_bias": state["head_bias"].to(torch.float8_e4m3fn)}
    load_exactly(small_net, small, "x")  # a cast loses digits, and nothing else


@pytest.mark.parametrize("content", [{0: torch.zeros(2)}, {"state_dict": {0: torch.zeros(2)}}, {"state_dict": None}])
def test_files_that_hold_no_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    for read in (lambda: select_state(read_file(path)), lambda: VQGAN(8, 32, 32, [1, 1], 1, 8, weights=str(path))):
        with pytest.raises(InputError, match="expected a dictionary of weights by name, found other"):
            read()


def test_an_empty_dictionary_is_no_weights(make_net, tmp_path):
    """Another one in the file may hold them."""
    state = make_net().state_dict()
    torch.save({"ema": {}, "state_dict": state}, tmp_path / "x.ckpt")
    assert load_weights(make_net(), str(tmp_path / "x.ckpt"))["kind"] == "raw"
    torch.save({}, tmp_path / "y.ckpt")
    with pytest.raises(InputError, match="expected a dictionary of weights by name"):
        load_weights(make_net(), str(tmp_path / "y.ckpt"))


def test_another_variant_is_refused(make_net, tmp_path):
    """Its weights have the same names, so that it would be used without a word."""
    path = tmp_path / "a.pth"
    settings = {"module": {"net": {"_target_": "enat.reuse.AllTokensReuse"}}}
    torch.save({"state_dict": make_net().state_dict(), "settings": settings}, path)
    load_weights(make_net(AllTokensReuse), str(path))
    with pytest.raises(InputError, match=r"has variant AllTokensReuse, this one ENAT\. Choose the variant it was"):
        load_weights(make_net(), str(path))
    settings["module"]["net"] = {"_target_": "enat.variants.NAT", "interactions": ["visible_to_masked"]}
    torch.save({"state_dict": make_net(NAT).state_dict(), "settings": settings}, path)
    load_weights(make_net(NAT, interactions=["visible_to_masked"]), str(path))
    with pytest.raises(InputError, match="has interactions "):
        load_weights(make_net(NAT), str(path))


def test_context_reuse_takes_the_weights_of_a_nat(make_net, tmp_path):
    path = tmp_path / "a.pth"
    for trained in ("NAT", "ContextReuse"):
        settings = {"module": {"net": {"_target_": f"enat.variants.{trained}"}}}
        torch.save({"state_dict": make_net(NAT).state_dict(), "settings": settings}, path)
        load_weights(make_net(ContextReuse), str(path))
        load_weights(make_net(NAT), str(path))
        with pytest.raises(InputError, match="has variant NAT, this one ENAT"):
            load_weights(make_net(), str(path))


def test_advice_fits_the_fault(small_net, make_net, tmp_path):
    """Another variant can't help where a weight is NaN."""
    path = tmp_path / "a.pth"
    state = small_net.state_dict()
    torch.save({**state, "head_bias": torch.full((13,), torch.nan)}, path)
    with pytest.raises(InputError, match=r"holds NaN or infinite values\.$"):
        load_weights(make_net(), str(path))
    with pytest.raises(InputError, match=r"holds NaN or infinite values\.$"):
        warm_start(make_net(), str(path), PixelTokenizer(12, 4))
    torch.save({name: tensor for name, tensor in state.items() if name != "head.1.weight"}, path)
    with pytest.raises(InputError, match=r"head\.1\.weight is missing\. Choose the variant it was trained with\.$"):
        load_weights(make_net(), str(path))


def test_a_tokenizer_in_half_precision_has_a_fingerprint():
    tokenizer = VQGAN(8, 32, 32, [1, 1], 1, 8)
    before = tokenizer.fingerprint()
    assert tokenizer.to(torch.bfloat16).fingerprint() != before


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
