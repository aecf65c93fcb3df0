"""Training that starts from the weights of another network."""

import pytest
import torch

from enat.checkpoints.warm_start import interpolate_positions, warm_start
from enat.errors import InputError
from enat.tokenizers.pixels import PixelTokenizer

TOKENIZER = PixelTokenizer(12, 4)


@pytest.fixture
def saved(make_net, tmp_path):
    net = make_net(num_tokens=16, codebook_size=12, num_classes=5)
    torch.save(
        {"state_dict": {f"net.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    return net, tmp_path / "a.ckpt"


def test_the_same_network_gets_all_weights(saved, make_net):
    net, path = saved
    other = make_net(num_tokens=16, codebook_size=12, num_classes=5, dropout=0.3)
    for parameter in other.parameters():
        parameter.data.zero_()
    facts = warm_start(other, path, TOKENIZER)
    assert (facts["kind"], facts["changes"]) == ("raw", [])
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_other_classes_codebook_and_grid(saved, make_net):
    net, path = saved
    other = make_net(num_tokens=64, codebook_size=20, num_classes=3)
    fresh = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    changes = warm_start(other, path, TOKENIZER)["changes"]
    state, old = other.state_dict(), net.state_dict()
    for name in ("class_embedding.weight", "token_embedding.weight", "head_bias"):
        assert torch.equal(state[name][:-1], fresh[name][:-1])
        assert torch.equal(state[name][-1], old[name][-1])
    rest = state.keys() - {"class_embedding.weight", "token_embedding.weight", "head_bias", "position_embedding.weight"}
    assert all(torch.equal(state[name], old[name]) for name in rest)
    assert state["position_embedding.weight"].shape == (64, 32)
    assert changes == [
        "The embedding of classes is drawn anew, but for the null class: module.net.num_classes is 3 instead of 5.",
        "The embedding of tokens is drawn anew, but for the mask: module.net.codebook_size is 20 instead of 12.",
        "The bias of the head is drawn anew, but for the mask: module.net.codebook_size is 20 instead of 12.",
        "The embedding of positions is interpolated: module.net.num_tokens is 64 instead of 16.",
    ]


def save_with(path, **facts):
    torch.save({**torch.load(path), **facts}, path)


def test_another_tokenizer_with_as_many_codes(saved, make_net):
    net, path = saved
    save_with(path, tokenizer_sha256=PixelTokenizer(12, 5).fingerprint())
    other = make_net(num_tokens=16, codebook_size=12, num_classes=5)
    torch.nn.init.ones_(other.token_embedding.weight)
    torch.nn.init.ones_(other.head_bias)
    facts = warm_start(other, path, TOKENIZER)
    assert (other.token_embedding.weight[:-1] == 1).all()
    assert (other.head_bias[:-1] == 1).all()
    assert torch.equal(other.token_embedding.weight[-1], net.token_embedding.weight[-1])
    assert torch.equal(other.class_embedding.weight, net.class_embedding.weight)
    reason = "the file's network was trained on the tokens of another tokenizer"
    assert facts["changes"] == [
        f"The embedding of tokens is drawn anew, but for the mask: {reason}.",
        f"The bias of the head is drawn anew, but for the mask: {reason}.",
    ]
    assert facts["notes"] == []


@pytest.mark.parametrize("resolution", [4, 8])
def test_the_same_tokenizer_for_images_of_any_size(saved, make_net, resolution):
    """Its fingerprint is another one for other sizes, and its codes are the same."""
    net, path = saved
    settings = {"module": {}, "tokenizer": {"resolution": 4}}
    save_with(path, tokenizer_sha256=TOKENIZER.fingerprint(), settings=settings)
    other = make_net(num_tokens=resolution**2, codebook_size=12, num_classes=5)
    torch.nn.init.ones_(other.token_embedding.weight)
    facts = warm_start(other, path, PixelTokenizer(12, resolution))
    assert torch.equal(other.token_embedding.weight, net.token_embedding.weight)
    assert torch.equal(other.head_bias, net.head_bias)
    assert not any("drawn anew" in change for change in facts["changes"])
    assert facts["notes"] == []


def test_a_file_that_does_not_say_its_tokenizer(saved, make_net):
    note = "The embedding of tokens is kept; the file does not say whether its tokenizer is the same."
    assert warm_start(make_net(), saved[1], TOKENIZER)["notes"] == [note]
    assert warm_start(make_net(codebook_size=20), saved[1], PixelTokenizer(20, 4))["notes"] == []


def test_positions_keep_their_place_on_the_grid():
    """A ramp over the columns stays one over the columns, of the same range, in the middle of the grid."""
    ramp = torch.arange(8.0).repeat(8, 1).flatten().unsqueeze(1)  # column of each position
    finer = interpolate_positions(ramp, 256, "file").unflatten(0, (16, 16))[..., 0]
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(finer[:, 4:12], expected[4:12].repeat(16, 1), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="64 tokens before, 200 now; expected square grids"):
        interpolate_positions(ramp, 200, "file")


def test_another_width_or_depth_is_refused(saved, make_net):
    for options in ({"width": 16}, {"encoder_depth": 3}):
        with pytest.raises(InputError, match="Fine-tuning keeps width, heads, depth and variant of the network"):
            warm_start(make_net(num_tokens=16, codebook_size=12, num_classes=5, **options), saved[1], TOKENIZER)
