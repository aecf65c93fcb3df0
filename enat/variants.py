"""What the paper compares ENAT with: each differs from it in one respect, and takes its place anywhere.

Shapes as in `enat.net`: `B` batch, `N` new, `P` cached, `V = P + N` visible, `M` masked tokens, `D` width, `H` heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from enat.errors import InputError
from enat.kernels import Attention, sdpa
from enat.layers import Block, Layout, Linear, modulate, normalize
from enat.net import ENAT

INTERACTIONS = ("visible_to_visible", "visible_to_masked", "masked_to_visible", "masked_to_masked")


class Interactions(Layout):
    """Rows of visible tokens, then masked ones, of which some do not see others; each token sees itself.

    Args:
        visible, masked: how many of each.
        kept: of `INTERACTIONS`; in `a_to_b`, tokens b attend to tokens a, so that information flows from a to b.
        device: of the tokens.
    """

    def __init__(self, visible: int, masked: int, kept: Sequence[str], device: torch.device):
        kinds = {"visible": torch.arange(visible + masked, device=device) < visible}
        kinds["masked"] = ~kinds["visible"]
        self.allowed = torch.eye(visible + masked, dtype=torch.bool, device=device)
        for source, target in (name.split("_to_") for name in kept):
            self.allowed |= kinds[target][:, None] & kinds[source]

    def spread(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        return condition.unsqueeze(2), condition.unsqueeze(2)

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """By `sdpa`'s kernels whatever the attention, which may know no masks."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.allowed)


class NAT(ENAT):
    """The plain non-autoregressive transformer, as MaskGIT's (arXiv 2202.04200): all tokens alike in one stack.

    Nothing is reused: it wants `sampler.reuse_share=0` and `module.masking.reuse_prob=0`.

    Args:
        interactions: those of `INTERACTIONS` that attention keeps (paper section 3).
        sizes: of `ENAT`; the stack has `encoder_depth` and `decoder_depth` blocks together.

    Raises:
        InputError: for an unknown interaction, or sizes that do not fit together.
    """

    def __init__(self, interactions: Sequence[str] = INTERACTIONS, **sizes: Any):
        if unknown := set(interactions) - set(INTERACTIONS):
            raise InputError(f"interactions={min(unknown)}: expected some of {', '.join(INTERACTIONS)}.")
        super().__init__(**sizes)
        self.interactions = tuple(interactions)
        del self.reuse
        for block in self.blocks:
            del block.attention.context_kv

    def hidden(self, token_ids: Tensor, visible: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Features of all tokens, the visible ones first, (B, V+M, D); arguments as in `forward`."""
        ids = torch.cat([token_ids.gather(1, visible), torch.full_like(masked, self.mask_token_id)], dim=1)
        x = self.embed(ids, torch.cat([visible, masked], dim=1))
        layout = None
        if set(self.interactions) != set(INTERACTIONS):
            layout = Interactions(visible.shape[1], masked.shape[1], self.interactions, x.device)
        for block, c in zip(self.blocks, condition, strict=True):
            x = block(x, None, c, layout)
        return x

    def encode(self, *_: Any) -> Tensor:
        raise InputError(
            "NAT: it has no features of visible tokens alone, to reuse or to compare; expected "
            "module.masking.reuse_prob=0 in training, or another variant."
        )

    def forward(
        self, token_ids: Tensor, revealed: Tensor, masked: Tensor, condition: Tensor, cached: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: logits of the masked tokens (B, M, K), and features of the visible ones (B, V, D).

        Arguments as in `ENAT.forward`; `revealed` are all visible tokens.
        """
        if cached is not None and cached.shape[1]:
            raise InputError("NAT: it reuses nothing; expected sampler.reuse_share=0 with it.")
        visible, hidden = revealed.shape[1], self.hidden(token_ids, revealed, masked, condition)
        return self.logits(hidden[:, visible:]), hidden[:, :visible]


class SeparateBlock(Block):
    """A block with self-attention, then cross-attention to the context, each with a residual of its own.

    The condition sets three more vectors than in `Block`: shift, scale and gate of the cross-attention.
    """

    def __init__(self, width: int, num_heads: int, attention: Attention = sdpa):
        super().__init__(width, num_heads, attention)
        self.modulation = Linear(width, 11 * width)
        self.cross_attention = CrossAttention(width, num_heads, attention)
        del self.attention.context_kv

    def forward(self, x: Tensor, context: Tensor | None, condition: Tensor, layout: Layout | None = None) -> Tensor:
        if layout is not None:
            raise InputError("block=separate: it takes rows of images; expected masking@module.masking=per_group.")
        shift, scale, context_shift, context_scale, gate, *rest = condition.unsqueeze(2).unbind(dim=1)
        mlp_shift, mlp_scale, mlp_gate, cross_shift, cross_scale, cross_gate = rest  # (B, 1, D) each
        x = x + gate * self.attention(modulate(normalize(x), shift, scale), None)
        if context is not None:
            context = modulate(context, context_shift, context_scale)
            x = x + cross_gate * self.cross_attention(modulate(normalize(x), cross_shift, cross_scale), context)
        return x + mlp_gate * self.mlp(modulate(normalize(x), mlp_shift, mlp_scale))


class CrossAttention(nn.Module):
    """Tokens (B, N, D) attend to a context (B, P, D) alone."""

    def __init__(self, width: int, num_heads: int, attention: Attention = sdpa):
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.query, self.context_kv, self.out = Linear(width, width), Linear(width, 2 * width), Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(self.context_kv(context), "b p (two h d) -> two b h p d", two=2, h=self.num_heads)
        return self.out(rearrange(self.attention(query, key, value), "b h n d -> b n (h d)"))


class KeyValueReuse(ENAT):
    """Reuses the keys and values of every encoder block, and the last block's features as they are.

    What a step leaves to the next is (B, V, D (1 + 2 encoder_depth)): features, then keys and values of each block.

    Args:
        sizes: of `ENAT`.
    """

    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        del self.reuse
        for block in self.blocks[: self.encoder_depth]:
            del block.attention.context_kv

    def encode(self, token_ids: Tensor, revealed: Tensor, condition: Tensor, cached: Tensor | None = None) -> Tensor:
        """As `ENAT.encode`, but returns, and takes as `cached`, what the class describes."""
        x = self.embed(token_ids.gather(1, revealed), revealed)  # (B, N, D)
        known = None if cached is None or not cached.shape[1] else cached.detach().to(x.dtype)
        kept: list[Tensor] = []
        for number, block in enumerate(self.blocks[: self.encoder_depth]):
            here = None if known is None else known[..., (1 + 2 * number) * self.width :][..., : 2 * self.width]
            x, key_value = self.update(block, x, here, condition[number])
            kept.append(key_value)
        new = torch.cat([x, *(key_value.to(x.dtype) for key_value in kept)], dim=2)
        return new if known is None else torch.cat([known, new], dim=1)

    @staticmethod
    def update(block: Block, x: Tensor, known: Tensor | None, condition: Tensor) -> tuple[Tensor, Tensor]:
        """A block on new tokens (B, N, D), with known keys and values (B, P, 2D); also the new ones, (B, N, 2D)."""
        shift, scale, _, _, gate, mlp_shift, mlp_scale, mlp_gate = condition.unsqueeze(2).unbind(dim=1)
        attention, tokens = block.attention, modulate(normalize(x), shift, scale)
        own = attention.self_kv(tokens)
        every = own if known is None else torch.cat([known.to(own.dtype), own], dim=1)
        x = x + gate * attention.attend(attention.query(tokens), every)
        return x + mlp_gate * block.mlp(modulate(normalize(x), mlp_shift, mlp_scale)), own

    def forward(
        self, token_ids: Tensor, revealed: Tensor, masked: Tensor, condition: Tensor, cached: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: logits of the masked tokens (B, M, K), and what the next step may reuse."""
        known = self.encode(token_ids, revealed, condition, cached)
        return self.logits(self.decode(known[..., : self.width], masked, condition)), known
