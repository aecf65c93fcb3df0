"""Networks, and a block, to compare ENAT with; each differs in one respect, and can be used in its place.

Shapes: `B` batch, `N` newly revealed tokens, `P` tokens with cached features, `V = P + N` visible tokens, `M` masked
tokens, `D` width, `H` heads, `d = D/H`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from enat.errors import InputError
from enat.kernels import Kernel, Linear, sdpa, unwrapped
from enat.layers import Block, layer_norm, modulate
from enat.net import ENAT

INTERACTIONS = ("visible_to_visible", "visible_to_masked", "masked_to_visible", "masked_to_masked")


def interaction_mask(num_visible: int, num_masked: int, interactions: Sequence[str], device: torch.device) -> Tensor:
    """Makes the attention mask of `V` visible tokens, followed by `M` masked ones (paper, section 3).

    Args:
        num_visible, num_masked: `V` and `M`.
        interactions: those of `INTERACTIONS` that are kept; in `a_to_b`, information flows from tokens a to tokens b:
            tokens b attend to tokens a. Each token attends to itself in any case.
        device: of the tokens.

    Returns:
        (V+M, V+M), True where the token of the row attends to the token of the column.
    """
    is_visible = torch.arange(num_visible + num_masked, device=device) < num_visible
    is_kind = {"visible": is_visible, "masked": ~is_visible}
    attends = torch.eye(num_visible + num_masked, dtype=torch.bool, device=device)
    for source, target in (name.split("_to_") for name in interactions):
        attends |= is_kind[target][:, None] & is_kind[source]
    return attends


def remove_context(blocks: Sequence[Block]) -> None:
    """Removes the projections of a context from blocks that are never given one.

    Raises:
        InputError: for blocks of another kind than the default.
    """
    for block in blocks:
        if type(block) is not Block:
            raise InputError(
                f"block={type(block).__name__}: expected the default, since this network gives them no context."
            )
        del block.attention.context_kv


class NAT(ENAT):
    """Computes all tokens alike in one stack of blocks: the plain non-autoregressive transformer (paper, section 3).

    Its blocks are those of encoder and decoder together. It reuses nothing: it needs `sampler.reuse_share=0` and
    `module.masking.reuse_prob=0`. `ContextReuse` has the same weights and reuses in sampling.

    Args:
        interactions: those of `INTERACTIONS` that attention keeps (paper, section 3).
        sizes: the arguments of `ENAT`.

    Raises:
        InputError: for an unknown interaction, or sizes that do not fit together.
    """

    def __init__(self, interactions: Sequence[str] = INTERACTIONS, **sizes: Any):
        if unknown := set(interactions) - set(INTERACTIONS):
            raise InputError(f"interactions={min(unknown)}: expected some of {', '.join(INTERACTIONS)}.")
        super().__init__(**sizes)
        self.interactions = tuple(interactions)
        del self.reuse
        remove_context(self.blocks)

    def embed_both(self, token_ids: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Embeds tokens at the positions of visible ones (B, V), then [MASK] at those of masked ones: (B, V+M, D)."""
        ids = torch.cat([token_ids.gather(1, visible), torch.full_like(masked, self.mask_token_id)], dim=1)
        return self.embed(ids, torch.cat([visible, masked], dim=1))

    def features(self, token_ids: Tensor, visible: Tensor, masked: Tensor, modulations: Sequence[Tensor]) -> Tensor:
        """Computes the features of all tokens, the visible ones first, (B, V+M, D); arguments as in `forward`."""
        x = self.embed_both(token_ids, visible, masked)
        kernel = None
        if set(self.interactions) != set(INTERACTIONS):
            mask = interaction_mask(visible.shape[1], masked.shape[1], self.interactions, x.device)
            kernel = partial(F.scaled_dot_product_attention, attn_mask=mask)  # other kernels may know no masks
        for block, modulation in zip(self.blocks, modulations, strict=True):
            x = block(x, None, modulation, kernel=kernel)
        return x

    def encode(self, *_: Any, **__: Any) -> Tensor:
        raise InputError(
            "NAT: it has no features of visible tokens alone, to reuse or to compare; expected "
            "module.masking.reuse_prob=0 in training, or another variant."
        )

    def forward(
        self,
        token_ids: Tensor,
        new: Tensor,
        masked: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes one step, as `ENAT.forward`, where `new` are all visible tokens.

        Raises:
            InputError: if features are to be reused.
        """
        if cached_features is not None and cached_features.shape[1]:
            raise InputError("NAT: it reuses nothing; expected sampler.reuse_share=0 with it.")
        features = self.features(token_ids, new, masked, modulations)
        visible, decoded = features.split([new.shape[1], masked.shape[1]], dim=1)
        return self.logits(decoded), visible


class SeparateBlock(Block):
    """Updates tokens by self-attention, then by cross-attention to the context, each with its own residual connection.

    `modulation` makes three more vectors, after the eight of `Block`: shift, scale and gate of the cross-attention.
    """

    def __init__(self, width: int, num_heads: int, kernel: Kernel = sdpa):
        super().__init__(width, num_heads, kernel)
        self.modulation = Linear(width, 11 * width)
        self.cross_attention = CrossAttention(width, num_heads, kernel)
        del self.attention.context_kv

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        modulation: Tensor,
        context_modulation: Tensor | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Updates the tokens, as `Block.forward`, with modulation (B, 1, 11, D).

        Raises:
            InputError: for a kernel: that of a packed batch expects context and tokens in one softmax.
        """
        if kernel is not None:
            raise InputError("SeparateBlock: it takes rows of images; expected masking@module.masking=per_group.")
        shift, scale, context_shift, context_scale, gate, *rest = modulation.unbind(dim=-2)
        mlp_shift, mlp_scale, mlp_gate, cross_shift, cross_scale, cross_gate = rest  # (B, 1, D) each
        x = x + gate * self.attention(modulate(layer_norm(x), shift, scale), None)
        if context is not None:
            context = modulate(context, context_shift, context_scale)
            x = x + cross_gate * self.cross_attention(modulate(layer_norm(x), cross_shift, cross_scale), context)
        return x + mlp_gate * self.mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))


class CrossAttention(nn.Module):
    """Lets tokens (B, N, D) attend to a context (B, P, D) alone."""

    def __init__(self, width: int, num_heads: int, kernel: Kernel = sdpa):
        super().__init__()
        self.num_heads = num_heads
        self.kernel = unwrapped(kernel)
        self.query = Linear(width, width)
        self.context_kv = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, D), (B, P, D) -> (B, N, D)."""
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(self.context_kv(context), "b p (kv h d) -> kv b h p d", kv=2, h=self.num_heads)
        return self.out(rearrange(self.kernel(query, key, value), "b h n d -> b n (h d)"))


class KeyValueReuse(ENAT):
    """Reuses the keys and values of every encoder block, and the features of the last block as they are.

    Its cached features are (B, V, (1 + 2 encoder_depth) D): features, then keys and values of each block.

    Args:
        sizes: the arguments of `ENAT`.
    """

    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        del self.reuse
        remove_context(self.blocks[: self.encoder_depth])

    def encode(
        self,
        ids: Tensor,
        positions: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
        *_: Any,
    ) -> Tensor:
        """Computes what the next step may reuse, as `ENAT.encode`, but returns and takes what the class describes."""
        x = self.embed(ids, positions)  # (B, N, D)
        cached = None
        if cached_features is not None and cached_features.shape[1]:
            cached = cached_features.detach().to(x.dtype)
        cached_keys_values = None if cached is None else cached[..., self.width :]
        x, keys_values = run_blocks(self.blocks[: self.encoder_depth], x, modulations, cached_keys_values)
        new = torch.cat([x, keys_values], dim=2)
        return new if cached is None else torch.cat([cached, new], dim=1)

    def decode(self, features: Tensor, *arguments: Any) -> Tensor:
        """Computes the features of the masked tokens, as `ENAT.decode`, from the first D of what `encode` returns."""
        return super().decode(features[..., : self.width], *arguments)


class CachedKeysValues:
    """Computes attention to cached keys and values and to new ones, as the kernel of a block, and keeps the new ones.

    Args:
        cached: keys, then values of the tokens that were visible before, (B, P, 2D); None for none.
        block: whose own kernel computes the attention.
    """

    new: Tensor  # (B, N, 2D)

    def __init__(self, cached: Tensor | None, block: Block):
        self.cached = cached
        self.kernel = block.attention.kernel

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        self.new = rearrange([key, value], "kv b h n d -> b n (kv h d)")
        if self.cached is not None:
            cached = self.cached.to(key.dtype)
            cached_key, cached_value = rearrange(cached, "b p (kv h d) -> kv b h p d", kv=2, h=key.shape[1])
            key = torch.cat([cached_key, key], dim=2)
            value = torch.cat([cached_value, value], dim=2)
        return self.kernel(query, key, value)


def run_blocks(
    blocks: Sequence[Block], x: Tensor, modulations: Sequence[Tensor], cached: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs blocks on tokens that also attend to the cached keys and values of each block.

    Args:
        blocks: `depth` of them.
        x: the tokens, (B, N, D).
        modulations: of each block, (B, 1, 8, D).
        cached: keys, then values of the first block, then of the second and so on, (B, P, 2 D depth); None for none.

    Returns:
        The tokens after the blocks, (B, N, D), and their keys and values, (B, N, 2 D depth).
    """
    new = []
    parts = [None] * len(blocks) if cached is None else cached.chunk(len(blocks), dim=2)
    for block, modulation, part in zip(blocks, modulations, parts, strict=False):  # modulations: of the decoder, too
        kernel = CachedKeysValues(part, block)
        x = block(x, None, modulation, kernel=kernel)
        new.append(kernel.new.to(x.dtype))
    return x, torch.cat(new, dim=2)


class ContextReuse(NAT):
    """Samples from a plain NAT with cached keys and values of its visible tokens, without any training for it.

    A step computes the masked tokens and the newly revealed ones, which attend to the cached keys and values of the
    tokens that were visible before, as in ReCAP (https://arxiv.org/abs/2505.19089). The cached ones were computed while
    more tokens were masked, so that the result is not that of `NAT`; `sampler.refresh_every` computes them anew. ReCAP
    leaves out masked tokens that a step does not reveal. Here each step computes all of them, because the order of
    confidence needs them.

    Its cached features are (B, V, 2 D depth): keys, then values of each block. It takes the weights of a `NAT`.

    Args:
        interactions: those of a `NAT` whose tokens all attend to each other; other ones are refused.
        sizes: the arguments of `ENAT`.

    Raises:
        InputError: for other interactions, or sizes that do not fit together.
    """

    def __init__(self, interactions: Sequence[str] = INTERACTIONS, **sizes: Any):
        super().__init__(interactions, **sizes)
        if set(interactions) != set(INTERACTIONS):
            raise InputError("ContextReuse: expected a NAT with all interactions; others need sampler.reuse_share=0.")

    def forward(
        self,
        token_ids: Tensor,
        new: Tensor,
        masked: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes one step, as `ENAT.forward`, but returns and takes what the class describes."""
        cached = cached_features if cached_features is not None and cached_features.shape[1] else None
        x, keys_values = run_blocks(self.blocks, self.embed_both(token_ids, new, masked), modulations, cached)
        keys_values = keys_values[:, : new.shape[1]]  # those of masked tokens are not kept
        features = keys_values if cached is None else torch.cat([cached, keys_values], dim=1)
        return self.logits(x[:, new.shape[1] :]), features
