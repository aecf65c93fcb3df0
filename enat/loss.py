"""The training loss (docs/method.md, Loss). Shapes: `B` batch, `M` masked tokens, `K` codebook size."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor


class MaskedCrossEntropy:
    """Computes the cross-entropy with label smoothing, averaged over the masked tokens.

    Args:
        label_smoothing: probability that is spread over all `K` entries of the codebook.
    """

    def __init__(self, label_smoothing: Annotated[float, Interval(ge=0, le=1)] = 0.1):
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, M, K) and token ids (B, M) -> scalar, in nats, computed in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)
