"""Images from classes."""

import torch

from enat.generation import GeneratedImages
from enat.sampler import Sampler
from enat.schedules import constant, cosine, rising


def test_generated_images_do_not_depend_on_batches(small_net):
    """But for ties that rounding decides: their share of tokens is printed, and under 0.1 %."""
    sampler = Sampler(4, 2.0, 30.0, 5.0, cosine, rising, constant, constant)  # hot, or all images were one
    places = [range(first, min(first + 10, 195)) for first in range(0, 195, 10)]

    def token_ids(batch_size, seed=3):
        images = GeneratedImages(small_net, sampler, None, 195, seed, 10, batch_size)
        together = images.read_together
        with torch.no_grad():
            parts = [images.token_ids(places[i : i + together]) for i in range(0, len(places), together)]
        return torch.cat([part for some in parts for part in some])

    alone = token_ids(10)
    assert alone.shape == (195, 16)
    for batch_size in (20, 50, 200):
        share = float((token_ids(batch_size) != alone).float().mean())
        print(f"batch {batch_size}: {share:.2%} of the tokens differ")
        assert share < 0.001
    assert (token_ids(10, seed=4) != alone).float().mean() > 0.2
    assert len({tuple(ids.tolist()) for ids in alone}) > 190  # each block has noise of its own
