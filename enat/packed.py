"""Training with a mask ratio for each image: the tokens of all images in one row, without padding.

Layers that treat each token by itself need no change. The modulations of an image go to each of its tokens, and a
kernel keeps attention within an image: one for sequences of several lengths on GPUs in half precision, attention on
padded rows elsewhere.

`index_select`, unlike indexing, sums its gradient in a fixed order on CPUs, so that runs stay reproducible.

Shapes: `B` images, `L` tokens of an image; `N` tokens that are computed, `P` context tokens and `M` masked tokens of
all images together; `D` width, `H` heads, `d = D/H`, `K` codebook size.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from enat.errors import InputError
from enat.masking import RandomMasking, num_masked
from enat.net import ENAT

Counts = NDArray[np.int64]


class PackedTokens(NamedTuple):
    """Holds some tokens of every image of a batch in one row, sorted by image unless joined."""

    images: Tensor  # the image of each token, (N,)
    positions: Tensor  # its position in that image, (N,)
    images_on_host: Counts  # the same as `images`, so that nothing waits for the GPU
    counts: Counts  # tokens of each image, (B,), on the host

    def joined(self, other: "PackedTokens") -> "PackedTokens":
        """Returns these tokens, followed by all of the other ones."""
        return PackedTokens(
            torch.cat([self.images, other.images]),
            torch.cat([self.positions, other.positions]),
            np.concatenate([self.images_on_host, other.images_on_host]),
            self.counts + other.counts,
        )

    def ids(self, token_ids: Tensor) -> Tensor:
        """Returns the ids of the tokens, (1, N), from those of all tokens, (B, L)."""
        return token_ids[self.images, self.positions][None]


class PackedPartition(NamedTuple):
    """Holds the tokens of a batch in three parts, as `enat.masking.Partition`, but other numbers for each image."""

    masked: PackedTokens
    new: PackedTokens
    cached: PackedTokens | None

    @property
    def counts(self) -> tuple[Counts, Counts, Counts]:
        """Numbers of masked, new and cached tokens of each image, (B,)."""
        num_cached = np.zeros_like(self.masked.counts) if self.cached is None else self.cached.counts
        return self.masked.counts, self.new.counts, num_cached


class PerSampleMasking(RandomMasking):
    """Draws mask ratio, reuse, and the share that is reused for each image, where `RandomMasking` draws for a batch."""

    def __call__(  # type: ignore[override]
        self, rng: np.random.Generator, batch_size: int, num_tokens: int, device: torch.device | str = "cpu"
    ) -> PackedPartition:
        """Draws a partition: the numbers of tokens on the host, their positions on the device, both from `rng`."""
        ratios = rng.beta(self.ratio_alpha, self.ratio_beta, batch_size)
        masked = np.array([num_masked(ratio, num_tokens) for ratio in ratios])
        visible = num_tokens - masked
        num_cached = np.rint(visible * rng.random(batch_size)).astype(int) * (rng.random(batch_size) < self.reuse_prob)
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
        order = torch.rand(batch_size, num_tokens, generator=generator, device=device).argsort(dim=1)
        # A row of `order` has the masked tokens, then the cached ones, then the new ones.

        def chosen(starts: Counts, counts: Counts) -> PackedTokens:
            """Takes `counts` tokens from `starts` on in each row of `order`."""
            images_on_host = np.repeat(np.arange(batch_size), counts)
            images = _on(device, images_on_host)
            columns = _on(device, _ranges(starts, counts))
            return PackedTokens(images, order[images, columns], images_on_host, counts)

        return PackedPartition(
            masked=chosen(np.zeros_like(masked), masked),
            new=chosen(masked + num_cached, visible - num_cached),
            cached=chosen(masked, num_cached) if num_cached.any() else None,
        )


def predict_packed(
    net: ENAT, cache_net: ENAT, token_ids: Tensor, class_ids: Tensor, partition: PackedPartition
) -> tuple[Tensor, Tensor]:
    """Predicts the masked tokens, as `enat.prediction.predict`: logits (1, M, K) and targets (1, M).

    Raises:
        InputError: for a variant of ENAT.
    """
    if type(net) is not ENAT:
        name = type(net).__name__
        raise InputError(f"PerSampleMasking: it is not for {name}; expected masking@module.masking=per_group.")
    masked, new, cached = partition
    cached_features = None
    if cached is not None:
        with torch.no_grad():
            cached_features = encode_packed(cache_net, token_ids, PerImage(cache_net.modulations(class_ids)), cached)
    modulations = PerImage(net.modulations(class_ids))
    features = encode_packed(net, token_ids, modulations, new, cached, cached_features)
    visible = new if cached is None else cached.joined(new)
    decoded = net.decode(
        features,
        masked.positions[None],
        PerToken(modulations, masked),
        context_modulations=PerToken(modulations, visible),
        kernel=PackedAttention(masked, visible),
    )
    return net.logits(decoded), masked.ids(token_ids)


def encode_packed(
    net: ENAT,
    token_ids: Tensor,
    modulations: "PerImage",
    tokens: PackedTokens,
    cached: PackedTokens | None = None,
    cached_features: Tensor | None = None,
) -> Tensor:
    """Computes the features of tokens, after the cached ones, as `ENAT.encode`: (1, P+N, D).

    Args:
        net: the network.
        token_ids: (B, L).
        modulations: of the images.
        tokens: the tokens to encode.
        cached: the tokens whose features are cached; None for no such tokens.
        cached_features: (1, P, D).
    """
    return net.encode(
        tokens.ids(token_ids),
        tokens.positions[None],
        PerToken(modulations, tokens),
        cached_features,
        context_modulations=None if cached is None else PerToken(modulations, cached),
        kernel=PackedAttention(tokens, cached),
    )


class PerImage:
    """Holds the modulations of images, from `ENAT.modulations`.

    They are kept in float32, so that the backward pass sums the gradients of an image's many tokens in float32.
    """

    def __init__(self, modulations: Sequence[Tensor]):
        self.dtype = modulations[0].dtype
        self.exact = [m.to(torch.promote_types(m.dtype, torch.float32)) for m in modulations]


class PerToken(Sequence[Tensor]):
    """Makes the modulations of tokens, (1, N, 8, D) for each block, only when a block asks for them: to save memory."""

    def __init__(self, modulations: PerImage, tokens: PackedTokens):
        self.modulations = modulations
        self.images = tokens.images

    def __len__(self) -> int:
        return len(self.modulations.exact)

    def __getitem__(self, index: Any) -> Any:
        spread = self.modulations.exact[index].index_select(0, self.images)  # (N, 1, 8, D)
        return spread.to(self.modulations.dtype).transpose(0, 1)


class PackedAttention:
    """Computes attention of tokens to a context and to themselves, within each image.

    As a kernel of a block, it takes the place of the network's own, and chooses an implementation that can do this.

    Args:
        tokens: the tokens that attend.
        context: the tokens that they attend to beside themselves; None for no others.
    """

    def __init__(self, tokens: PackedTokens, context: PackedTokens | None):
        self.device = tokens.images.device
        keys = tokens if context is None else context.joined(tokens)
        self.counts = tokens.counts
        self.key_counts = keys.counts
        self.key_order = _on(self.device, np.argsort(keys.images_on_host, kind="stable"))
        self.limits = self._limits(tokens.counts)
        self.key_limits = self._limits(keys.counts)

    def _limits(self, counts: Counts) -> Tensor:
        """Returns where each image begins and ends in a row of tokens that are sorted by image, (B+1,)."""
        return _on(self.device, np.concatenate([[0], counts.cumsum()]).astype(np.int32))

    @torch.compiler.disable  # its shapes change with every batch
    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Queries (1, H, N, d), keys and values (1, H, P+N, d), the context's first -> (1, H, N, d)."""
        key = key.index_select(2, self.key_order)  # sorted by image
        value = value.index_select(2, self.key_order)
        if query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16):
            return self._by_lengths(query, key, value)
        return self._on_padded_rows(query, key, value)

    def _by_lengths(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Computes attention by a kernel for sequences of several lengths."""
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))  # (N, H, d)
        longest, longest_key = int(self.counts.max()), int(self.key_counts.max())
        out = varlen_attn(q, k, v, self.limits, self.key_limits, longest, longest_key)
        assert isinstance(out, Tensor)  # without auxiliary results
        return out.transpose(0, 1).unsqueeze(0)

    def _on_padded_rows(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Computes attention on rows of equal length, one for each image that has queries."""
        places, key_places, is_key, way_back = self._padding
        q = _gather_rows(query, places)  # (B, H, longest, d)
        k = _gather_rows(key, key_places)
        v = _gather_rows(value, key_places)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=is_key[:, None, None])
        return out.transpose(0, 1).flatten(1, 2).index_select(1, way_back).unsqueeze(0)

    @cached_property
    def _padding(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places of the queries and keys of images that have queries, which keys count, and the way back to a row."""
        has_queries = self.counts > 0
        places, _ = _padded_places(self.counts, has_queries, self.device)
        key_places, is_key = _padded_places(self.key_counts, has_queries, self.device)
        counts = self.counts[has_queries]
        way_back = _ranges(np.arange(len(counts)) * places.shape[1], counts)
        return places, key_places, is_key, _on(self.device, way_back)


def _gather_rows(x: Tensor, places: Tensor) -> Tensor:
    """Takes tokens of a row (1, H, N, d) at places (B, longest) -> (B, H, longest, d)."""
    return x[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)


def _padded_places(counts: Counts, chosen: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns where the tokens of each chosen image are in a row, (B, longest), and which of these places count."""
    column = np.arange(counts[chosen].max())
    starts = (counts.cumsum() - counts)[chosen]
    is_token = column < counts[chosen, None]
    return _on(device, (starts[:, None] + column) * is_token), _on(device, is_token)


def _ranges(starts: Counts, counts: Counts) -> Counts:
    """Returns start, ..., start + count - 1 of each pair, one pair after the other: [5, 0], [2, 3] -> 5 6 0 1 2."""
    return np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)


def _on(device: torch.device | str, numbers: NDArray[Any]) -> Tensor:
    """Copies numbers to a device; nothing waits for it."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor
