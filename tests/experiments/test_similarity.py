"""The similarity study measures what changes, and where."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from experiments.similarity import change_by, changes, distance_to, share_near_new, table_of

SIDE = 5


class Neighbours(SimpleNamespace):
    """A network whose features of a token are of the visible tokens next to it, and of nothing else."""

    mask_token_id, width = 9, SIDE**2 + 1

    def modulations(self, class_ids):
        return []

    def features(self, positions, visible):
        seen = torch.zeros(len(positions), SIDE**2)
        seen.scatter_(1, visible, 1.0)
        places = torch.arange(SIDE**2)
        row, column = places // SIDE, places % SIDE
        near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)
        every = torch.cat([near * seen[:, None], torch.ones(len(positions), SIDE**2, 1)], dim=2)
        return every.gather(1, positions.unsqueeze(2).expand(-1, -1, self.width))

    def encode(self, ids, positions, modulations):
        self.visible = positions
        return self.features(positions, positions)

    def decode(self, encoded, masked, modulations):
        return self.features(masked, self.visible)


@pytest.fixture
def states():
    """Three steps of two images: four tokens visible, then eight, then nine."""
    torch.manual_seed(0)
    order = torch.rand(2, SIDE**2).argsort(dim=1)
    full = torch.zeros(2, SIDE**2, dtype=torch.long)
    return [full.scatter(1, order[:, count:], 9) for count in (0, 4, 8, 9)], order


def test_distances():
    torch.manual_seed(0)
    revealed = torch.rand(3, SIDE**2).argsort(dim=1)[:, :2]
    distances = distance_to(revealed, SIDE**2)
    for image in range(3):
        for token in range(SIDE**2):
            apart = [
                max(abs(token // SIDE - new // SIDE), abs(token % SIDE - new % SIDE))
                for new in revealed[image].tolist()
            ]
            assert distances[image, token] == min(apart)


def test_only_neighbours_of_new_tokens_change(states):
    token_ids, order = states
    compared = list(changes(Neighbours(), token_ids, torch.tensor([0, 1])))
    assert [(one.step, one.kind) for one in compared] == [
        (2, "visible"), (2, "masked"), (2, "new"), (3, "visible"), (3, "masked"), (3, "new"),
    ]  # fmt: skip
    for one in compared:
        if one.kind == "new":
            assert torch.equal(one.positions, one.new)
            assert (one.distance == 0).all()
            continue
        assert torch.allclose(one.change[one.distance > 1], torch.tensor(0.0), atol=1e-5)
        assert (one.change[one.distance == 1] > 0.001).all()
        revealed = order[:, 4:8] if one.step == 2 else order[:, 8:9]
        assert torch.equal(one.new.sort().values, revealed.sort().values)
    assert torch.equal(compared[0].positions.sort().values, order[:, :4].sort().values)  # visible at both steps
    assert torch.equal(compared[1].positions.sort().values, order[:, 8:].sort().values)  # masked at both
    table = table_of(compared)
    assert len(table) == change_by(table, ["kind"])["tokens"].sum() == 2 * (4 + 4 + 17 + 8 + 1 + 16)
    for kind in ("visible", "masked"):
        assert share_near_new(table, kind)["change"] == pytest.approx(1)
        assert 0 < share_near_new(table, kind)["tokens"] < 1


def test_steps_that_reveal_nothing_are_left_out(states):
    token_ids, _ = states
    once = list(changes(Neighbours(), token_ids, torch.tensor([0, 1])))
    twice = list(changes(Neighbours(), [ids for ids in token_ids for _ in range(2)], torch.tensor([0, 1])))
    assert len(once) == len(twice)
    for one, other in zip(once, twice, strict=True):
        assert (2 * one.step, one.kind) == (other.step, other.kind)
        assert torch.equal(one.change, other.change)


def test_tokens_that_are_masked_again_are_of_no_kind():
    """The second comparison is of a step that masks as many tokens as it reveals."""
    visible = [[], [0, 1, 2, 3], [0, 1, 3, 4, 5], [0, 1, 4, 5, 6]]
    full = torch.full((1, SIDE**2), 9)
    states = [full.scatter(1, torch.tensor([positions], dtype=torch.long), 0) for positions in visible]
    compared = list(changes(Neighbours(), states, torch.tensor([0])))
    assert [(one.step, one.kind, one.positions[0].tolist()) for one in compared] == [
        (2, "visible", [0, 1, 3]), (2, "masked", list(range(6, 25))), (2, "new", [4, 5]),
        (3, "visible", [0, 1, 4, 5]), (3, "masked", [2, *range(7, 25)]), (3, "new", [6]),
    ]  # fmt: skip


def test_an_order_of_other_numbers_in_each_image(command, tmp_path):
    options = ["task=similarity", "weights=examples/emoji", "num_images=2", "order@sampler.order=entropy_bound"]
    outcome = command(*options, f"output={tmp_path}")
    assert outcome.status == 1
    assert "sampler.order: EntropyBound reveals other numbers of tokens in each image" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["nat", "key_values"])
def test_variants(command, tmp_path, variant):
    options = ["experiment=debug", f"variant={variant}"]
    command(*options, f"output={tmp_path}/run")
    weights = f"weights={tmp_path}/run/checkpoints/last.ckpt"
    outcome = command(
        *options, "task=similarity", weights, "num_images=3", "sampler.num_steps=40", f"output={tmp_path}/s"
    )
    assert [row["distance"] for row in outcome.results["change"]["visible"]] == list(range(1, 8))


@pytest.mark.slow
def test_task(command, tmp_path):
    command("experiment=debug", f"output={tmp_path}/run")
    weights = f"weights={tmp_path}/run/checkpoints/last.ckpt"
    options = ["experiment=debug", "task=similarity", weights, "num_images=7", "batch_size=3"]
    outcome = command(*options, "sampler.num_steps=4", f"output={tmp_path}/s")
    table = pd.read_csv(outcome.results["table"])
    left = [59, 45, 24]  # floor(64 cos(pi r / 2)) of 64 tokens are masked after the steps
    assert list(table.groupby(["kind", "step"])["tokens"].sum()) == [
        7 * left[1], 7 * left[2], 7 * (left[0] - left[1]), 7 * (left[1] - left[2]),
        7 * (64 - left[0]), 7 * (64 - left[1]),
    ]  # fmt: skip
    for picture in ("plot", "maps"):
        with Image.open(outcome.results[picture]) as opened:
            assert len(opened.convert("RGB").getcolors(1_000_000)) > 50
    for option, sentence in {
        "sampler.num_steps=2": "sampler.num_steps=2: expected at least 3",
        "module.net.num_tokens=60": "num_tokens=60: expected a square",
    }.items():
        wrong = command(*options, option, f"output={tmp_path}/w")
        assert (wrong.status, sentence in wrong.err) == (1, True), wrong.err
