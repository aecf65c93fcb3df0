"""A network with known logits, and samplers of few steps, for tests of the sampler."""

import torch

from enat.sampler import Sampler
from enat.schedules import cosine, falling, rising

K, L = 5, 12


class KnownNet:
    """Stands in for the network: fixed logits per class and position; remembers how it was called."""

    num_tokens, codebook_size, mask_token_id, null_class_id, num_classes = L, K, K, 2, 2
    training = caches_masked = False

    def __init__(self, seed=0, scale=1.0):
        self.table = torch.randn(3, L, K, generator=torch.Generator().manual_seed(seed)) * scale
        self.head_bias = torch.zeros(1)
        self.calls = []

    def modulations(self, class_ids):
        return [class_ids.view(-1, 1, 1, 1)]

    def __call__(self, token_ids, new, masked, modulations, cached_features=None):
        self.calls.append((token_ids, new, masked, cached_features))
        num_cached = 0 if cached_features is None else cached_features.shape[1]
        classes = modulations[0].flatten()
        logits = self.table[classes].gather(1, masked.unsqueeze(2).expand(-1, -1, K))
        return logits, torch.zeros(len(classes), num_cached + new.shape[1], 1)


def make(**settings):
    defaults = {
        "num_steps": 4,
        "guidance_scale": 2.0,
        "sampling_temperature": 0.0,
        "gumbel_temperature": 0.0,
        "mask_schedule": cosine,
        "guidance_schedule": rising,
        "sampling_temperature_schedule": falling,
        "gumbel_temperature_schedule": falling,
    }
    return Sampler(**{**defaults, **settings})
