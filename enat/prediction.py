"""Predicts the masked tokens of a training batch, after the cached features of an earlier state where it reuses some.

Shapes: `B` batch, `L` tokens of an image, `M` masked tokens, `K` codebook size.
"""

import torch
from torch import Tensor

from enat import packed
from enat.masking import Partition
from enat.net import ENAT


def predict(
    net: ENAT,
    cache_net: ENAT,
    token_ids: Tensor,
    class_ids: Tensor,
    partition: Partition | packed.PackedPartition,
) -> tuple[Tensor, Tensor]:
    """Runs the network on a batch (docs/method.md, Reuse in training).

    Args:
        net: predicts the masked tokens.
        cache_net: computes the cached features, without gradient; the EMA network in the official recipe.
        token_ids: (B, L).
        class_ids: (B,).
        partition: which tokens are masked, newly revealed and cached.

    Returns:
        Logits (B, M, K) and targets (B, M) of the masked tokens. Of a packed batch, (1, M, K) and (1, M) with the
        masked tokens of all images.
    """
    if isinstance(partition, packed.PackedPartition):
        return packed.predict_packed(net, cache_net, token_ids, class_ids, partition)
    cached_features = None
    if partition.cached is not None:
        with torch.no_grad():
            modulations = cache_net.modulations(class_ids)
            if cache_net.caches_masked:
                masked = torch.cat([partition.new, partition.masked], dim=1)
                _, cached_features = cache_net(token_ids, partition.cached, masked, modulations)
            else:
                cached_features = cache_net.encode(token_ids.gather(1, partition.cached), partition.cached, modulations)
    modulations = net.modulations(class_ids)
    logits, _ = net(token_ids, partition.new, partition.masked, modulations, cached_features)
    return logits, token_ids.gather(1, partition.masked)
