"""The building blocks of ENAT: adaptive layer norm, SC-attention, the transformer block.

Shapes: `B` batch, `N` tokens being computed, `P` context tokens (only attended to), `D` width, `H` heads.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

EPS = 1e-6  # of every layer norm but the two in the head


def normalize(x: Tensor) -> Tensor:
    """Layer norm without affine parameters over the last dimension of `x` (..., D)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(normalized: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm (DiT, arXiv 2212.09748): scales and shifts `normalized` (B, N, D) by (B, 1, D)."""
    return normalized * (1 + scale) + shift


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention with scale (D/H)^-1/2: (B, H, N, D/H), (B, H, P+N, D/H) twice -> (B, H, N, D/H)."""
    return F.scaled_dot_product_attention(query, key, value)


class MLP(nn.Sequential):
    """Linear, tanh-GELU, linear: (..., D) -> (..., 4D) -> (..., D)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))


class SelfCrossAttention(nn.Module):
    """SC-attention (paper section 4.1): tokens attend to themselves and to a context, in one softmax.

    Queries come from the tokens; keys and values from the concatenation of context and tokens, each
    with a projection of its own.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width)
        self.context_kv = nn.Linear(width, 2 * width)
        self.self_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(B, N, D), (B, P, D) -> (B, N, D). Without a context this is self-attention."""
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        key_value = self.self_kv(x)
        if context is not None:
            key_value = torch.cat([self.context_kv(context), key_value], dim=1)
        key, value = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        return self.out(rearrange(attention(query, key, value), "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Transformer block with adaLN; encoder and decoder blocks are of the same kind (SPEC 2).

    The condition sets eight vectors, in this order: shift and scale of the tokens, shift and scale of the
    context, gate of the attention, shift, scale and gate of the MLP. They start at zero, so that an
    untrained block is the identity.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.modulation = nn.Linear(width, 8 * width)
        self.attention = SelfCrossAttention(width, num_heads)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, context: Tensor | None, condition: Tensor) -> Tensor:
        """Updates the tokens.

        Args:
            x: tokens to compute, (B, N, D).
            context: tokens to attend to, (B, P, D), already through `normalize`: that norm has no
                parameters, so that one serves every block that shares the context. None: no context.
            condition: what `modulation` makes of the class, (B, 8, D).

        Returns:
            (B, N, D)
        """
        shift, scale, context_shift, context_scale, gate, mlp_shift, mlp_scale, mlp_gate = condition.unsqueeze(
            2
        ).unbind(dim=1)  # eight of (B, 1, D)
        if context is not None:
            context = modulate(context, context_shift, context_scale)
        x = x + gate * self.attention(modulate(normalize(x), shift, scale), context)
        return x + mlp_gate * self.mlp(modulate(normalize(x), mlp_shift, mlp_scale))
