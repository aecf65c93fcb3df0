"""A packed batch gives what each image gives alone."""

import numpy as np
import pytest
import torch

from enat.masking import Partition, RandomMasking
from enat.packed import PackedPartition, PackedTokens, PerSampleMasking
from enat.prediction import predict


def pack(*positions: list[int]) -> PackedTokens:
    """Packs the tokens at the positions of each image."""
    counts = np.array([len(chosen) for chosen in positions])
    images = np.repeat(np.arange(len(positions)), counts)
    flat = torch.tensor([position for chosen in positions for position in chosen], dtype=torch.int64)
    return PackedTokens(torch.from_numpy(images), flat, images, counts)


@pytest.fixture
def example(small_net):
    """Four images: with reuse, without, with all visible tokens cached, with one token visible."""
    torch.manual_seed(1)
    order = torch.rand(4, 16).argsort(dim=1).tolist()
    sizes = [(9, 4), (12, 0), (5, 11), (15, 0)]  # masked, cached
    parts = [
        (row[:masked], row[masked + cached :], row[masked : masked + cached])
        for row, (masked, cached) in zip(order, sizes, strict=True)
    ]
    return small_net, torch.randint(12, (4, 16)), torch.tensor([0, 3, 5, 1]), parts


def alone(net, token_ids, class_ids, part):
    """Predicts the masked tokens of one image without packing."""
    masked, new, cached = (torch.tensor([positions], dtype=torch.int64) for positions in part)
    return predict(net, net, token_ids, class_ids, Partition(masked, new, cached if cached.shape[1] else None))


def packed(net, token_ids, class_ids, parts):
    partition = PackedPartition(*(pack(*positions) for positions in zip(*parts, strict=True)))
    return predict(net, net, token_ids, class_ids, partition)


def test_each_image_as_if_alone(example):
    net, token_ids, class_ids, parts = example
    logits, targets = packed(*example)
    begun = 0
    for row, part in enumerate(parts):
        expected, ids = alone(net, token_ids[row : row + 1], class_ids[row : row + 1], part)
        here = slice(begun, begun + expected.shape[1])
        torch.testing.assert_close(logits[:, here], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(targets[:, here], ids)
        begun = here.stop
    assert begun == logits.shape[1]


def test_gradients(example):
    net, token_ids, class_ids, parts = example
    weights = torch.randn(1, sum(len(part[0]) for part in parts), 12)
    (packed(*example)[0] * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    rows = [alone(net, token_ids[i : i + 1], class_ids[i : i + 1], part)[0] for i, part in enumerate(parts)]
    (torch.cat(rows, dim=1) * weights).sum().backward()
    expected = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert set(gradients) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-4)


def test_images_do_not_see_each_other(example):
    net, token_ids, class_ids, parts = example
    before = packed(*example)[0]
    changed = token_ids.clone()
    changed[0] = (changed[0] + 1) % 12
    after = packed(net, changed, class_ids, parts)[0]
    first = len(parts[0][0])
    assert not torch.equal(after[:, :first], before[:, :first])
    torch.testing.assert_close(after[:, first:], before[:, first:], rtol=0, atol=1e-6)


def test_parity_with_rectangular_batches(small_net):
    """With equal numbers of tokens, both compute the same."""
    token_ids, class_ids = torch.randint(12, (3, 16)), torch.tensor([0, 1, 2])
    part = RandomMasking(reuse_prob=1.0)(np.random.default_rng(3), 3, 16)
    assert part.cached.shape[1]
    with torch.no_grad():
        expected, ids = predict(small_net, small_net, token_ids, class_ids, part)
        rows = [positions.tolist() for positions in part]
        logits, targets = packed(small_net, token_ids, class_ids, list(zip(*rows, strict=True)))
    torch.testing.assert_close(logits, expected.flatten(0, 1)[None], rtol=1e-4, atol=1e-5)
    assert torch.equal(targets, ids.flatten()[None])


@pytest.mark.parametrize("reuse_prob", [0.0, 0.5, 1.0])
def test_partition(reuse_prob):
    """Every token of every image once; ratios and reuse differ between images as they are distributed."""
    masking, rng = PerSampleMasking(reuse_prob=reuse_prob), np.random.default_rng(0)
    part = masking(rng, 500, 64)
    packs = [tokens for tokens in part if tokens is not None]
    places = torch.cat([tokens.images * 64 + tokens.positions for tokens in packs])
    assert torch.equal(places.sort().values, torch.arange(500 * 64))
    for tokens in packs:
        assert torch.equal(torch.bincount(tokens.images, minlength=500), torch.from_numpy(tokens.counts))
    masked, _, reused = part.counts
    assert masked.mean() / 64 == pytest.approx(12 / 15, abs=0.02)
    assert masked.std() / 64 == pytest.approx((12 * 3 / (15**2 * 16)) ** 0.5, rel=0.1)
    assert (reused > 0).mean() == pytest.approx(reuse_prob * 0.95, abs=0.07)
    again = masking(np.random.default_rng(0), 500, 64)
    assert torch.equal(again.masked.positions, part.masked.positions)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernel_for_several_lengths(example):
    net, token_ids, class_ids, parts = example
    expected = packed(*example)[0]
    partition = PackedPartition(*(pack(*positions) for positions in zip(*parts, strict=True)))
    partition = PackedPartition(*(x._replace(images=x.images.cuda(), positions=x.positions.cuda()) for x in partition))
    net, token_ids, class_ids = net.cuda().bfloat16(), token_ids.cuda(), class_ids.cuda()
    with torch.no_grad():
        logits, _ = predict(net, net, token_ids, class_ids, partition)
    torch.testing.assert_close(logits.float().cpu(), expected, rtol=0.1, atol=0.1)
