"""Editing: what is kept stays, bit for bit; what is drawn is where it was asked for."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from known_net import make

from enat.editing import (
    Editor,
    blend,
    box_region,
    choose_some,
    cost,
    draw_anew,
    mark_region,
    mix,
    place,
    tokens_under,
)  # fmt: skip
from enat.errors import InputError
from enat.flops import sampling_flops
from enat.tokenizers.pixels import PixelTokenizer
from enat.variants import NAT


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_token_is_drawn_if_any_of_its_pixels_is():
    region = torch.zeros(8, 12, dtype=torch.bool)
    region[3, 8] = True  # of the token in row 1 and column 2 of a grid of 4 x 3
    region[7, 11] = True
    assert tokens_under(region, (4, 3)).nonzero()[:, 0].tolist() == [1 * 3 + 2, 3 * 3 + 2]


@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 9))
def test_a_share_of_the_region_is_kept(count, keep, seed):
    is_drawn = torch.arange(30) < count
    chosen = choose_some(is_drawn, keep, generator(seed))
    assert not (chosen & ~is_drawn).any()
    assert chosen.sum() == max(1, round((1 - keep) * count))


def test_a_mixture_has_its_share_of_both():
    """Of the tokens that are kept; the others are drawn anyway."""
    first, second = torch.zeros(40, dtype=torch.long), torch.ones(40, dtype=torch.long)
    is_kept = torch.arange(40) % 5 < 2
    for weight, expected in [(0.0, 0), (0.25, 4), (1.0, 16)]:
        mixed = mix(first, second, is_kept, weight, generator())
        assert (mixed[is_kept].sum(), mixed[~is_kept].sum()) == (expected, 0)
    assert not torch.equal(
        mix(first, second, is_kept, 0.5, generator(0)), mix(first, second, is_kept, 0.5, generator(1))
    )


def test_half_of_what_an_edit_keeps_is_of_another_image(small_net, monkeypatch):
    """So it is in each result: of 16 tokens, 8 are drawn, 4 are of the image, and 4 of the other one."""
    monkeypatch.setattr("enat.editing.draw_anew", lambda *parts: parts[2].masked_fill(parts[3], 5))
    image, other = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    tokenizer = PixelTokenizer(12, 4)
    everything = partial(mark_region, mask=None, box=None, scale=1)
    editor = Editor(small_net, make(), tokenizer, everything, keep=0.5, other=other, weight=0.5)
    results = tokenizer.encode(editor(image, 0, [(0, 0), (0, 1), (1, 0)])[2])
    assert [row.bincount(minlength=12).tolist() for row in results] == [[4, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 4]] * 3
    editor.keep = 0.0
    with pytest.raises(InputError, match=r"other: no token is kept, .* expected region\.keep=SHARE of more than 0"):
        editor(image, 0, [(0, 0)])


def test_kept_tokens_are_kept(small_net):
    tokens = torch.randint(12, (3, 16), generator=generator())
    is_drawn = torch.stack([choose_some(torch.ones(16, dtype=torch.bool), 0.5, generator(seed)) for seed in range(3)])
    sampler = make(sampling_temperature=4.0, gumbel_temperature=1.0)
    edited = draw_anew(small_net, sampler, tokens, is_drawn, torch.tensor([0, 1, 4]), generator())
    assert torch.equal(edited[~is_drawn], tokens[~is_drawn])
    assert not torch.equal(edited[is_drawn], tokens[is_drawn])


def test_new_tokens_depend_on_the_kept_ones(small_net):
    """Drawn with the same noise, they differ if a kept token does."""
    is_drawn = (torch.arange(16) >= 8).expand(2, -1)
    tokens = torch.randint(12, (1, 16), generator=generator()).repeat(2, 1)
    tokens[1, :8] = (tokens[1, :8] + 5) % 12
    sampler = make(sampling_temperature=30.0, guidance_scale=0.0)
    first, second = draw_anew(small_net, sampler, tokens, is_drawn, torch.tensor([0, 0]), [generator(), generator()])
    assert not torch.equal(first[8:], second[8:])


def test_a_box():
    region = box_region([0.25, 0, 1, 0.5], 8, 4)
    assert region.nonzero().tolist() == [[row, column] for row in range(4) for column in range(1, 4)]


@pytest.mark.parametrize("box", [[0, 0, 0, 1], [0, 0, 2, 1], [0.5, 0, 0.2, 1], [0, 0, 1], [-1, 0, 1, 1]])
def test_a_box_has_sides(box):
    with pytest.raises(InputError, match=r"box=\[.*\]: expected left, top, right and bottom as shares"):
        box_region(box, 8, 8)


def test_a_shrunken_image_is_in_the_middle():
    image = torch.rand(1, 3, 8, 8, generator=generator())
    frame, region = place(image, 0.5)
    assert (~region).nonzero().tolist() == [[row, column] for row in range(2, 6) for column in range(2, 6)]
    # a bicubic filter keeps means but at the borders
    assert (frame[..., 2:6, 2:6].mean() - image.mean()).abs() < 0.03
    same, nothing = place(image, 1.0)
    assert torch.equal(same, image)
    assert not nothing.any()


def test_a_blend_keeps_the_other_pixels():
    before, after = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    region = box_region([0, 0, 0.5, 1], 8, 8)
    assert torch.equal(blend(before, after, region)[0, 0], region.float())
    soft = blend(before, after, region, softness=2)[0, 0]
    assert torch.equal(soft[:, :4], torch.ones(8, 4))
    assert (soft[:, 4] > soft[:, 5]).all()
    assert (soft[:, 5] > 0).all()
    assert torch.equal(soft[:, 6:], torch.zeros(8, 2))


def test_the_cost_of_an_edit(small_net, make_net):
    """Kept features save operations; a plain NAT computes all tokens in each step, as its own count says."""
    sampler = make(guidance_scale=0.0)
    costs = cost(small_net, sampler, 16)
    assert 1e9 * costs["gflop"] == sampling_flops(small_net, sampler) - sum(
        2 * block.modulation.weight.numel() for block in small_net.blocks
    )
    nat = make_net(NAT)
    plain = make(guidance_scale=0.0, reuse_share=0.0)
    of_nat = sampling_flops(nat, plain) - sum(2 * block.modulation.weight.numel() for block in nat.blocks)
    assert 1e9 * costs["gflop_nat"] == pytest.approx(of_nat)
    less = cost(small_net, sampler, 4)
    assert less["gflop"] < less["gflop_without_reuse"] < less["gflop_nat"]
    assert less["gflop"] < costs["gflop"]
