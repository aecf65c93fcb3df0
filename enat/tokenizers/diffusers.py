"""A tokenizer in the format of diffusers: a folder with `config.json` and weights of a `VQModel`, such as aMUSEd's.

Shapes: `B` images, `h, w` sides of the token grid, `L = h*w` tokens.
"""

import math
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from einops import rearrange
from torch import Tensor

from enat.errors import InputError
from enat.tokenizers.base import Tokenizer


class DiffusersTokenizer(Tokenizer):
    """Encodes and decodes by a `VQModel` of diffusers, which reads its weights as safetensors and runs no code of them.

    Args:
        folder: has `config.json` and `diffusion_pytorch_model.safetensors`.
        resolution: side of the images in pixels, a multiple of the model's stride.
        symmetric: whether the model's pixels go from -1 to 1; those of aMUSEd go from 0 to 1.
        batch_size: number of images that are computed at a time, to limit memory.

    Raises:
        InputError: if the folder holds no such model, or sizes do not fit.
    """

    def __init__(
        self,
        folder: str | None,
        resolution: Annotated[int, Ge(1)] = 256,
        symmetric: bool = False,
        batch_size: Annotated[int, Ge(1)] = 32,
    ):
        super().__init__()
        try:
            from diffusers import VQModel  # here: most runs have another tokenizer
        except ImportError as error:
            sentence = "tokenizer=diffusers: needs diffusers; `pip install -e '.[diffusers]'` installs it."
            raise InputError(sentence) from error
        if folder is None or not (Path(folder) / "config.json").is_file():
            raise InputError(f"tokenizer.folder={folder}: expected a folder with the config.json of a VQModel.")
        try:
            model = VQModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, device_map=None
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"tokenizer.folder={folder}: no VQModel of diffusers: {error}") from error
        self.model = model.eval().requires_grad_(False)
        stride = 2 ** (len(model.config.block_out_channels) - 1)
        if resolution % stride:
            raise InputError(f"tokenizer.resolution={resolution}: expected a multiple of the stride {stride}.")
        self.codebook_size = int(model.config.num_vq_embeddings)
        self.resolution = resolution
        self.grid = (resolution // stride, resolution // stride)
        self.symmetric = symmetric
        self.batch_size = batch_size

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        parts = []
        for part in images.split(self.batch_size):
            latents = self.model.encode(part * 2 - 1 if self.symmetric else part).latents
            token_ids = self.model.quantize(latents)[2][2]
            parts.append(token_ids.view(len(part), -1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, token_ids: Tensor) -> Tensor:
        parts = []
        for part in token_ids.split(self.batch_size):
            codes = self.model.quantize.embedding(part)  # (B, L, E)
            codes = rearrange(codes, "b (h w) e -> b e h w", h=math.isqrt(part.shape[1]))
            pixels = self.model.decode(codes, force_not_quantize=True).sample
            parts.append((pixels + 1) / 2 if self.symmetric else pixels)
        return torch.cat(parts).clamp(0, 1)
