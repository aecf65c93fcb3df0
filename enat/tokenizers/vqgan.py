"""The tokenizer of ENAT: the VQGAN of MAGE (docs/method.md, Tokenizer), with the names of its checkpoint.

Shapes: `B` images, `h, w` sides of the token grid, `L = h*w` tokens, `K` codebook size, `E` width of a code.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from einops import rearrange
from torch import Tensor, nn

from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import load_exactly, read_file, without_loss
from enat.errors import InputError
from enat.precision import finite
from enat.tokenizers.base import Tokenizer, as_weights
from enat.tokenizers.layers import Decoder, Encoder, PatchEncoder
from enat.tokenizers.quantizers import Codebook, Quantized, Quantizer


def _from_maskgit(name: str) -> str:
    """Translates the names of MaskGIT's VQGAN (`maskgit-vqgan-imagenet-f16-256.bin`), which has the same layers."""
    name = re.sub(r"(?<=coder\.mid\.)[01](?=\.)", lambda found: f"block_{int(found[0]) + 1}", name)
    return name.replace(".upsample_conv.", ".upsample.conv.")


def run(module: nn.Module, x: Tensor) -> Tensor:
    """Applies a module to a tensor."""
    result: Tensor = module(x)
    return result


class ConvTokenizer(Tokenizer):
    """Turns square images into tokens and back by a convolutional network with a quantiser; it can be trained.

    Args:
        quantizer: turns latents into token ids.
        channels: width of the convolutions at the highest resolution.
        multipliers: of that width, from the highest resolution down; each one after the first halves the sides.
        num_blocks: number of residual blocks at each resolution.
        patch_size: squares of so many pixels are one position of the highest resolution: 1 is the VQGAN; a larger one
            is faster, for the convolutions over all pixels cost the most.
        resolution: side of the images in pixels, a multiple of the stride.
        batch_size: number of images that are computed at a time, to limit memory.
        weights: a checkpoint, of training or an original one; None for random weights, the same each time.
        compile: whether torch compiles the decoder, once for each number of images. The encoder is never compiled:
            rounding otherwise could change a token.
        patch_encoder_width: the hidden width of a `PatchEncoder`; None for an encoder of convolutions, the decoder's
            mirror image.

    Raises:
        InputError: for sizes that do not fit together, or a checkpoint with other weights.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        channels: Annotated[int, Ge(1)],
        multipliers: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)],
        num_blocks: Annotated[int, Ge(1)],
        resolution: Annotated[int, Ge(1)],
        patch_size: Annotated[int, Ge(1)] = 1,
        batch_size: Annotated[int, Ge(1)] = 32,
        weights: str | None = None,
        compile: bool = False,
        patch_encoder_width: Annotated[int, Ge(1)] | None = None,
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        self.stride = patch_size * 2 ** (len(widths) - 1)
        if any(width % 32 for width in widths):
            raise InputError(f"channels={channels}: expected a multiple of 32, the groups of the norms.")
        if resolution % self.stride:
            raise InputError(f"resolution={resolution}: expected a multiple of the stride {self.stride}.")
        self.codebook_size = quantizer.codebook_size
        self.resolution = resolution
        self.patch_size = patch_size
        self.encodes_patches = patch_encoder_width is not None
        self.batch_size = batch_size
        self.has_weights = weights is not None
        self.grid = (resolution // self.stride, resolution // self.stride)
        self.run_decoder = torch.compile(run, dynamic=False) if compile else run  # copies of this module share it
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder: nn.Module = Encoder(3 * patch_size**2, widths, num_blocks, quantizer.code_width)
            if patch_encoder_width is not None:
                self.encoder = PatchEncoder(3 * self.stride**2, patch_encoder_width, quantizer.code_width)
            self.decoder = Decoder(3 * patch_size**2, widths, num_blocks, quantizer.code_width)
            self.quantize = quantizer
            for part in quantizer.modules():
                if isinstance(part, nn.Embedding):
                    part.reset_parameters()
        if weights is not None:
            try:
                content = read_file(weights)
                if "num_tokens" in content.get("net_sizes", {}):
                    raise InputError("the checkpoint of a network, not of a tokenizer.")
                state, _ = select_state(without_loss(content))
                state = {_from_maskgit(name): tensor for name, tensor in state.items()}
            except InputError as error:
                reason = str(error).removeprefix(f"weights={weights}: ")
                raise InputError(f"tokenizer.weights={weights}: {reason}") from error
            load_exactly(self, state, weights)
        self.eval().requires_grad_(False)
        self.in_memory_format(torch.channels_last)

    def in_memory_format(self, memory_format: torch.memory_format) -> Self:
        """Sets how weights and activations lie in memory; convolutions are fastest with the channels last."""
        self.memory_format = memory_format
        return self.to(memory_format=memory_format)

    @torch.no_grad()
    @torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # rounding otherwise could change a token
    def encode(self, images: Tensor) -> Tensor:
        return torch.cat([self.quantize(finite(self.latents(part))) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def decode(self, token_ids: Tensor) -> Tensor:
        parts = token_ids.split(self.batch_size)
        return torch.cat([finite(self.pixels(self.quantize.codes(part))).clamp(0, 1) for part in parts])

    def latents(self, images: Tensor) -> Tensor:
        """Computes latents before quantisation, (B, L, E), from images (B, 3, H, W)."""
        patches = F.pixel_unshuffle(images, self.stride if self.encodes_patches else self.patch_size)
        latents = self.encoder(as_weights(patches, self.encoder).contiguous(memory_format=self.memory_format))
        return rearrange(latents, "b e h w -> b (h w) e")

    def pixels(self, codes: Tensor) -> Tensor:
        """Computes images (B, 3, H, W), not clamped, from codes (B, L, E) of a square grid."""
        codes = rearrange(as_weights(codes, self.decoder), "b (h w) e -> b e h w", h=math.isqrt(codes.shape[1]))
        patches = self.run_decoder(self.decoder, codes.contiguous(memory_format=self.memory_format))
        return F.pixel_shuffle(patches, self.patch_size)

    def reconstruct(self, images: Tensor, decoder_only: bool = False) -> tuple[Tensor, Quantized]:
        """Encodes and decodes images (B, 3, H, W) in training; returns images, not clamped, and what is quantised.

        With `decoder_only`, encoder and codebook stay as they are and get no gradient.
        """
        if decoder_only:
            token_ids = self.encode(images)
            codes = self.quantize.codes(token_ids)
            return self.pixels(codes), Quantized(codes, token_ids, codes.new_zeros(()))
        quantized = self.quantize.quantize_with_gradient(self.latents(images))
        return self.pixels(quantized.codes), quantized


class VQGAN(ConvTokenizer):
    """The VQGAN of MAGE: a `ConvTokenizer` with a codebook and, by default, the sizes of the published checkpoint.

    Args:
        codebook_size, code_width: of the `Codebook`.
        channels, multipliers, num_blocks, resolution, batch_size, weights, compile: see `ConvTokenizer`.

    Raises:
        InputError: for sizes that do not fit together, or a checkpoint with other weights.
    """

    def __init__(
        self,
        codebook_size: Annotated[int, Ge(1)] = 1024,
        code_width: Annotated[int, Ge(1)] = 256,
        channels: Annotated[int, Ge(1)] = 128,
        multipliers: Annotated[Sequence[Annotated[int, Ge(1)]], MinLen(1)] = (1, 1, 2, 2, 4),
        num_blocks: Annotated[int, Ge(1)] = 2,
        resolution: Annotated[int, Ge(1)] = 256,
        batch_size: Annotated[int, Ge(1)] = 32,
        weights: str | None = None,
        compile: bool = False,
    ):
        with torch.random.fork_rng(devices=[]):  # the base class draws its entries
            codebook = Codebook(codebook_size, code_width)
        sizes = (channels, multipliers, num_blocks, resolution)
        super().__init__(codebook, *sizes, batch_size=batch_size, weights=weights, compile=compile)
