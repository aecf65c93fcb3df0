"""Networks without classes: the classes of the data have no influence, and nothing is guided."""

import pytest
import torch
from hydra.utils import instantiate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import data.toy.digits as digits
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.flops import sampling_flops, sampling_steps

RUN = ["experiment=debug", "module.net.num_classes=0"]


def test_classes_of_the_data_have_no_influence(command, same_training, tmp_path, monkeypatch):
    results = command(*RUN, f"output={tmp_path}/a").results
    labels = digits.digit_labels
    monkeypatch.setattr(digits, "digit_labels", lambda split: labels(split).flip(0))
    command(*RUN, f"output={tmp_path}/b")
    assert same_training(tmp_path / "a", tmp_path / "b")
    assert read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")["net_sizes"]["num_classes"] == 0
    assert "fid" in results
    assert "class_accuracy" not in results


@pytest.mark.parametrize("num_classes", [5, 20])
def test_other_classes_than_those_of_the_data(command, tmp_path, num_classes):
    """Too few would end in an error of an index, and of too many, some would never be trained."""
    other = f"module.net.num_classes={num_classes}"
    refused = command("experiment=debug", other, "metrics=none", f"output={tmp_path}")
    assert refused.status == 1
    assert f"{other}: the data have 10; expected as many, or 0 to train without classes." in refused.err
    assert not list(tmp_path.glob("checkpoints/*.ckpt"))


def test_such_a_network_draws_without_guidance(command, tmp_path):
    weights = f"weights={tmp_path}/a/checkpoints/last.ckpt"
    command(*RUN, f"output={tmp_path}/a", "metrics=none")
    drawn = command("task=sample", weights, f"output={tmp_path}/s").results
    assert (drawn["classes"], drawn["num_images"]) == (["unconditional"], 8)
    scored = command("task=evaluate", weights, "metrics=digits", "metrics.evaluation.num_images=50").results
    for other in ("sampler.guidance_scale=0", "sampler.guidance_scale=9"):
        again = command("task=evaluate", weights, "metrics=digits", "metrics.evaluation.num_images=50", other).results
        assert again["images_sha256"] == scored["images_sha256"]


def test_operations_are_those_of_one_branch(make_net, compose_config):
    sampler = instantiate(compose_config().sampler)
    assert {row["branches"] for row in sampling_steps(make_net(num_classes=0), sampler)} == {1}
    assert {row["branches"] for row in sampling_steps(make_net(), sampler)} == {1, 2}
    net = make_net(num_classes=0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler(net, torch.zeros(2, dtype=torch.int64))
    assert counter.get_total_flops() == 2 * sampling_flops(net, sampler)


def test_a_share_of_one_without_classes_is_refused(command):
    for option in ("data.class_dropout=1", "module.net.class_dropout=1"):
        assert f"{option}: expected a value less than 1" in command("experiment=debug", option).err


def test_a_network_in_training_mode_does_not_sample(small_net, compose_config):
    sampler = instantiate(compose_config().sampler)
    with pytest.raises(InputError, match=r"the network is in training mode, so that dropout would change the images"):
        sampler(small_net.train(), torch.zeros(1, dtype=torch.int64))
