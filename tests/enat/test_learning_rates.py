"""The learning rate rises in a straight line, then falls along half a cosine, however long a run becomes."""

import pytest
import torch

from enat.training.learning_rates import warmup_cosine


def rates(max_steps: int, steps: int, state: dict | None = None) -> tuple[list[float], dict]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = warmup_cosine(optimizer, warmup_steps=3, max_steps=max_steps)
    if state is not None:
        scheduler.load_state_dict(state)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values, scheduler.state_dict()


def test_rates_by_hand():
    values, _ = rates(max_steps=7, steps=9)
    assert values[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert values[5] == pytest.approx(1.0)  # half of the way down
    assert values[7:] == pytest.approx([0.0, 0.0])


def test_a_longer_run_follows_its_own_curve():
    whole, _ = rates(max_steps=11, steps=9)
    _, state = rates(max_steps=7, steps=5)
    assert rates(max_steps=11, steps=4, state=state)[0][1:] == pytest.approx(whole[6:])
