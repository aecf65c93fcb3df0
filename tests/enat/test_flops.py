"""FLOPs that are counted from sizes are those that torch counts while running."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from enat.flops import measured_peak, modulation_flops, step_flops, training_flops
from enat.masking import Partition


@pytest.mark.parametrize(("new", "reused"), [(5, 0), (3, 4), (0, 6), (0, 0)])
def test_forward(small_net, new, reused):
    batch, masked = 3, 16 - new - reused
    positions = torch.arange(16).expand(batch, -1)
    token_ids = torch.zeros(batch, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        modulations = small_net.modulations(torch.zeros(batch, dtype=torch.long))
        cached = torch.randn(batch, reused, 32)
        small_net(token_ids, positions[:, masked : masked + new], positions[:, :masked], modulations, cached)
    expected = modulation_flops(small_net) + step_flops(small_net, masked, new, reused)
    assert counter.get_total_flops() == batch * expected


def test_training_without_reuse(small_net):
    """Three times the forward pass, but for what needs no gradient: the codebook and the class embedding's input."""
    small_net.train()
    part = Partition(*torch.arange(16).expand(4, -1).split([10, 6], dim=1), None)
    token_ids, class_ids = torch.zeros(4, 16, dtype=torch.long), torch.zeros(4, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits, _ = small_net(token_ids, part.new, part.masked, small_net.modulations(class_ids))
        logits.sum().backward()
    codebook = 2 * 32 * 12 * 4 * 10
    assert counter.get_total_flops() == pytest.approx(training_flops(small_net, part.counts, 4) - codebook, rel=1e-6)


def test_training_with_numbers_of_each_image(small_net):
    """A batch of images with different numbers costs as much as the images, each alone."""
    counts = np.array([10, 12, 9]), np.array([6, 1, 0]), np.array([0, 3, 7])
    alone = [training_flops(small_net, tuple(map(int, numbers)), 1) for numbers in zip(*counts, strict=True)]
    # the first, without reuse, is in the batch that makes the cache all the same, for its modulations
    assert training_flops(small_net, counts, 3) == sum(alone) + modulation_flops(small_net)


def test_peak():
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32, 256) < 1e15
