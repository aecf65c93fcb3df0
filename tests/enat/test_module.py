"""The LightningModule's parts that need no Trainer."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from enat.compilation import compile_blocks
from enat.loss import MaskedCrossEntropy
from enat.masking import Partition, RandomMasking
from enat.module import MaskedTokenModule
from enat.randomness import rng_for


def losses(module: MaskedTokenModule, steps: int) -> list[torch.Tensor]:
    """Of training steps, with the masks of each; backward included, and no update."""
    generator = torch.Generator().manual_seed(0)
    computed = []
    for step in range(steps):
        net = module.net
        token_ids = torch.randint(net.codebook_size, (3, net.num_tokens), generator=generator)
        classes = torch.randint(net.num_classes, (3,), generator=generator)
        torch.manual_seed(step)
        partition = module.masking(rng_for("training", 0, 0, step, 0), 3, net.num_tokens)
        loss = module.group_loss(net, (token_ids, classes), partition)["loss"]
        loss.backward()
        computed.append(loss.detach())
    return computed


@pytest.mark.slow
def test_compiled_blocks_serve_any_number_of_tokens(make_net, monkeypatch):
    """Forty steps, each with numbers of its own, need no more variants than there are kinds of input."""
    counter, compile_block = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compile_block(self, backend=counter, **how))
    net = make_net(num_tokens=64, dropout=0.0).train()
    masking = RandomMasking(ratio_alpha=4.0, ratio_beta=1.0)  # sometimes one visible token or none that is new
    module = MaskedTokenModule(net, masking, MaskedCrossEntropy(), torch.optim.SGD, lambda optimizer: None)
    module.__dict__["ema_net"] = deepcopy(net).eval()
    counts = {masking(rng_for("training", 0, 0, step, 0), 3, 64).counts for step in range(40)}
    assert len(counts) > 30
    assert any(new == 1 for _, new, _ in counts)
    assert any(new == 0 for _, new, _ in counts)
    assert any(reused == 0 for *_, reused in counts)
    expected = losses(module, 40)
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):  # the module raises the limit
        compile_blocks(net, module.ema_net)
        torch.testing.assert_close(losses(module, 40), expected, rtol=1e-5, atol=1e-6)
    assert 2 <= counter.frame_count <= 12


def test_what_is_logged_is_on_the_device(make_net):
    """NCCL, which averages it over GPUs, takes nothing else."""
    with FakeTensorMode():
        with torch.device("cuda"):
            net, token_ids, classes = make_net(), torch.zeros(3, 16, dtype=torch.int64), torch.tensor([0, 1, 2])
            part = Partition(*torch.rand(3, 16).argsort(dim=1).split([9, 7], dim=1), None)
        module = MaskedTokenModule(net, RandomMasking(), MaskedCrossEntropy(), torch.optim.SGD, lambda optimizer: None)
        values = module.group_loss(net, (token_ids, classes), part)
    assert {name: value.device.type for name, value in values.items()} == dict.fromkeys(values, "cuda")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_step_without_new_tokens_counts_for_the_modulations(make_net):
    """Their gradient is zero and not None, so that AdamW's moments decay, as they did in all versions."""
    net = make_net(dropout=0.0).train()
    module = MaskedTokenModule(net, RandomMasking(), MaskedCrossEntropy(), torch.optim.SGD, lambda optimizer: None)
    module.__dict__["ema_net"] = deepcopy(net).eval()
    order = torch.rand(3, 16).argsort(dim=1)
    partition = Partition(*order.split([9, 0, 7], dim=1))
    batch = (torch.randint(net.codebook_size, (3, 16)), torch.tensor([0, 1, 2]))
    module.group_loss(net, batch, partition)["loss"].backward()
    assert all(not block.modulation.weight.grad.any() for block in net.encoder)
    assert all(block.modulation.weight.grad.any() for block in net.decoder)
    assert all(block.mlp[0].weight.grad is None for block in net.encoder)
