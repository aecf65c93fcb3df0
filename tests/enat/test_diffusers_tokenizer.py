"""A VQModel that diffusers has saved gives the tokens and the images that diffusers itself computes."""

import json

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file

from enat.errors import InputError
from enat.tokenizers.diffusers import DiffusersTokenizer

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [32, 64], "layers_per_block": 1, "latent_channels": 8, "vq_embed_dim": 8}
    model = VQModel(**kinds, **sizes, num_vq_embeddings=40, norm_num_groups=8, mid_block_add_attention=False)
    torch.nn.init.normal_(model.quantize.embedding.weight)
    path = tmp_path_factory.mktemp("vqvae")
    model.save_pretrained(path, safe_serialization=True)
    return path


@pytest.mark.parametrize("symmetric", [False, True])
def test_tokens_and_images_are_those_of_diffusers(folder, symmetric):
    tokenizer = DiffusersTokenizer(str(folder), resolution=16, symmetric=symmetric, batch_size=2)
    assert (tokenizer.codebook_size, tokenizer.grid) == (40, (8, 8))
    images = torch.rand(3, 3, 16, 16)
    token_ids = tokenizer.encode(images)
    assert token_ids.shape == (3, 64)
    assert 1 < len(token_ids.unique()) <= 40
    model = VQModel.from_pretrained(folder)
    with torch.no_grad():
        theirs = model(images * 2 - 1 if symmetric else images).sample
    expected = ((theirs + 1) / 2 if symmetric else theirs).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(token_ids), expected, rtol=1e-4, atol=1e-5)
    assert tokenizer.fingerprint() == DiffusersTokenizer(str(folder), resolution=16).fingerprint()


def test_folders_that_do_not_serve(folder, tmp_path):
    with pytest.raises(InputError, match=r"expected a folder with the config\.json of a VQModel"):
        DiffusersTokenizer(str(tmp_path))
    with pytest.raises(InputError, match=r"tokenizer\.resolution=17: expected a multiple of the stride 2"):
        DiffusersTokenizer(str(folder), resolution=17)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match="no VQModel of diffusers"):
        DiffusersTokenizer(str(tmp_path))
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")  # which is never read
    with pytest.raises(InputError, match="no VQModel of diffusers"):
        DiffusersTokenizer(str(tmp_path))
    other = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**other, "num_vq_embeddings": 50}))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(
        (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="no VQModel of diffusers"):
        DiffusersTokenizer(str(tmp_path))


def test_weights_that_do_not_fit_their_configuration(folder, tmp_path):
    """diffusers would draw a weight that is missing at random, another one each time, and leave out one too many."""
    state = load_file(folder / FILE)
    name = "quantize.embedding.weight"
    others = {
        "the weight quantize.embedding.weight is missing": {key: x for key, x in state.items() if key != name},
        "the weight other.weight is unexpected": {**state, "other.weight": torch.zeros(1)},
        "weight quantize.embedding.weight holds NaN": {**state, name: torch.full_like(state[name], torch.nan)},
    }
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    for sentence, content in others.items():
        save_file(content, tmp_path / FILE, {"format": "pt"})
        with pytest.raises(InputError, match=sentence):
            DiffusersTokenizer(str(tmp_path), resolution=16)
