"""The ENAT network: an encoder over visible tokens, a decoder over masked ones, features reused between steps.

Shapes: `B` batch, `L` tokens of an image, `N` newly revealed tokens, `P` tokens with cached features,
`V = P + N` visible tokens, `M = L - V` masked tokens, `D` width, `H` heads, `K` codebook size, `C` classes.

Which tokens are visible, masked or new is said by tensors of positions whose sizes the host knows:
nothing here waits for the device, and every shape is static for a given (P, N, M).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from enat.errors import InputError
from enat.kernels import Attention, sdpa
from enat.layers import EPS, MLP, Block, Linear, normalize


class FeatureReuse(nn.Module):
    """R(f) = f + MLP(LN(f)) on cached features (B, P, D); no gradient flows into `f` (paper section 4.2)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = MLP(width)

    def forward(self, features: Tensor) -> Tensor:
        features = features.detach()
        return features + self.mlp(self.norm(features))


class ENAT(nn.Module):
    """Predicts masked tokens from visible ones and a class.

    Args:
        codebook_size: `K`; token id `K` is [MASK].
        num_classes: `C`; class id `C` is the null class, for unconditional prediction.
        num_tokens: `L`.
        width: `D`.
        num_heads: `H`, a divisor of `width`.
        encoder_depth: blocks over visible tokens.
        decoder_depth: blocks over masked tokens.
        dropout: on the embedding, while training.
        class_dropout: share of classes replaced by the null class, while training.
        attention: of `enat.kernels`; the choice changes the speed, not the result.
        block: makes a block from width, heads and attention; see `enat.variants` for another kind.

    Raises:
        InputError: for sizes that do not fit together.
    """

    def __init__(
        self,
        codebook_size: int,
        num_classes: int,
        num_tokens: int,
        width: int,
        num_heads: int,
        encoder_depth: int,
        decoder_depth: int,
        dropout: float = 0.1,
        class_dropout: float = 0.1,
        attention: Attention = sdpa,
        block: Callable[[int, int, Attention], Block] = Block,
    ):
        super().__init__()
        sizes = {
            "codebook_size": codebook_size,
            "num_classes": num_classes,
            "num_tokens": num_tokens,
            "width": width,
            "num_heads": num_heads,
            "encoder_depth": encoder_depth,
            "decoder_depth": decoder_depth,
        }
        self.sizes = sizes
        for name, value in sizes.items():
            least = 2 if name == "num_tokens" else 1
            if value < least:
                raise InputError(f"{name}={value}: expected at least {least}.")
        for name, share in {"dropout": dropout, "class_dropout": class_dropout}.items():
            if not 0 <= share <= 1:
                raise InputError(f"{name}={share}: expected a share between 0 and 1.")
        if width % num_heads:
            raise InputError(f"width={width}: expected a multiple of num_heads={num_heads}.")
        self.codebook_size, self.mask_token_id = codebook_size, codebook_size
        self.num_classes, self.null_class_id = num_classes, num_classes
        self.num_tokens, self.width = num_tokens, width
        self.encoder_depth, self.decoder_depth, self.class_dropout = encoder_depth, decoder_depth, class_dropout

        self.token_embedding = nn.Embedding(codebook_size + 1, width)
        self.position_embedding = nn.Embedding(num_tokens, width)
        self.embedding_norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.reuse = FeatureReuse(width)
        depth = encoder_depth + decoder_depth
        self.blocks: Sequence[Block] = nn.ModuleList(block(width, num_heads, attention) for _ in range(depth))  # type: ignore[assignment]
        self.head = nn.Sequential(
            nn.LayerNorm(width, eps=1e-5), Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-5)
        )
        self.head_bias = nn.Parameter(torch.zeros(codebook_size + 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform linears with zero bias, embeddings with std 0.02, modulations zero (SPEC 2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.blocks:
            nn.init.zeros_(block.modulation.weight)

    def condition(self, class_ids: Tensor) -> Tensor:
        """Class ids (B,) -> the adaLN vectors of every block, (blocks, B, 8, D).

        They depend on the class alone, so that a sampler computes them once. While training, a share
        `class_dropout` of the classes becomes the null class.
        """
        if self.training and self.class_dropout:
            dropped = torch.rand(class_ids.shape, device=class_ids.device) < self.class_dropout
            class_ids = class_ids.masked_fill(dropped, self.null_class_id)
        c = F.silu(self.class_embedding(class_ids))  # (B, D)
        return torch.stack([block.modulation(c).unflatten(1, (-1, self.width)) for block in self.blocks])

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """Token ids and their positions, both (B, N) -> (B, N, D)."""
        embedded = self.token_embedding(token_ids) + self.position_embedding(positions)
        return self.dropout(self.embedding_norm(embedded))

    def encode(self, token_ids: Tensor, revealed: Tensor, condition: Tensor, cached: Tensor | None = None) -> Tensor:
        """Features of the visible tokens.

        Args:
            token_ids: (B, L); only those at `revealed` are read.
            revealed: positions of the tokens to encode, (B, N): all visible ones where nothing is cached.
            condition: from `condition`, (blocks, B, 8, D).
            cached: features that an earlier call returned, (B, P, D); None or P = 0 for none.

        Returns:
            (B, V, D), first the P that were cached (through R), then the N new ones: the `cached` of a
            later call.
        """
        x = self.embed(token_ids.gather(1, revealed), revealed)  # (B, N, D)
        reused = context = None
        if cached is not None and cached.shape[1]:
            reused = self.reuse(cached)  # (B, P, D)
            context = normalize(reused)
        if x.shape[1]:
            for block, c in zip(self.blocks[: self.encoder_depth], condition, strict=False):
                x = block(x, context, c)
        return x if reused is None else torch.cat([reused.to(x.dtype), x], dim=1)

    def decode(self, features: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Visible features (B, V, D) and masked positions (B, M) -> features of the masked tokens, (B, M, D)."""
        x = self.embed(torch.full_like(masked, self.mask_token_id), masked)
        context = normalize(features) if features.shape[1] else None
        for block, c in zip(self.blocks[self.encoder_depth :], condition[self.encoder_depth :], strict=True):
            x = block(x, context, c)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """Features (B, M, D) -> logits over the codebook, (B, M, K).

        The output matrix is the input embedding, which gets no gradient this way.
        """
        codebook = self.token_embedding.weight[: self.codebook_size].detach()
        return F.linear(self.head(features), codebook, self.head_bias[: self.codebook_size])

    def forward(
        self, token_ids: Tensor, revealed: Tensor, masked: Tensor, condition: Tensor, cached: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step: logits of the masked tokens (B, M, K), and features of the visible ones (B, V, D).

        Arguments as in `encode` and `decode`.
        """
        features = self.encode(token_ids, revealed, condition, cached)
        return self.logits(self.decode(features, masked, condition)), features
