"""The ENAT network (paper, section 4): an encoder of visible tokens, a decoder of masked ones, reuse of features.

Shapes: `B` batch, `L` tokens of an image, `N` newly revealed tokens, `P` tokens with cached features,
`V = P + N` visible tokens, `M = L - V` masked tokens, `D` width, `H` heads, `K` codebook size, `C` classes.
Tensors of positions say which tokens are new or masked; their shapes are known, so the CPU never waits for the GPU.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor, nn

from enat.errors import InputError
from enat.kernels import MLP, Kernel, Linear, sdpa
from enat.layers import EPS, Block, layer_norm


class FeatureReuse(nn.Module):
    """Projects cached features (B, P, D): R(f) = f + MLP(LN(f)) (paper, section 4.2). No gradient flows into `f`."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)

    def forward(self, features: Tensor) -> Tensor:
        features = features.detach()
        return features + self.mlp(self.norm(features))


class ENAT(nn.Module):
    """Predicts masked tokens from visible tokens and a class.

    Args:
        codebook_size: `K`; token id `K` is [MASK].
        num_classes: `C`; class id `C` is the null class, for unconditional prediction, and the only class if `C` is 0.
        num_tokens: `L`.
        width: `D`.
        num_heads: `H`, a divisor of `width`.
        encoder_depth: number of blocks that compute visible tokens.
        decoder_depth: number of blocks that compute masked tokens.
        dropout: dropout probability of the embedding.
        class_dropout: probability that training replaces a class by the null class.
        attention: a function of `enat.kernels` that computes attention; it changes the speed, not the result.
        block: makes a block from width, heads and kernel; `enat.variants` has another kind.

    Raises:
        InputError: if `width` is not a multiple of `num_heads`.
    """

    caches_masked = False  # whether features of masked tokens are reused too (`enat.reuse.AllTokensReuse`)

    def __init__(
        self,
        codebook_size: Annotated[int, Ge(1)],
        num_classes: Annotated[int, Ge(0)],
        num_tokens: Annotated[int, Ge(2)],
        width: Annotated[int, Ge(1)],
        num_heads: Annotated[int, Ge(1)],
        encoder_depth: Annotated[int, Ge(1)],
        decoder_depth: Annotated[int, Ge(1)],
        dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,
        class_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1,
        attention: Kernel = sdpa,
        block: Callable[[int, int, Kernel], Block] = Block,
    ):
        super().__init__()
        if width % num_heads:
            raise InputError(f"width={width}: expected a multiple of num_heads={num_heads}.")
        self.codebook_size = self.mask_token_id = codebook_size
        self.num_classes = self.null_class_id = num_classes
        self.num_tokens = num_tokens
        self.width = width
        self.num_heads = num_heads
        self.encoder_depth = encoder_depth
        self.decoder_depth = decoder_depth
        self.class_dropout = class_dropout
        self.token_embedding = nn.Embedding(codebook_size + 1, width)  # E
        self.position_embedding = nn.Embedding(num_tokens, width)  # E_pos
        self.embedding_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.class_embedding = nn.Embedding(num_classes + 1, width)  # Y
        self.reuse = FeatureReuse(width)  # R
        self.encoder = nn.ModuleList(block(width, num_heads, attention) for _ in range(encoder_depth))
        self.decoder = nn.ModuleList(block(width, num_heads, attention) for _ in range(decoder_depth))
        self.head = nn.Sequential(
            nn.LayerNorm(width, eps=1e-5), Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-5)
        )
        self.head_bias = nn.Parameter(torch.zeros(codebook_size + 1))
        self.reset_parameters()

    @property
    def blocks(self) -> list[Block]:
        """The blocks of the encoder, then those of the decoder."""
        return cast(list[Block], [*self.encoder, *self.decoder])

    @property
    def sizes(self) -> dict[str, int]:
        """The options that fix the shape of the network, by name; checkpoints store them."""
        names = ("codebook_size", "num_classes", "num_tokens", "width", "num_heads", "encoder_depth", "decoder_depth")
        return {name: getattr(self, name) for name in names}

    def reset_parameters(self) -> None:
        """Initialises linear layers (Xavier-uniform, zero biases), embeddings (std of 0.02) and modulations (zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.modulation.weight)

    def modulations(self, class_ids: Tensor) -> list[Tensor]:
        """Computes the 8 adaLN vectors of every block, a list of (B, 1, 8, D), from class ids (B,).

        They depend on the class alone: a sampler computes them once. In training, some classes become the null class.
        """
        if self.training and self.class_dropout:
            is_dropped = torch.rand(class_ids.shape, device=class_ids.device) < self.class_dropout
            class_ids = class_ids.masked_fill(is_dropped, self.null_class_id)
        activated = F.silu(self.class_embedding(class_ids))  # SiLU(c), (B, D)
        # Stacked, so that a block that a step skips gets a gradient of zero here, not None: AdamW then counts the step.
        stacked = torch.stack([block.modulation(activated) for block in self.blocks])
        return list(stacked.unflatten(2, (1, -1, self.width)))  # (B, 1, 8, D) each

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embeds tokens from their ids and positions, both (B, N): Dropout(LN(E[id] + E_pos[position])), (B, N, D)."""
        embedded = self.token_embedding(ids) + self.position_embedding(positions)
        return self.dropout(self.embedding_norm(embedded))

    def encode(
        self,
        ids: Tensor,
        positions: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
        context_modulations: Sequence[Tensor] | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Computes the features of the visible tokens by encoding the new ones only (paper, section 4.2).

        Args:
            ids, positions: ids and positions of the new tokens, (B, N). Without a cache, all visible tokens are new.
            modulations: the result of `ENAT.modulations`.
            cached_features: the result of an earlier call, (B, P, D); None or P = 0 if nothing is cached.
            context_modulations, kernel: are passed on to the blocks, for packed batches (`enat.packed`).

        Returns:
            (B, V, D): first the P cached features, projected by R, then the N new ones.
        """
        x = self.embed(ids, positions)  # (B, N, D)
        reused = context = None
        if cached_features is not None and cached_features.shape[1]:
            reused = self.reuse(cached_features)  # R(f), (B, P, D)
            context = layer_norm(reused)
        if x.shape[1]:
            for i, block in enumerate(self.encoder):
                x = block(x, context, modulations[i], context_modulations and context_modulations[i], kernel)
        return (
            x if reused is None else torch.cat([reused.to(x.dtype), x], dim=1)
        )  # under autocast, the types may differ

    def decode(
        self,
        features: Tensor,
        positions: Tensor,
        modulations: Sequence[Tensor],
        context_modulations: Sequence[Tensor] | None = None,
        kernel: Kernel | None = None,
    ) -> Tensor:
        """Computes features of the masked tokens at `positions` (B, M) from those of the visible ones, (B, V, D)."""
        x = self.embed(torch.full_like(positions, self.mask_token_id), positions)  # (B, M, D)
        context = layer_norm(features) if features.shape[1] else None  # the same for every block (paper, section 4.1)
        for i, block in enumerate(self.decoder, start=self.encoder_depth):
            x = block(x, context, modulations[i], context_modulations and context_modulations[i], kernel)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """Computes logits over the codebook, (B, M, K), from features (B, M, D) and the embedding matrix E."""
        codebook = self.token_embedding.weight[: self.codebook_size].detach()  # E without [MASK], and no gradient to E
        return F.linear(self.head(features), codebook, self.head_bias[: self.codebook_size])

    def forward(
        self,
        token_ids: Tensor,
        new_positions: Tensor,
        masked_positions: Tensor,
        modulations: Sequence[Tensor],
        cached_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes one step from token ids (B, L) and the positions of new (B, N) and masked (B, M) tokens.

        Ids at other positions than the new ones are ignored. `modulations` is the result of `ENAT.modulations`. Returns
        logits (B, M, K) of the masked tokens, and features (B, V, D) of the visible ones, which the next step reuses.
        """
        features = self.encode(token_ids.gather(1, new_positions), new_positions, modulations, cached_features)
        return self.logits(self.decode(features, masked_positions, modulations)), features
