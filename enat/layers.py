"""The building blocks of ENAT: adaptive layer norm, SC-attention, the transformer block.

Shapes: `B` batch, `N` tokens being computed, `P` context tokens (only attended to), `D` width, `H` heads.
"""

from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from enat.kernels import Attention, sdpa

EPS = 1e-6  # of every layer norm but the two in the head
ONEDNN_TYPES = [torch.float32] if torch.backends.mkldnn.is_available() else []
if ONEDNN_TYPES and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # by the processor: AVX-512 at least
    ONEDNN_TYPES.append(torch.bfloat16)


def normalize(x: Tensor) -> Tensor:
    """Layer norm without affine parameters over the last dimension of `x` (..., D)."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(normalized: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive layer norm (DiT, arXiv 2212.09748): scales and shifts `normalized` (B, N, D) by (B, 1, D)."""
    return normalized * (1 + scale) + shift


class Linear(nn.Linear):
    """`nn.Linear`; on a CPU, where no gradient is needed, computed by oneDNN.

    For float32, torch asks MKL, which is slower on AMD processors and rounds a row according to how many there are.
    oneDNN does neither, and takes the activation along. `torch.backends.mkldnn.flags(enabled=False)` leaves it out.
    """

    def forward(self, x: Tensor, gelu: nn.GELU | None = None) -> Tensor:
        """(..., in) -> (..., out), then through the activation, if one is given."""
        if not torch.compiler.is_compiling() and self._by_onednn(x):
            kind, variant = ("none", "") if gelu is None else ("gelu", gelu.approximate)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], variant)
        x = super().forward(x)
        return x if gelu is None else gelu(x)

    def _by_onednn(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and x.dtype == self.weight.dtype
            and x.dtype in ONEDNN_TYPES
            and bool(torch.backends.mkldnn.enabled)
            and x.numel() > 0
        )


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """For `torch.utils.flop_counter`, which does not know oneDNN's."""
    return 2 * x.numel() * weight[0]


class MLP(nn.Sequential):
    """Linear, tanh-GELU, linear: (..., D) -> (..., 4D) -> (..., D)."""

    def __init__(self, width: int):
        super().__init__(Linear(width, 4 * width), nn.GELU(approximate="tanh"), Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        into, gelu, out = self
        return out(into(x, gelu))


class Layout(Protocol):
    """How tokens lie in tensors, and which of them see each other, where it is not the usual way."""

    def spread(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of images (B, 8, D) -> of the tokens and of the context, with 8 at dimension 1, to broadcast."""

    def attend(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `enat.kernels`, with keys of the context first."""


class SelfCrossAttention(nn.Module):
    """SC-attention (paper section 4.1): tokens attend to themselves and to a context, in one softmax.

    Queries come from the tokens; keys and values from the concatenation of context and tokens, each
    with a projection of its own.
    """

    def __init__(self, width: int, num_heads: int, attention: Attention = sdpa):
        super().__init__()
        self.num_heads, self.attention = num_heads, attention
        self.query = Linear(width, width)
        self.context_kv = Linear(width, 2 * width)
        self.self_kv = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None, layout: Layout | None = None) -> Tensor:
        """(B, N, D), (B, P, D) -> (B, N, D). Without a context this is self-attention."""
        query, key_value = self.query(x), self.self_kv(x)
        if context is not None:
            key_value = torch.cat([self.context_kv(context), key_value], dim=1)
        return self.attend(query, key_value, layout)

    def attend(self, query: Tensor, key_value: Tensor, layout: Layout | None = None) -> Tensor:
        """Queries (B, N, D), keys and values side by side (B, S, 2D) -> (B, N, D)."""
        query = rearrange(query, "b n (h d) -> b h n d", h=self.num_heads)
        key, value = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        attention = self.attention if layout is None else partial(layout.attend, self.attention)
        return self.out(rearrange(attention(query, key, value), "b h n d -> b n (h d)"))


class Block(nn.Module):
    """Transformer block with adaLN; encoder and decoder blocks are of the same kind (SPEC 2).

    The condition sets eight vectors, in this order: shift and scale of the tokens, shift and scale of the
    context, gate of the attention, shift, scale and gate of the MLP. They start at zero, so that an
    untrained block is the identity.
    """

    def __init__(self, width: int, num_heads: int, attention: Attention = sdpa):
        super().__init__()
        self.modulation = Linear(width, 8 * width)
        self.attention = SelfCrossAttention(width, num_heads, attention)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, context: Tensor | None, condition: Tensor, layout: Layout | None = None) -> Tensor:
        """Updates the tokens.

        Args:
            x: tokens to compute, (B, N, D).
            context: tokens to attend to, (B, P, D), already through `normalize`: that norm has no
                parameters, so that one serves every block that shares the context. None: no context.
            condition: what `modulation` makes of the class, (B, 8, D).
            layout: None for rows of images, all of whose tokens see each other.

        Returns:
            (B, N, D)
        """
        if layout is None:
            of_tokens = of_context = condition.unsqueeze(2)  # (B, 8, 1, D)
        else:
            of_tokens, of_context = layout.spread(condition)
        shift, scale, _, _, gate, mlp_shift, mlp_scale, mlp_gate = of_tokens.unbind(dim=1)
        if context is not None:
            _, _, context_shift, context_scale, *_ = of_context.unbind(dim=1)
            context = modulate(context, context_shift, context_scale)
        x = x + gate * self.attention(modulate(normalize(x), shift, scale), context, layout)
        return x + mlp_gate * self.mlp(modulate(normalize(x), mlp_shift, mlp_scale))
