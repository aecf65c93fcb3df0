"""What checkpoints have to say of their run."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from callbacks.run_facts import refuse_diverged
from enat.errors import InputError


@pytest.mark.parametrize("which", ["module", "average"])
def test_weights_that_are_not_finite_are_not_saved(which):
    module, average = nn.Linear(2, 2), nn.Linear(2, 2)
    object.__setattr__(module, "averaged_net", average)  # beside the module, as that of `AveragedModule`
    trainer = SimpleNamespace(global_step=3, precision="16-mixed")
    refuse_diverged(trainer, module)
    with torch.no_grad():
        {"module": module, "average": average}[which].weight[0, 0] = math.inf
    with pytest.raises(InputError, match=r"^step 3: .* A lower module\.optimizer\.lr or trainer\.precision=32-true"):
        refuse_diverged(trainer, module)
