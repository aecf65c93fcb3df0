"""Weights as other programs and other states of a network save them."""

import pytest
import torch
from safetensors.torch import save_file

import enat
from enat.checkpoints.official import to_official
from enat.checkpoints.selection import select_state, state_of
from enat.checkpoints.warm_start import warm_start
from enat.checkpoints.weights import load_exactly, load_weights, read_file
from enat.errors import InputError
from enat.reuse import AllTokensReuse
from enat.tokenizers.diffusers import TamingTokenizer
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


AVERAGES = {
    "ema of module": lambda average: {"ema": {"module": average, "decay": 0.99}},
    "ema of state_dict": lambda average: {"model_ema": {"state_dict": average}},
    "ema of shadow": lambda average: {"ema": {"shadow": average, "step": torch.tensor(5)}},
    "ema with a step": lambda average: {"ema": {**average, "step": 5}},
    "ema_state_dict": lambda average: {"ema_state_dict": average},
    "ema_model": lambda average: {"ema_model": average, "ema_decay": torch.tensor(0.99)},
    "nnet_ema": lambda average: {"nnet_ema": average},
    "modelEMA": lambda average: {"modelEMA": average},
    "average": lambda average: {"average_model_state": average, "ema_updates": 3},
    "of a callback": lambda average: {"callbacks": {"EMA": {"state_dict": average}}},
}


@pytest.mark.parametrize("names", ["ours", "official"])
@pytest.mark.parametrize("raw", ["model", "state_dict", "nnet"])
@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_goes_before_the_raw_weights(small_net, make_net, tmp_path, kind, raw, names):
    translated = to_official if names == "official" else dict
    average = small_net.state_dict()
    other = {name: tensor + 1 for name, tensor in average.items()}
    torch.save({raw: translated(other), **AVERAGES[kind](translated(average))}, tmp_path / "a.pth")
    net = make_net()
    assert load_weights(net, str(tmp_path / "a.pth"))["kind"] == ("official" if names == "official" else "EMA")
    assert all(torch.equal(tensor, average[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (lambda state: {"ema": {"shadow_params": [*state.values()]}}, "found ema of shadow_params; a program"),
        (lambda state: {"params_ema": [*state.values()]}, "found params_ema; a program"),
        (lambda state: {"ema": {"net": {"module": state}}}, "found ema of net; a program"),
        (lambda state: {"ema_1": state, "ema_2": state}, "found ema_1 of head_bias, .*; ema_2 of head_bias, "),
    ],
)
def test_an_average_that_cannot_be_used_is_refused(small_net, make_net, tmp_path, content, found):
    """The raw weights would generate other images."""
    state = small_net.state_dict()
    torch.save({"model": state, **content(state)}, tmp_path / "a.pth")
    sentence = f"a.pth: expected one average of the weights, by name, {found}"
    with pytest.raises(InputError, match=f"weights=.*{sentence}"):
        load_weights(make_net(), str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match=f"tokenizer.weights=.*{sentence}"):
        VQGAN(8, 32, 32, [1, 1], 1, 8, weights=str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match=f"tokenizer.weights=.*{sentence}"):
        TamingTokenizer(str(tmp_path / "a.pth"))


@pytest.mark.parametrize("content", [{"checkpoint": {"model": {}}, "epoch": 3}, {"nnet": {}, "epoch": 3}])
def test_an_unknown_container_is_told_by_its_names(small_net, tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    found = (
        rf"found other things in it \({next(iter(content))}, epoch\); .*: torch\.save\(model\.state_dict\(\), FILE\)"
    )
    for read in (enat.load, lambda path: warm_start(small_net, path, None), lambda path: load_weights(small_net, path)):
        with pytest.raises(InputError, match=f"weights=.*a.pth: expected a dictionary of weights by name, {found}"):
            read(str(tmp_path / "a.pth"))


def test_files_are_told_from_one_another_by_their_content(small_net, tmp_path):
    for name in ("a.ckpt", "a.SAFETENSORS", "a"):
        save_file(small_net.state_dict(), tmp_path / name)
        state, _ = select_state(read_file(tmp_path / name))
        assert torch.equal(state["head_bias"], small_net.head_bias)
    torch.save(small_net.state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(
        InputError, match=r"It may be one of torch\.save, whose name has to end otherwise, such as in \.ck"
    ):
        read_file(tmp_path / "b.safetensors")


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
        load_weights(make_net(NAT, interactions=[]), str(path))
    settings["module"]["net"]["interactions"] = []  # each token attends to itself alone
    torch.save({"state_dict": make_net(NAT).state_dict(), "settings": settings}, path)
    load_weights(make_net(NAT, interactions=[]), str(path))
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


def test_a_weight_may_have_average_in_its_name():
    state = {"average.weight": torch.ones(2), "head.weight": torch.zeros(2)}
    assert state_of(dict(state)).keys() == state.keys()
