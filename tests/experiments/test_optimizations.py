"""The script that leaves out optimisations: what it leaves out changes the work and not the result."""

import json

import pytest
import torch
from optimizations import CacheByTheWholeNetwork, LogitsOfAllTokens, ModulationsAtEachStep, TwoPasses, main
from torch.utils.flop_counter import FlopCounterMode

from enat.sampler import Sampler
from enat.schedules import cosine, falling, rising


@pytest.mark.parametrize("wrapper", [TwoPasses, ModulationsAtEachStep, LogitsOfAllTokens])
def test_what_is_left_out_changes_the_work_and_not_the_result(small_net, wrapper):
    sampler = Sampler(4, 2.0, 1.0, 1.0, cosine, rising, falling, falling)
    class_ids = torch.tensor([0, 1, 2])
    token_ids, flops = [], []
    for net in (small_net, wrapper(small_net)):
        with FlopCounterMode(display=False) as counter:
            token_ids.append(sampler(net, class_ids, torch.Generator().manual_seed(0)))
        flops.append(counter.get_total_flops())
    assert torch.equal(*token_ids)
    if wrapper is TwoPasses:
        assert flops[1] == flops[0]
    else:
        assert flops[1] > flops[0]


def test_cache_by_the_whole_network(small_net):
    token_ids = torch.randint(12, (3, 16))
    visible = torch.rand(3, 16).argsort(dim=1)[:, :6]
    modulations = small_net.modulations(torch.tensor([0, 1, 2]))
    arguments = token_ids.gather(1, visible), visible, modulations
    assert torch.equal(CacheByTheWholeNetwork(small_net).encode(*arguments), small_net.encode(*arguments))


@pytest.mark.parametrize(
    ("option", "kinds"),
    [
        ("tokenizer=vqgan_tiny", {"sampling", "decode", "training"}),
        ("variant=key_values", {"sampling", "training"}),
        ("variant=separate", {"sampling", "training"}),
        ("masking@module.masking=per_sample", {"sampling", "training"}),
    ],
)
def test_script(tmp_path, capsys, option, kinds):
    size = ["batch_sizes=[1]", "precisions=[float32]", "seconds=0.01", "train_batch=4", f"output={tmp_path}"]
    main(["experiment=debug", option, *size])
    rows = json.loads((tmp_path / "optimizations.json").read_text())["float32"]
    assert {row["kind"] for row in rows} == kinds
    printed = capsys.readouterr().out
    for row in rows:
        assert row["ratio"] == pytest.approx(row["seconds_without"] / row["seconds"])
        assert f"{row['ratio']:.2f}x" in printed
