"""Training with a mask ratio for each image: the tokens of a batch in one line, without padding.

What a layer does token by token needs no change; the condition of an image goes to each of its tokens, and attention
stays within an image: by a kernel for lines of several lengths on GPUs, and on padded rows elsewhere.

`index_select`, unlike indexing, adds up its gradient in a fixed order on CPUs, so that runs stay reproducible.

Shapes: `B` images, `N` tokens that are computed and `P` tokens attended to of all images together, `L` tokens of an
image, `D` width, `H` heads, `d = D/H`, `K` codebook size.
"""

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from enat.errors import InputError
from enat.kernels import Attention, xformers, xformers_operations
from enat.layers import Layout, normalize
from enat.masking import RandomMasking, num_masked
from enat.net import ENAT

Counts = NDArray[np.int64]


class Line(NamedTuple):
    """Tokens of several images, image after image."""

    rows: Tensor  # the image of each token, (N,)
    positions: Tensor  # of each token in its image, (N,)
    images: Counts  # `rows` on the host
    counts: Counts  # tokens of each image, (B,), on the host

    def joined(self, other: "Line") -> "Line":
        """Both, the other one's tokens behind all of these."""
        rows, positions = (torch.cat(pair) for pair in zip(self[:2], other[:2], strict=True))
        return Line(rows, positions, np.concatenate([self.images, other.images]), self.counts + other.counts)


class PackedPartition(NamedTuple):
    """As `enat.masking.Partition`, with numbers of its own for each image."""

    masked: Line
    revealed: Line
    cached: Line | None

    @property
    def counts(self) -> tuple[Counts, Counts, Counts]:
        """Masked, new and reused tokens of each image, (B,)."""
        reused = np.zeros_like(self.masked.counts) if self.cached is None else self.cached.counts
        return self.masked.counts, self.revealed.counts, reused

    def encode_cached(self, net: ENAT, token_ids: Tensor, condition: Tensor) -> Tensor:
        """What a network knows of the cached tokens, (1, P, D)."""
        assert self.cached is not None
        return encode(net, token_ids, self.cached, condition)

    def predict(self, net: ENAT, token_ids: Tensor, condition: Tensor, cached: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits of the masked tokens (1, M, K), and the ids that they should predict (1, M)."""
        features = encode(net, token_ids, self.revealed, condition, self.cached, cached)
        context, masked = normalize(features), self.masked
        packing = Packing(masked, self.revealed if self.cached is None else self.cached.joined(self.revealed))
        x = net.embed(torch.full_like(masked.positions, net.mask_token_id)[None], masked.positions[None])
        for block, c in zip(net.blocks[net.encoder_depth :], condition[net.encoder_depth :], strict=True):
            x = block(x, context, c, packing)
        return net.logits(x), token_ids[masked.rows, masked.positions][None]


class PerSampleMasking(RandomMasking):
    """As `RandomMasking`, but mask ratio, reuse and the share that is reused are drawn for each image."""

    def __call__(  # type: ignore[override]
        self, rng: np.random.Generator, batch_size: int, num_tokens: int, device: torch.device | str = "cpu"
    ) -> PackedPartition:
        """Draws a partition; numbers are drawn on the host, positions on the device, both from `rng`."""
        ratios = rng.beta(self.ratio_alpha, self.ratio_beta, batch_size)
        masked = np.array([num_masked(ratio, num_tokens) for ratio in ratios])
        visible = num_tokens - masked
        hidden = np.rint(visible * rng.random(batch_size)).astype(int) * (rng.random(batch_size) < self.reuse_prob)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        order = torch.rand(batch_size, num_tokens, generator=generator, device=device).argsort(dim=1)

        def line(start: Counts, counts: Counts) -> Line:
            images = np.repeat(np.arange(batch_size), counts)
            rows, columns = (_on(device, x) for x in (images, _ranges(start, counts)))
            return Line(rows, order[rows, columns], images, counts)

        cached = line(masked, hidden) if hidden.any() else None
        return PackedPartition(line(masked * 0, masked), line(masked + hidden, visible - hidden), cached)


def _on(device: torch.device | str, numbers: NDArray[Any]) -> Tensor:
    """On a device, for which nothing waits."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


def _ranges(starts: Counts, counts: Counts) -> Counts:
    """start, start + 1, ... for each pair of a start and a count, in a line."""
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


class Packing(Layout):
    """Who attends to whom: the tokens of a line to those of a context and themselves, within each image.

    Args:
        tokens: attend.
        context: are attended to, by `tokens` of the same image. None for no others.
    """

    def __init__(self, tokens: Line, context: Line | None):
        self.device = tokens.rows.device
        keys = tokens if context is None else context.joined(tokens)
        self.rows, self.context_rows = tokens.rows, keys.rows[: len(keys.rows) - len(tokens.rows)]
        self.counts, self.key_counts = tokens.counts, keys.counts
        self.key_order = _on(self.device, np.argsort(keys.images, kind="stable"))
        self.limits, self.key_limits = (
            _on(self.device, np.concatenate([[0], counts.cumsum()]).astype(np.int32))
            for counts in (self.counts, self.key_counts)
        )

    def spread(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the images (B, 8, D) -> those of each token (N, 8, D), and of each context token (P, 8, D).

        By way of float32, in which the gradients of an image's tokens are then summed.
        """
        exact = condition.to(torch.promote_types(condition.dtype, torch.float32))
        tokens, context = (exact.index_select(0, rows).to(condition.dtype) for rows in (self.rows, self.context_rows))
        return tokens, context

    @torch.compiler.disable  # its shapes change with every batch
    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (1, H, N, d), keys and values (1, H, P+N, d), the context's first -> (1, H, N, d)."""
        key, value = (x.index_select(2, self.key_order) for x in (key, value))  # image after image
        if attention is xformers:
            operations, rows = xformers_operations(self.device), [x.transpose(1, 2) for x in (query, key, value)]
            attended: Tensor = operations.memory_efficient_attention(*rows, attn_bias=self._block_diagonal)
            return attended.transpose(1, 2)
        if query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
            q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (N, H, d)
            out = varlen_attn(q, k, v, self.limits, self.key_limits, int(self.counts.max()), int(self.key_counts.max()))
            assert isinstance(out, Tensor)  # without auxiliary results
            return out.transpose(0, 1).unsqueeze(0)
        return self._padded(query, key, value)

    @cached_property
    def _block_diagonal(self) -> Any:
        biases = xformers_operations(self.device).fmha.attn_bias
        return biases.BlockDiagonalMask.from_seqlens(self.counts.tolist(), self.key_counts.tolist())

    @cached_property
    def _padding(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of images with queries: places of queries and of keys in the lines, which keys count, and the way back."""
        chosen = self.counts > 0
        places, _ = _rows(self.counts, chosen, self.device)
        key_places, is_key = _rows(self.key_counts, chosen, self.device)
        counts = self.counts[chosen]
        return places, key_places, is_key, _on(self.device, _ranges(np.arange(len(counts)) * places.shape[1], counts))

    def _padded(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """On rows of equal length, an image each; those without queries are left out."""
        places, key_places, is_key, back = self._padding
        pairs = (query, places), (key, key_places), (value, key_places)
        q, k, v = (x[0].index_select(1, at.flatten()).unflatten(1, at.shape).transpose(0, 1) for x, at in pairs)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=is_key[:, None, None])  # (B, H, longest, d)
        return out.transpose(0, 1).flatten(1, 2).index_select(1, back).unsqueeze(0)


def _rows(counts: Counts, chosen: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in a line the tokens of each chosen image are, (images, longest), and which of these places count."""
    column = np.arange(counts[chosen].max())
    starts = (counts.cumsum() - counts)[chosen]
    is_token = column < counts[chosen, None]
    return _on(device, (starts[:, None] + column) * is_token), _on(device, is_token)


def encode(
    net: ENAT,
    token_ids: Tensor,
    revealed: Line,
    condition: Tensor,
    known: Line | None = None,
    cached: Tensor | None = None,
) -> Tensor:
    """As `ENAT.encode`, of lines.

    Args:
        net: the network.
        token_ids: (B, L).
        revealed: the tokens to encode.
        condition: of the images, (blocks, B, 8, D).
        known: tokens whose features `cached` are, (1, P, D).
        cached: see `known`.

    Returns:
        (1, P+N, D), the cached first.

    Raises:
        InputError: for a variant of ENAT.
    """
    if type(net) is not ENAT:
        raise InputError(
            f"masking=per_sample: it is not for {type(net).__name__}; expected masking@module.masking=per_group."
        )
    x = net.embed(token_ids[revealed.rows, revealed.positions][None], revealed.positions[None])  # (1, N, D)
    reused = context = None
    if cached is not None:
        reused = net.reuse(cached)
        context = normalize(reused)
    if x.shape[1]:
        packing = Packing(revealed, known)
        for block, c in zip(net.blocks[: net.encoder_depth], condition, strict=False):
            x = block(x, context, c, packing)
    return x if reused is None else torch.cat([reused.to(x.dtype), x], dim=1)
