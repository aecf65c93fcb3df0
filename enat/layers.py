"""The building blocks of ENAT: adaptive layer norm, SC-attention, the transformer block.

Shapes: `B` batch, `N` tokens to update, `P` context tokens (only attended to), `D` width, `H` heads, `d = D/H`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from enat.kernels import MLP, Kernel, Linear, sdpa, unwrapped

EPS = 1e-6  # of every layer norm except those of the head


def layer_norm(x: Tensor) -> Tensor:
    """Applies layer norm without parameters to the last dimension of `x` (..., D)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(normalized: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scales and shifts normalised tokens: with `layer_norm`, this is adaptive layer norm (DiT, arXiv 2212.09748)."""
    return normalized * (1 + scale) + shift


class SelfCrossAttention(nn.Module):
    """SC-attention (paper, section 4.1): tokens attend to a context and to themselves, in one softmax.

    Context and tokens are projected to keys and values separately, and these are concatenated:
    softmax(q [k_context, k_self]^T / sqrt(d)) [v_context, v_self].
    """

    def __init__(self, width: int, num_heads: int, kernel: Kernel = sdpa):
        super().__init__()
        self.num_heads = num_heads
        self.kernel = unwrapped(kernel)  # Hydra passes a partial without arguments
        self.query = Linear(width, width)
        self.context_kv = Linear(width, 2 * width)
        self.self_kv = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None, kernel: Kernel | None = None) -> Tensor:
        """Tokens (B, N, D) and context (B, P, D) -> (B, N, D). Without a context this is self-attention."""
        query = self.query(x)
        key_value = self.self_kv(x)  # (B, N, 2D), keys first
        if context is not None:
            key_value = torch.cat([self.context_kv(context), key_value], dim=1)  # (B, P+N, 2D)
        query = rearrange(query, "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(key_value, "b n (kv h d) -> kv b h n d", kv=2, h=self.num_heads)  # (B, H, P+N, d) each
        attended = (kernel or self.kernel)(query, key, value)  # (B, H, N, d)
        return self.out(rearrange(attended, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Updates tokens by SC-attention and an MLP. The class modulates their inputs and gates their outputs.

    The layer `modulation` maps SiLU(c) to 8 vectors (in `ENAT.modulations`): shift and scale of the tokens, shift and
    scale of the context, gate of the attention; shift, scale and gate of the MLP. A new network has zeros there
    (`ENAT.reset_parameters`), so that each of its blocks is the identity.
    """

    def __init__(self, width: int, num_heads: int, kernel: Kernel = sdpa):
        super().__init__()
        self.modulation = Linear(width, 8 * width)
        self.attention = SelfCrossAttention(width, num_heads, kernel)
        self.mlp = MLP(width)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None,
        modulation: Tensor,
        context_modulation: Tensor | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Updates the tokens: (B, N, D) -> (B, N, D).

        Args:
            x: the tokens to compute, (B, N, D).
            context: the tokens to attend to, (B, P, D), already layer-normalised; None for no context.
            modulation: the 8 vectors, (B, 1, 8, D); in a packed batch (`enat.packed`), one set per token: (B, N, 8, D).
            context_modulation: the vectors of the context in a packed batch, (B, P, 8, D); None for `modulation`.
            kernel: computes the attention in place of the block's own kernel.
        """
        shift, scale, _, _, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(dim=-2)  # (B, 1, D) each
        if context is not None:
            vectors = modulation if context_modulation is None else context_modulation
            _, _, context_shift, context_scale, *_ = vectors.unbind(dim=-2)
            context = modulate(context, context_shift, context_scale)
        x = x + gate * self.attention(modulate(layer_norm(x), shift, scale), context, kernel)
        return x + mlp_gate * self.mlp(modulate(layer_norm(x), mlp_shift, mlp_scale))
