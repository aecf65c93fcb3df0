"""Other ways to reuse the features of the step before (paper, Tables 6c to 6e), each in the place of `enat.net.ENAT`.

Shapes: `B` batch, `L` tokens of an image, `N` newly revealed tokens, `P` tokens with cached features, `V = P + N`
visible tokens, `M` masked tokens, `D` width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from enat.layers import layer_norm
from enat.net import ENAT, FeatureReuse


class NoProjection(nn.Module):
    """Stands in place of the projection R: features (..., D) are reused as they are. No gradient flows into them."""

    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


class ReuseWithoutProjection(ENAT):
    """Reuses features without the projection R (paper, Table 6c).

    Args:
        sizes: the arguments of `ENAT`.
    """

    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        self.reuse = NoProjection()  # type: ignore[assignment]


class LayerToLayerReuse(ENAT):
    """Lets each encoder block attend to what the same block gave in the step before (paper, Table 6e).

    Each encoder block has a projection of its own, and so has what the decoder attends to. The cached features are
    (B, V, D (1 + encoder_depth)): the features that each encoder block gives, then those that the decoder attends to.

    Args:
        sizes: the arguments of `ENAT`.
    """

    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        del self.reuse
        self.reuses = nn.ModuleList(FeatureReuse(self.width) for _ in range(self.encoder_depth + 1))
        self.reset_parameters()

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
        reused: list[Tensor] = []
        if cached_features is not None and cached_features.shape[1]:
            parts = cached_features.split(self.width, dim=2)
            reused = [project(part) for project, part in zip(self.reuses, parts, strict=True)]  # (B, P, D) each
        features = []
        for number, block in enumerate(self.encoder):
            if x.shape[1]:
                x = block(x, layer_norm(reused[number]) if reused else None, modulations[number])
            features.append(x)
        new = torch.cat([*features, x], dim=2)  # the decoder attends to what the last block gives
        return torch.cat([torch.cat(reused, dim=2).to(new.dtype), new], dim=1) if reused else new

    def decode(self, features: Tensor, *arguments: Any) -> Tensor:
        """Computes the features of the masked tokens, as `ENAT.decode`, from the last D of what `encode` returns."""
        return super().decode(features[..., -self.width :], *arguments)


class AllTokensReuse(ENAT):
    """Reuses the features of all tokens of the step before, also of those that were masked (paper, Table 6d).

    The encoder attends to the features of all tokens, the decoder to those of the visible ones, as in `ENAT`. The
    cached features are (B, L, D): first those of the tokens that were visible, then those of the masked ones.

    Args:
        sizes: the arguments of `ENAT`.
    """

    caches_masked = True

    def forward(
        self,
        token_ids: Tensor,
        new_positions: Tensor,
        masked_positions: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes one step, as `ENAT.forward`, but returns features of all tokens, the visible ones first."""
        new_ids = token_ids.gather(1, new_positions)
        features = self.encode(new_ids, new_positions, modulations, cached_features)  # cached, then new ones
        num_cached = features.shape[1] - new_positions.shape[1]
        num_reused = self.num_tokens - masked_positions.shape[1] - new_positions.shape[1]  # P
        visible = torch.cat([features[:, :num_reused], features[:, num_cached:]], dim=1)  # (B, V, D)
        decoded = self.decode(visible, masked_positions, modulations)
        return self.logits(decoded), torch.cat([visible, decoded.to(visible.dtype)], dim=1)
