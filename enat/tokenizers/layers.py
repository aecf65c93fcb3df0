"""The layers of convolutional tokenizers (docs/method.md, Tokenizer), with the names of MAGE's checkpoint.

Shapes: `B` images, `h, w` sides of the token grid, `E` width of a code.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


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
