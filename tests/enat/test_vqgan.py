"""The VQGAN: the official checkpoint's names, batches, precision, files that do not serve."""

import json
import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from enat.errors import InputError
from enat.tokenizers.quantizers import FSQ
from enat.tokenizers.vqgan import VQGAN, ConvTokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"codebook_size": 64, "code_width": 32, "channels": 32, "multipliers": [1, 2], "num_blocks": 1, "resolution": 16}


def test_every_key_and_shape_of_the_checkpoint():
    expected = json.loads((GOLDEN / "official_keys.json").read_text())["vqgan_jax_strongaug"]
    with torch.device("meta"):
        vqgan = VQGAN()
    assert {name: list(tensor.shape) for name, tensor in vqgan.state_dict().items()} == expected
    assert vqgan.grid == (16, 16)


def test_checkpoint_is_read_strictly(tmp_path):
    state = {name: tensor + 0.01 for name, tensor in VQGAN(**TINY).state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "whole.ckpt")
    loaded = VQGAN(**TINY, weights=str(tmp_path / "whole.ckpt"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())
    assert loaded.fingerprint() != VQGAN(**TINY).fingerprint()
    assert VQGAN(**TINY).fingerprint() == VQGAN(**TINY).fingerprint()
    torch.save({**state, "other.weight": torch.zeros(1)}, tmp_path / "more.ckpt")
    with pytest.raises(InputError, match=r"more\.ckpt: weight other\.weight is unknown"):
        VQGAN(**TINY, weights=str(tmp_path / "more.ckpt"))
    del state["decoder.conv_in.bias"]
    torch.save(state, tmp_path / "less.ckpt")
    with pytest.raises(InputError, match=r"less\.ckpt: weight decoder\.conv_in\.bias is missing"):
        VQGAN(**TINY, weights=str(tmp_path / "less.ckpt"))


def test_names_of_maskgit(tmp_path):
    """Its program numbers the blocks in the middle, and has another name for the convolution after upsampling."""
    state = {name: tensor + 0.01 for name, tensor in VQGAN(**TINY).state_dict().items()}
    other = {"mid.block_1.": "mid.0.", "mid.block_2.": "mid.1.", ".upsample.conv.": ".upsample_conv."}
    theirs = dict(state)
    for ours, name in other.items():
        theirs = {one.replace(ours, name): tensor for one, tensor in theirs.items()}
    assert len(theirs.keys() - state.keys()) == 26
    torch.save(theirs, tmp_path / "maskgit.bin")
    loaded = VQGAN(**TINY, weights=str(tmp_path / "maskgit.bin"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())


def test_batches_and_ranges():
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole, parts = VQGAN(**TINY, batch_size=5), VQGAN(**TINY, batch_size=2)
    token_ids = whole.encode(images)
    assert token_ids.shape == (5, 64)
    assert torch.equal(token_ids, parts.encode(images))
    decoded = whole.decode(token_ids)
    assert decoded.shape == images.shape
    torch.testing.assert_close(decoded, parts.decode(token_ids))
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_every_convolution_in_one_memory_format(memory_format):
    net, seen = VQGAN(**TINY).in_memory_format(memory_format), []
    for module in net.decoder.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels > 1:
            module.register_forward_hook(lambda _, __, out: seen.append(out.is_contiguous(memory_format=memory_format)))
    net.decode(torch.randint(net.codebook_size, (2, math.prod(net.grid))))
    assert len(seen) > 5
    assert all(seen)


@pytest.mark.slow
def test_compiled_decoder():
    """Is compiled, also in a copy and in another precision, and decodes alike; token ids are bit for bit those."""
    eager, compiled = VQGAN(**TINY), deepcopy(VQGAN(**TINY, compile=True))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    token_ids = eager.encode(images)
    assert torch.equal(token_ids, compiled.encode(images))
    counters.clear()
    torch.testing.assert_close(compiled.decode(token_ids), eager.decode(token_ids), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert compiled.to(torch.bfloat16).decode(token_ids).dtype == torch.bfloat16
    assert counters["stats"]["unique_graphs"] == 2
    assert eager.fingerprint() == VQGAN(**TINY, compile=True).fingerprint()


def test_nearest_entry_in_full_precision():
    """Under autocast, only the convolutions lose precision: distances would confuse close entries."""
    vqgan = VQGAN(**TINY)
    entries = torch.linspace(1.0, 1.2, 64)[:, None].expand(-1, 32).contiguous()
    vqgan.quantize.embedding.weight.data = entries
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vqgan.quantize(entries), torch.arange(64))
        token_ids = VQGAN(**TINY).encode(torch.rand(2, 3, 16, 16))
    assert token_ids.shape == (2, 64)


@pytest.mark.parametrize(
    ("change", "sentence"), [({"channels": 33}, "channels=33"), ({"resolution": 17}, "resolution=17")]
)
def test_sizes_that_do_not_fit(change, sentence):
    with pytest.raises(InputError, match=sentence):
        VQGAN(**{**TINY, **change})


def test_tf32_chooses_no_token():
    net, seen = VQGAN(**TINY), []
    net.encoder.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    net.encode(torch.rand(1, 3, 16, 16))
    assert seen == [False]


def test_a_patch_encoder_sees_its_patch_alone():
    images = torch.rand(2, 3, 16, 16)
    images[1, :, :4, 8:12] = images[0, :, 12:, :4]
    sizes = {"channels": 32, "multipliers": [1, 2], "num_blocks": 1, "resolution": 16, "patch_size": 2}
    tokenizer = ConvTokenizer(FSQ([8, 5, 5]), **sizes, patch_encoder_width=16)
    assert tokenizer.grid == (4, 4)
    for encoder, is_equal in ((tokenizer, True), (ConvTokenizer(FSQ([8, 5, 5]), **sizes), False)):
        latents = encoder.latents(images).view(2, 4, 4, -1)
        assert torch.allclose(latents[1, 0, 2], latents[0, 3, 0], atol=1e-7) == is_equal
        assert not torch.allclose(latents[0, 0, 0], latents[0, 3, 0], atol=1e-5)
