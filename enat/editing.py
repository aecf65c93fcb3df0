"""Editing: some tokens of an image are kept, the others are drawn anew (docs/editing.md).

The kept tokens are encoded in the first step, and their features are reused in all others.

Shapes: `B` images, `L = h*w` tokens of an image, `H` and `W` height and width in pixels.
"""

import math
import reprlib
from collections.abc import Callable, Iterable, Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from enat.draws import ImageOptions
from enat.errors import InputError
from enat.flops import block_flops, plan_flops
from enat.generation import decode_alone, without_masks
from enat.net import ENAT
from enat.randomness import Generators, generator_for
from enat.sampler import EVERY_IMAGE_ALIKE, Sampler
from enat.tokenizers.base import Tokenizer


def tokens_under(region: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns which tokens lie under a region of pixels, (L,), True where any of its pixels is in the region.

    Args:
        region: True for the pixels that are to be drawn anew, (H, W).
        grid: height and width of the token grid, of which H and W are multiples.
    """
    return F.adaptive_max_pool2d(region[None].float(), grid)[0].flatten() > 0


def choose_some(is_drawn: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """Keeps a share of the tokens that were to be drawn, at random positions; at least one is drawn.

    Args:
        is_drawn: (L,).
        keep: the share.
        generator: chooses the positions, on the CPU.
    """
    places = is_drawn.nonzero()[:, 0]
    count = max(1, round((1 - keep) * len(places)))
    chosen = places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
    return torch.zeros_like(is_drawn).scatter(0, chosen, True)


def mix(first: Tensor, second: Tensor, is_kept: Tensor, weight: float, generator: torch.Generator) -> Tensor:
    """Takes a share of `weight` of the kept tokens from a second image, at random positions.

    Args:
        first, second: token ids of both images, (L,).
        is_kept: which tokens are kept, (L,).
        weight: the share.
        generator: chooses the positions, on the CPU.

    Raises:
        InputError: if no token is kept.
    """
    places = is_kept.nonzero()[:, 0]
    if not len(places):
        raise InputError(
            "other: no token is kept, so that none is of this image; expected region.keep=SHARE of more than 0, or a "
            "region that leaves out a part of the image."
        )
    order = torch.randperm(len(places), generator=generator).to(places.device)
    chosen = places[order[: round(weight * len(places))]]
    return first.scatter(0, chosen, second[chosen])


@torch.no_grad()
def draw_anew(
    net: ENAT,
    sampler: Sampler,
    token_ids: Tensor,
    is_drawn: Tensor,
    class_ids: Tensor,
    generator: Generators = None,
    options: ImageOptions = EVERY_IMAGE_ALIKE,
    record: list[Tensor] | None = None,
) -> Tensor:
    """Draws some tokens of images anew and keeps the others, bit for bit; returns token ids (B, L).

    Args:
        net: the network, in evaluation mode.
        sampler: draws token ids from the network.
        token_ids: of the images, (B, L).
        is_drawn: which tokens are drawn, (B, L), as many in each image, and one at least.
        class_ids: of which the new tokens are, (B,).
        generator, options, record: see `enat.sampler.Sampler`.

    Raises:
        InputError: if the images have different numbers of tokens to draw, or none.
    """
    given = token_ids.masked_fill(is_drawn, net.mask_token_id)
    return without_masks(net, sampler(net, class_ids, generator, record, given, options))


def blend(before: Tensor, after: Tensor, region: Tensor, softness: int = 0) -> Tensor:
    """Puts the pixels of a region of edited images into the images that they come from.

    Args:
        before, after: (B, channels, H, W).
        region: True for the pixels that are taken from `after`, (H, W).
        softness: width in pixels of the border, outside of the region, over which one passes into the other.
    """
    weight = region.to(after.dtype)[None, None]
    for _ in range(softness):
        weight = F.avg_pool2d(F.pad(weight, (1, 1, 1, 1), mode="replicate"), 3, stride=1).maximum(
            region.to(after.dtype)[None, None]
        )
    return torch.lerp(before, after, weight)


def place(image: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Shrinks images (B, channels, H, W) and puts them into the middle of a frame of the same size, to be drawn.

    Args:
        image: the images.
        scale: ratio of the sides, in (0, 1].

    Returns:
        The frame, whose other pixels repeat the border of the image, and which of its pixels are to be drawn, (H, W).
    """
    height, width = image.shape[2:]
    size = max(1, round(scale * height)), max(1, round(scale * width))
    small = F.interpolate(image, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    borders = left, width - size[1] - left, top, height - size[0] - top
    region = F.pad(torch.zeros(size, dtype=torch.bool, device=image.device), borders, value=True)
    return F.pad(small, borders, mode="replicate"), region


def box_region(box: Sequence[float], height: int, width: int) -> Tensor:
    """Returns the pixels of a box, (H, W).

    Args:
        box: left, top, right and bottom, as shares of the width and the height.
        height, width: of the image, in pixels.

    Raises:
        InputError: for a box that is empty or beyond the image.
    """
    shape = tuple(getattr(box, "shape", ()))
    if len(shape) > 1:
        raise InputError(
            f"region: an array of shape {shape}; expected an image of Pillow, white where it is drawn, or a box of "
            "four shares."
        )
    plain = box.tolist() if hasattr(box, "tolist") else box  # of NumPy or torch
    sides = list(plain) if isinstance(plain, Iterable) else [plain]
    has_four = len(sides) == 4 and all(isinstance(side, Real) for side in sides)
    left, top, right, bottom = sides if has_four else (1.0, 1.0, 0.0, 0.0)
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InputError(
            f"box={reprlib.repr(sides)}: expected left, top, right and bottom as shares from 0 to 1, such as "
            "[0,0,0.5,1], the left half."
        )
    region = torch.zeros(height, width, dtype=torch.bool)
    rows = slice(math.floor(top * height), math.ceil(bottom * height))
    region[rows, math.floor(left * width) : math.ceil(right * width)] = True
    return region


def mark_region(image: Tensor, mask: Tensor | None, box: Sequence[float] | None, scale: float) -> tuple[Tensor, Tensor]:
    """Returns the image that is edited, which is shrunk by `scale`, and which of its pixels are drawn anew, (H, W).

    Args:
        image: (1, channels, H, W).
        mask: True for the pixels that are drawn, (H, W); None for none.
        box: see `box_region`; None for none. Without mask, box and scale, all is drawn.
        scale: see `place`; 1 for none.

    Raises:
        InputError: for several of them, a mask without a pixel, and a box or a scale out of range.
    """
    if (mask is not None) + (box is not None) + (scale != 1) > 1:
        raise InputError("region: expected one of mask, box and scale.")
    if not 0 < scale <= 1:
        raise InputError(f"scale={scale}: expected more than 0, and 1 at most.")
    height, width = image.shape[2:]
    if scale < 1:
        frame, region = place(image, scale)
        if not region.any():
            less = f"{(min(height, width) - 1) / min(height, width):.3g}"
            raise InputError(
                f"scale={scale}: this leaves no pixel of {height} around the image; expected {less} or less."
            )
        return frame, region
    if mask is None:
        return image, box_region([0, 0, 1, 1] if box is None else box, height, width).to(image.device)
    if not mask.any():
        raise InputError("region: nothing in the mask is white, so that nothing would be drawn.")
    return image, mask.to(image.device)


def cost(net: ENAT, sampler: Sampler, num_drawn: int) -> dict[str, float]:
    """Counts the operations of an edit that draws `num_drawn` tokens, for an image, in GFLOP.

    Returns:
        `gflop`, `gflop_without_reuse` for the same network without cached features, and `gflop_nat` for a plain NAT of
        as many blocks, which computes all tokens in each step.
    """
    counts = [num_drawn, *sampler.mask_counts(num_drawn)]
    head = 2 * net.width * (net.width + net.codebook_size)
    blocks = (net.encoder_depth + net.decoder_depth) * block_flops(net, net.num_tokens, 0)
    plan = sampler.plan(net, counts)
    nat = sum(step.branches * (blocks + step.masked * head) for step in plan)
    without_reuse = [step._replace(reused=0, starts_guidance=False, reuses_all=False) for step in plan]
    without = sum(plan_flops(net, without_reuse))
    return {"gflop": sum(plan_flops(net, plan)) / 1e9, "gflop_without_reuse": without / 1e9, "gflop_nat": nat / 1e9}


class Editor:
    """Edits one image many times.

    Args:
        net, sampler, tokenizer: encode the image, draw tokens, and decode them.
        region: returns the image that is edited (1, channels, H, W), which may be moved in its frame, and which of its
            pixels are drawn (H, W).
        keep: share of the tokens under the region that are kept all the same, at random positions.
        other: an image of which tokens are mixed in, (1, channels, H, W); None for none.
        weight: the share of the kept tokens that come from it.
        soft_blend: whether the pixels outside of the region are those of the image, with a border of this width in
            pixels; None to show them as the tokenizer decodes them.
    """

    def __init__(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        region: Callable[[Tensor], tuple[Tensor, Tensor]],
        keep: float = 0.0,
        other: Tensor | None = None,
        weight: float = 0.5,
        soft_blend: int | None = None,
    ):
        self.net = net
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.region = region
        self.keep = keep
        self.other = other
        self.weight = weight
        self.soft_blend = soft_blend

    @torch.no_grad()
    def __call__(self, image: Tensor, class_id: int, seeds: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Edits an image (1, channels, H, W).

        Args:
            image: in [0, 1].
            class_id: of the new tokens.
            seeds: the seed and the number of each result.

        Returns:
            The image that was edited (1, channels, H, W), what of it was drawn anew (H, W), and the results, as many
            images as `seeds`.
        """
        device = self.net.head_bias.device
        image, region = self.region(image.to(device))
        token_ids = self.tokenizer.encode(image)[0]
        others = None if self.other is None else self.tokenizer.encode(self.other.to(device))[0]
        under = tokens_under(region, self.tokenizer.grid)
        kept, drawn = [], []
        for seed, number in seeds:
            chosen = generator_for("cpu", "tokens of an edit", seed, number)
            drawn.append(choose_some(under, self.keep, chosen) if self.keep else under)
            mixed = token_ids if others is None else mix(token_ids, others, ~drawn[-1], self.weight, chosen)
            kept.append(mixed)
        generators = [generator_for(device, "edit", seed, class_id, number) for seed, number in seeds]
        classes = torch.full((len(seeds),), class_id, device=device)
        edited = draw_anew(self.net, self.sampler, torch.stack(kept), torch.stack(drawn), classes, generators)
        results = decode_alone(self.tokenizer, edited)
        if self.soft_blend is not None:
            results = blend(image.expand_as(results), results, region, self.soft_blend)
        return image, region, results
