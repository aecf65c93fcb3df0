"""Images from classes."""

import unicodedata

import pytest
import torch

from enat.errors import InputError
from enat.generation import (
    GeneratedImages,
    classes_in_proportion,
    find_class_ids,
    sample_classes,
    sample_images,
    without_masks,
)
from enat.sampler import Sampler
from enat.schedules import constant, cosine, rising
from enat.tokenizers.pixels import PixelTokenizer


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


def test_classes_in_proportion():
    """At every number of images, no class is further than one image from its share."""
    assert classes_in_proportion([4, 4, 4], 10).tolist() == [number % 3 for number in range(10)]
    counts = torch.tensor([607, 0, 45, 30, 884])
    drawn = classes_in_proportion(counts.tolist(), 2000)
    for number in (1, 7, 50, 333, 2000):
        shares = counts / counts.sum() * number
        assert (torch.bincount(drawn[:number], minlength=5) - shares).abs().max() <= 1


def test_generated_images_have_the_classes_of_the_reference(small_net):
    sampler = Sampler(4, 2.0, 1.0, 5.0, cosine, rising, constant, constant)
    counts = [5, 0, 1, 2, 1]
    images = GeneratedImages(small_net, sampler, PixelTokenizer(12, 4), 25, 0, 10, 10, counts)
    blocks = list(images.read([range(0, 10), range(10, 20), range(20, 25)], torch.device("cpu")))
    class_ids = torch.cat([block.class_ids for block in blocks])
    assert torch.equal(class_ids, classes_in_proportion(counts, 25))


def test_classes_by_id_and_by_name():
    """A number that is no id may be a name; a network without classes has the null class alone."""
    names = ["20240101", "cat", "1999"]
    assert find_class_ids([0, 20240101, "1999", "cat", "unconditional"], names) == [0, 0, 2, 1, 3]
    assert find_class_ids(None, []) == find_class_ids("unconditional", []) == [0]
    for wanted in (0, "cat"):
        with pytest.raises(InputError, match=f"classes={wanted}: the network has no classes; expected classes=uncond"):
            find_class_ids(wanted, [])


def test_an_id_that_is_the_name_of_another_class_is_refused():
    assert find_class_ids(["007"], [str(number) for number in range(9)]) == [7]  # the folder of class 7
    assert find_class_ids(["1"], ["1", "2", "x"]) == [0]
    assert find_class_ids([2, "x"], ["0", "1", "x"]) == [2, 2]
    assert find_class_ids("unconditional", ["cat", "unconditional"]) == [2]  # the null class, whatever a file says
    with pytest.raises(InputError, match="classes=1: this is the id of the class 2 and the name of another; expected"):
        find_class_ids([1], ["1", "2", "x"])


def test_names_that_look_the_same_are_the_same():
    """A keyboard types one sign where folders of macOS have two. Where there are both, each is itself."""
    one, two = unicodedata.normalize("NFC", "Käse"), unicodedata.normalize("NFD", "Käse")
    assert one != two
    assert find_class_ids([one, two], ["cat", two]) == find_class_ids([one, two], ["cat", one]) == [1, 1]
    assert find_class_ids([one, two], [two, one]) == [1, 0]
    with pytest.raises(InputError, match=f"classes={one}e: .* did you mean {one}"):
        find_class_ids([f"{one}e"], [two])


def test_nan_is_no_token(small_net):
    """Its argmax would be the token 0, with a plausible picture and a plausible score."""
    sampler = Sampler(4, 2.0, 1.0, 5.0, cosine, rising, constant, constant)
    tokenizer = PixelTokenizer(12, 4)
    images = GeneratedImages(small_net, sampler, tokenizer, 20, 0, 10, 10)
    with torch.no_grad():
        small_net.head_bias[3] = torch.nan
    with pytest.raises(InputError, match="the network computes NaN or infinite values; expected an earlier"):
        sample_images(small_net, sampler, tokenizer, [(0, 0)], 0)
    with pytest.raises(InputError, match="the network computes NaN"):
        next(iter(images.read([range(10)], torch.device("cpu"))))
    masked = torch.full((1, 9), small_net.mask_token_id)
    with pytest.raises(
        InputError, match=r"expected fabric\.precision=32-true or bf16-true \(in training, trainer\.prec"
    ):
        without_masks(small_net.half(), masked)
    with pytest.raises(InputError, match=r"expected fabric\.precision=32"), torch.autocast("cpu", torch.float16):
        without_masks(small_net.float(), masked)


def test_steps_are_those_of_the_first_image_of_each_class(small_net):
    sampler = Sampler(4, 2.0, 30.0, 5.0, cosine, rising, constant, constant)
    tokenizer = PixelTokenizer(12, 4)
    images, steps = sample_classes(small_net, sampler, tokenizer, [3, 0, 4], 7, seed=2)  # in two batches
    assert len(images) == 21
    assert len(steps) == 4
    for row, class_id in enumerate([3, 0, 4]):
        starts = []
        first = sample_images(small_net, sampler, tokenizer, [(class_id, 0)], 2, starts)
        torch.testing.assert_close(images[7 * row], first[0])
        assert [start[row].tolist() for start in steps] == [start[0].tolist() for start in starts]
