"""The tokenizer of ENAT: the VQGAN of MAGE (docs/method.md, Tokenizer), with the names of its checkpoint.

Shapes: `B` images, `h, w` sides of the token grid, `L = h*w` tokens, `K` codebook size, `E` width of a code.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from einops import rearrange
from torch import Tensor, nn

from enat.checkpoints.weights import load_exactly, read_file, select_state, without_loss
from enat.errors import InputError
from enat.tokenizers.base import Tokenizer, as_weights
from enat.tokenizers.quantizers import Codebook, Quantized, Quantizer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv3(channels_in: int, channels_out: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=bias)


class ResidualBlock(nn.Module):
    """Applies norm, SiLU and convolution twice and adds the shortcut.

    Where the number of channels changes, the shortcut is a projection of the inner result, as in MAGE.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = _conv3(channels_in, channels_out, bias=False)
        self.norm2 = _norm(channels_out)
        self.conv2 = _conv3(channels_out, channels_out, bias=False)
        self.nin_shortcut = None
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Middle(nn.Module):
    """Applies two residual blocks at the lowest resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class Upsample(nn.Module):
    """Doubles the sides by nearest neighbours, then applies a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = _conv3(channels, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Applies the residual blocks of one resolution, and in the decoder the upsampling after them."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, upsample: bool):
        super().__init__()
        widths = [channels_in] + [channels_out] * num_blocks
        self.block = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.upsample = Upsample(channels_out) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Encoder(nn.Module):
    """Computes latents (B, E, h, w) from images, or patches of them, (B, in, H, W)."""

    def __init__(self, channels_in: int, channels: list[int], num_blocks: int, code_width: int):
        super().__init__()
        self.conv_in = _conv3(channels_in, channels[0], bias=False)
        self.down = nn.ModuleList(
            Level(before, after, num_blocks, upsample=False)
            for before, after in zip([channels[0], *channels], channels, strict=False)
        )
        self.mid = Middle(channels[-1])
        self.norm_out = _norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], code_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if number else x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class PatchEncoder(nn.Module):
    """Computes latents (B, E, h, w) from patches (B, in, h, w), each from its own patch alone.

    Equal patches then have equal tokens, whatever is around them, which makes tokens easy to predict.
    """

    def __init__(self, channels_in: int, width: int, code_width: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv2d(channels_in, width, 1), nn.SiLU(), nn.Conv2d(width, width, 1), nn.SiLU())
        self.conv_out = nn.Conv2d(width, code_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.hidden(x))


class Decoder(nn.Module):
    """Computes images or patches (B, out, H, W), not clamped, from codes (B, E, h, w).

    `up[0]` has the highest resolution.
    """

    def __init__(self, channels_out: int, channels: list[int], num_blocks: int, code_width: int):
        super().__init__()
        self.conv_in = _conv3(code_width, channels[-1], bias=True)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList(
            Level(before, after, num_blocks, upsample=number > 0)
            for number, (before, after) in enumerate(zip([*channels[1:], channels[-1]], channels, strict=True))
        )
        self.norm_out = _norm(channels[0])
        self.conv_out = _conv3(channels[0], channels_out, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


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
        return torch.cat([self.quantize(self.latents(part)) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def decode(self, token_ids: Tensor) -> Tensor:
        parts = token_ids.split(self.batch_size)
        return torch.cat([self.pixels(self.quantize.codes(part)).clamp(0, 1) for part in parts])

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
            quantized = Quantized(codes, token_ids, codes.new_zeros(()))
        else:
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
