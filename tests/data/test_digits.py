"""The digits: exact tokens, an honest split, fitted networks that know digits."""

import torch

from data.toy.digits import DigitFeatures, classify_digits, digit_images, digit_labels
from enat.tokenizers.pixels import PixelTokenizer


def test_tokenizer_is_exact():
    tokenizer = PixelTokenizer(17, 8)
    images = digit_images("train")
    ids = tokenizer.encode(images)
    assert ids.shape == (1297, 64)
    assert set(ids.unique().tolist()) == set(range(17))
    assert torch.equal(tokenizer.decode(ids), images)
    column = torch.zeros(1, 1, 8, 8)
    column[0, 0, 2, 5] = 1.0
    assert tokenizer.encode(column)[0].argmax() == 2 * 8 + 5  # row by row


def test_split_has_no_image_twice():
    train, held_out = ({image.numpy().tobytes() for image in digit_images(split)} for split in ("train", "held_out"))
    assert not train & held_out
    assert len(digit_labels("held_out")) == 500
    assert torch.bincount(digit_labels("held_out")).min() >= 48


def test_both_classifiers_know_held_out_digits():
    images, labels = digit_images("held_out"), digit_labels("held_out")
    assert (classify_digits(images) == labels).double().mean() > 0.98
    views = DigitFeatures()(images)["digits"]
    assert views["pool"].shape == (500, 64)
    assert (views["logits"].argmax(1) == labels).double().mean() > 0.96
