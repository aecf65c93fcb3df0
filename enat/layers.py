"""The building blocks of ENAT: adaptive layer norm, SC-attention, the transformer block.

Shapes: `B` batch, `N` tokens being computed, `P` context tokens (only attended to), `D` width, `H` heads.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from enat.attention import Attention, sdpa

if TYPE_CHECKING:
    from enat.packed import Packing

EPS = 1e-6  # of every layer norm but the two in the head
ONEDNN_TYPES = (torch.float32, torch.bfloat16) if torch.backends.mkldnn.is_available() else ()


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

    def forward(self, x: Tensor, context: Tensor | None, packing: "Packing | None" = None) -> Tensor:
        """(B, N, D), (B, P, D) -> (B, N, D). Without a context this is self-attention."""
        query = rearrange(self.query(x), "b n (h d) -> b h n d", h=self.num_heads)
        key_value = self.self_kv(x)
        if context is not None:
            key_value = torch.cat([self.context_kv(context), key_value], dim=1)
        key, value = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        attend = self.attention if packing is None else partial(packing.attend, self.attention)
        return self.out(rearrange(attend(query, key, value), "b h n d -> b n (h d)"))


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

    def forward(self, x: Tensor, context: Tensor | None, condition: Tensor, packing: "Packing | None" = None) -> Tensor:
        """Updates the tokens.

        Args:
            x: tokens to compute, (B, N, D).
            context: tokens to attend to, (B, P, D), already through `normalize`: that norm has no
                parameters, so that one serves every block that shares the context. None: no context.
            condition: what `modulation` makes of the class, (B, 8, D).
            packing: of `enat.packed`, where the tokens of all images are in one line, (1, N, D) and (1, P, D).

        Returns:
            (B, N, D)
        """
        if packing is None:
            of_tokens = of_context = condition.unsqueeze(2)  # (B, 8, 1, D)
        else:
            of_tokens, of_context = packing.spread(condition)  # (N, 8, D), (P, 8, D)
        shift, scale, _, _, gate, mlp_shift, mlp_scale, mlp_gate = of_tokens.unbind(dim=1)
        if context is not None:
            _, _, context_shift, context_scale, *_ = of_context.unbind(dim=1)
            context = modulate(context, context_shift, context_scale)
        x = x + gate * self.attention(modulate(normalize(x), shift, scale), context, packing)
        return x + mlp_gate * self.mlp(modulate(normalize(x), mlp_shift, mlp_scale))
