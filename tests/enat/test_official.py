"""Official checkpoints: names, shapes, round trips."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import from_official, infer_sizes, is_official, to_official
from enat.errors import InputError
from enat.net import ENAT

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize(("name", "num_tokens"), [("enat_l_256", 256), ("enat_l_512", 1024)])
def test_every_official_key_and_shape(name, num_tokens):
    """Without the weights themselves (2.3 GB): the names and shapes of both files, exactly."""
    expected = json.loads((GOLDEN / "official_keys.json").read_text())[name]
    with torch.device("meta"):
        net = ENAT(1024, 1000, num_tokens, 1024, 16, 22, 2)
        official = to_official(net.state_dict())
        assert {key: list(tensor.shape) for key, tensor in official.items()} == expected
        state = from_official({key: torch.empty(shape) for key, shape in expected.items()})
        net.load_state_dict(split_blocks(state, 22), assign=True)
    sizes = infer_sizes(from_official(official), "x")
    assert sizes == {"codebook_size": 1024, "num_classes": 1000, "num_tokens": num_tokens, "width": 1024, "depth": 24}


def test_round_trips_lose_nothing(small_net):
    ours = small_net.state_dict()
    back = split_blocks(from_official(to_official(ours)), small_net.encoder_depth)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    official = load_file(GOLDEN / "model.safetensors")
    again = to_official(from_official(official))
    assert again.keys() == official.keys()
    for key, tensor in official.items():
        expected = torch.zeros_like(tensor) if key.startswith("prev_embedder.") else tensor
        assert torch.equal(again[key], expected), key


def test_prefix_of_data_parallel():
    official = load_file(GOLDEN / "model.safetensors")
    prefixed = {f"module.{key}": tensor for key, tensor in official.items()}
    assert is_official(prefixed)
    assert from_official(prefixed).keys() == from_official(official).keys()


def test_foreign_name_is_refused(small_net):
    with pytest.raises(InputError, match=r"blocks\.0\.attn\.qk\.weight"):
        from_official({"blocks.0.attn.qk.weight": torch.zeros(1)})
    assert not is_official(small_net.state_dict())
