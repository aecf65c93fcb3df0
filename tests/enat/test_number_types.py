"""Tokenizers and pipelines whose weights are cast to another type of numbers still take images and give images."""

import pytest
import torch
from PIL import Image

from enat.errors import InputError
from enat.tokenizers.diffusers import VQModelTokenizer
from enat.tokenizers.pixels import PixelTokenizer
from enat.tokenizers.quantizers import FSQ, LFQ, AveragedCodebook, Codebook
from enat.tokenizers.vqgan import VQGAN, ConvTokenizer

TYPES = [torch.float16, torch.bfloat16, torch.float64]


def small(quantizer, **options):
    return ConvTokenizer(quantizer, 32, (1, 1), 1, 8, **options)


def vq_model():
    sizes = {"block_out_channels": (32, 32), "layers_per_block": 1, "latent_channels": 4, "num_vq_embeddings": 12}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = pytest.importorskip("diffusers").VQModel(**sizes, **kinds, vq_embed_dim=4, norm_num_groups=8)
    return VQModelTokenizer(model, 8, True, 4)  # the tokenizers of diffusers and of taming are of this class


TOKENIZERS = {
    "pixels": lambda: PixelTokenizer(17, 8),
    "vqgan": lambda: VQGAN(12, 8, 32, (1, 1), 1, 8),
    "codebook": lambda: small(Codebook(12, 8)),
    "fsq": lambda: small(FSQ([5, 4])),
    "lfq": lambda: small(LFQ(4)),
    "averages": lambda: small(AveragedCodebook(12, 8)),
    "patches": lambda: small(FSQ([5, 4]), patch_size=2, patch_encoder_width=16),
    "a VQModel": vq_model,
}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_of_another_type(kind, dtype):
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[kind]()
    images = torch.rand(2, tokenizer.channels, 8, 8)
    token_ids = torch.randint(tokenizer.codebook_size, tokenizer.encode(images).shape)
    expected = tokenizer.decode(token_ids)
    tokenizer.to(dtype=dtype)
    assert (tokenizer.decode(token_ids).float() - expected).abs().max() < 0.1
    again = tokenizer.encode(images)
    assert (again.shape, again.dtype) == (token_ids.shape, torch.int64)
    assert 0 <= again.min() <= again.max() < tokenizer.codebook_size


@pytest.mark.parametrize("dtype", TYPES)
def test_a_pipeline_of_another_type(make_pipeline, dtype):
    model = make_pipeline().to(dtype=dtype)
    picture = model.generate("cat")[0]
    assert picture.size == (8, 8)
    assert len(model.reveal(["cat"])[0]) == 4
    assert model.edit(picture, "bee", [0, 0, 0.5, 1], soft_blend=1)[0].size == (8, 8)
    assert model.edit(Image.new("RGB", (9, 8)), "bee", scale=0.5)[0].size == (8, 8)


@pytest.mark.parametrize("kind", ["vqgan", "fsq", "averages", "a VQModel"])
def test_what_a_tokenizer_computes_beyond_the_range_of_float16(kind):
    """Tokens of NaN would be any tokens, and an image of NaN would be black."""
    torch.manual_seed(0)
    tokenizer = TOKENIZERS[kind]()
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            parameter.fill_(1e4)
    tokenizer.half()
    expected = r"the tokenizer computes NaN or infinite values; expected fabric\.precision=32-true .* torch\.bfloat16"
    with pytest.raises(InputError, match=expected):
        tokenizer.encode(torch.rand(1, 3, 8, 8))
    with pytest.raises(InputError, match=expected):
        tokenizer.decode(torch.zeros(1, tokenizer.grid[0] ** 2, dtype=torch.long))
