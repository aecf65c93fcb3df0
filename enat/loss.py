"""The training loss. Shapes: `B` batch, `M` masked tokens, `K` codebook size."""

import torch
import torch.nn.functional as F
from torch import Tensor

from enat.errors import InputError


class MaskedCrossEntropy:
    """Cross-entropy over the codebook with label smoothing, mean over the masked tokens (SPEC 3).

    Args:
        label_smoothing: probability spread over all `K` entries.

    Raises:
        InputError: if it is not a probability.
    """

    def __init__(self, label_smoothing: float = 0.1):
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing={label_smoothing}: expected a probability between 0 and 1.")
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Logits (B, M, K), in float32 at least, and token ids (B, M) -> scalar, in nats."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing)
