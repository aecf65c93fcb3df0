"""Checkpoints of others: compressed, of other types, with damaged facts or a damaged optimiser."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch

import enat
from data.manifest import Manifest
from enat.checkpoints.weights import read_file
from enat.errors import InputError

NUMBERS = {
    "int8": lambda x: x.to(torch.int8),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "float64 too large": lambda x: x.double().fill_(1e300),
    "sparse": lambda x: x.to_sparse(),
    "without content": lambda x: x.to("meta"),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}
REBUILT = "holds more than plain weights (torch._utils._rebuild_"  # by functions that may take more than the file has
FACTS = {
    "net_sizes": ([1, 2], "net_sizes: Input should be a valid dictionary"),
    "class_names": ({"a": 1}, "class_names: Input should be a valid list"),
    "tokenizer_file": ({"name": "../../x", "sha256": "0"}, "tokenizer_file.name: String should match pattern"),
}


def changed(trained, tmp_path, change):
    """Returns a copy of the run whose last checkpoint was changed."""
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    path = run / "checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    path.unlink()
    for other in (run / "checkpoints").glob("*.ckpt"):
        other.unlink()
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", NUMBERS)
def test_weights_of_other_types(command, trained, tmp_path, kind):
    def change(content):
        net = content["callbacks"]["EMA"]["net"]
        net["position_embedding.weight"] = NUMBERS[kind](net["position_embedding.weight"])

    path = changed(trained, tmp_path, change)
    outcome = command("task=export", f"weights={path}", f"output={tmp_path / 'export'}")
    assert outcome.status == 1
    assert outcome.err.startswith("Error: ")
    assert "weight position_embedding.weight" in outcome.err or REBUILT in outcome.err
    assert not (tmp_path / "export/model.safetensors").exists()


@pytest.mark.parametrize("fact", FACTS)
def test_facts_of_other_types(command, trained, tmp_path, fact):
    value, sentence = FACTS[fact]
    path = changed(trained, tmp_path, lambda content: content.update({fact: value}))
    outcome = command("task=sample", f"weights={path}", f"output={tmp_path / 'samples'}")
    assert outcome.status == 1
    assert f"weights={path}: what it says of itself is damaged. {sentence}" in outcome.err


def test_an_average_that_is_no_weights(command, trained, tmp_path):
    path = changed(trained, tmp_path, lambda content: content["callbacks"]["EMA"].update(net=[1, 2]))
    outcome = command("task=sample", f"weights={path}", f"output={tmp_path / 'samples'}")
    assert outcome.status == 1
    assert "expected the average, callbacks.EMA.net, to be weights by name" in outcome.err


def test_a_compressed_archive(command, trained, tmp_path):
    """Memory mapping would take the compressed bytes for weights."""
    path = tmp_path / "small.ckpt"
    whole = trained / "checkpoints/last.ckpt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    with pytest.raises(InputError, match=r"small\.ckpt: .* is compressed; expected a file of torch\.save\."):
        read_file(path)


def put_itself_inside(settings):
    settings["module"]["net"]["x"] = settings["module"]


def put_into_the_sampler(settings):
    settings["sampler"]["x"] = settings["sampler"]


def double_a_list(settings):
    settings["metrics"] = doubled(lambda inner: [inner, inner])


def double_a_mapping(settings):
    settings["sampler"]["order"] = doubled(lambda inner: {"a": inner, "b": inner})


def doubled(pair):
    node = {"a": 1}
    for _ in range(34):
        node = pair(node)
    return node


NESTED = {
    put_itself_inside: "nests more than 50 levels deep",
    put_into_the_sampler: "nests more than 50 levels deep",
    double_a_list: "has more than 100,000 values",
    double_a_mapping: "has more than 100,000 values",
}


@pytest.mark.parametrize("change", NESTED)
def test_settings_without_an_end(command, trained, tmp_path, change):
    """A pickle can hold a dictionary in itself, and one list many times; to walk through it would take forever."""
    path = changed(trained, tmp_path, lambda content: change(content["settings"]))
    sentence = f"weights={path}: what it says of itself {NESTED[change]}"
    outcome = command("task=sample", f"weights={path}", f"output={tmp_path / 'samples'}")
    assert (outcome.status, sentence in outcome.err) == (1, True), outcome.err
    with pytest.raises(InputError, match=re.escape(sentence)):
        enat.load(path)


def test_a_file_in_itself(trained, tmp_path):
    path = changed(trained, tmp_path, lambda content: content["callbacks"].update(x=content["callbacks"]))
    with pytest.raises(InputError, match="nests more than 50 levels deep"):
        read_file(path)


def claim_a_codebook(content):
    """The weights of a huge codebook, which repeat one number, and the settings that fit them."""
    large = 2**24
    settings = content["settings"]
    sizes = settings["module"]["net"]
    net = content["callbacks"]["EMA"]["net"]
    for name in ("token_embedding.weight", "head_bias"):
        shape = (net[name].shape[0] - sizes["codebook_size"] + large, *net[name].shape[1:])
        net[name] = torch.zeros(1).expand(shape)
    sizes["codebook_size"] = large
    content["net_sizes"]["codebook_size"] = large


def share_weights(content):
    """Weights that are whole each, but that all are the same bytes."""
    content["mine"] = [torch.zeros(2**20)[None].view(2**10, 2**10)] * 100


CLAIMS = {
    "a codebook": claim_a_codebook,
    "shared weights": share_weights,
    "an average": lambda content: content["callbacks"]["EMA"]["net"].update(
        {"head_bias": torch.zeros(1).expand(20 * 2**30)}
    ),
    "moments": lambda content: content["optimizer_states"][0]["state"][0].update(
        exp_avg=torch.zeros(1).expand(20 * 2**30)
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_weights_that_repeat_a_number(trained, tmp_path, claim):
    path = changed(trained, tmp_path, CLAIMS[claim])
    with pytest.raises(InputError, match=r"last\.ckpt: its weights would take [\d,]+ bytes, and the file has [\d,]+;"):
        read_file(path)


def test_going_on_with_weights_that_repeat_a_number(command, trained, tmp_path):
    path = changed(trained, tmp_path, CLAIMS["an average"])
    outcome = command("experiment=debug", "metrics=none", "trainer.max_steps=3", f"output={tmp_path / 'run'}")
    assert outcome.status == 1
    assert f"weights={path}: its weights would take" in outcome.out
    assert "none of its checkpoints can be read" in outcome.err


@pytest.mark.parametrize("kind", ["sparse", "without content", "quantised"])
def test_going_on_with_an_average_of_another_kind(command, trained, tmp_path, kind):
    def change(content):
        net = content["callbacks"]["EMA"]["net"]
        net["position_embedding.weight"] = NUMBERS[kind](net["position_embedding.weight"])

    path = changed(trained, tmp_path, change)
    outcome = command("experiment=debug", "metrics=none", "trainer.max_steps=3", f"output={tmp_path / 'run'}")
    assert outcome.status == 1
    sentence = f"{path}: position_embedding.weight of its EMA weights is sparse, quantised or without content"
    assert sentence in outcome.err or REBUILT in outcome.out


OPTIMIZER = {
    "another shape": (
        lambda state: state["state"][0].update(exp_avg=torch.zeros(3)),
        "exp_avg of shape [3] for",
    ),
    "another shape of what Adafactor has": (
        lambda state: [
            kept.update(row_var=torch.zeros(3)) for kept in state["state"].values() if kept["exp_avg"].ndim == 2
        ],
        "row_var of shape [3] for",
    ),
    "NaN": (lambda state: state["state"][1]["exp_avg_sq"].fill_(np.nan), "exp_avg_sq holds NaN"),
    "a missing moment": (lambda state: state["state"][2].pop("exp_avg"), "moments that some weights lack"),
    "no moments": (lambda state: state["state"].clear(), "no moments"),
    "a huge rate": (lambda state: state["param_groups"][0].update(lr=1e30), "the learning rate 1e+30"),
    "a rate that is no number": (lambda state: state["param_groups"][0].update(lr="fast"), "is damaged"),
    "fewer parameters": (lambda state: state["param_groups"][0]["params"].pop(), "other parameters"),
    "something else": (lambda state: state.update(state=[]), "is damaged"),
}


@pytest.mark.parametrize("damage", OPTIMIZER)
def test_a_damaged_optimizer(command, trained, tmp_path, damage):
    change, sentence = OPTIMIZER[damage]
    path = changed(trained, tmp_path, lambda content: change(content["optimizer_states"][0]))
    before = path.read_bytes()
    outcome = command("experiment=debug", "metrics=none", "trainer.max_steps=3", f"output={tmp_path / 'run'}")
    assert outcome.status == 1
    assert f"{path}: the state of its optimiser is damaged (" in outcome.err
    assert sentence in outcome.err
    assert path.read_bytes() == before


LOGGER = "{_target_: callbacks.loggers.StepWandbLogger, project: a, name: b, save_dir: RAN, offline: true}"
CREATED = f"${{oc.create:'{LOGGER}'}}"
LIVE = {  # changes settings, which would be resolved after they were checked
    "a reference": (lambda settings, text: settings["sampler"].update(order=text), "sampler.order=${oc.create:"),
    "a name": (lambda settings, text: settings.update(name=text), "name=${oc.create:"),
    "a reference in a list": (
        lambda settings, text: settings["module"]["optimizer"].update(betas=[text]),
        "module.optimizer.betas.0=${oc.create:",
    ),
    "a list of defaults": (
        lambda settings, _: settings["module"].update(defaults=[{"/logger@net": "wandb"}]),
        "module: the settings of a file may not have defaults",
    ),
    "a tuple": (
        lambda settings, text: settings["sampler"].update(order=({"_target_": "callbacks.ema.EMA", "x": 1},)),
        "its settings name callbacks.ema.EMA",
    ),
}


@pytest.mark.parametrize("trick", LIVE)
def test_settings_of_a_file_are_plain_values(command, trained, tmp_path, trick):
    change, sentence = LIVE[trick]
    text = CREATED.replace("RAN", str(tmp_path / "ran"))
    path = changed(trained, tmp_path, lambda content: change(content["settings"], text))
    outcome = command("task=sample", f"weights={path}", "images_per_class=1", f"output={tmp_path / 'samples'}")
    assert outcome.status == 1
    assert sentence in outcome.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "samples").exists()


def test_settings_of_a_folder_of_weights_are_plain_values(command, trained, tmp_path):
    options = [f"weights={trained}/checkpoints/last.ckpt", f"output={tmp_path}/export"]
    assert command("task=export", *options).status == 0
    config = json.loads((tmp_path / "export/config.json").read_text())
    config["settings"]["sampler"]["order"] = CREATED.replace("RAN", str(tmp_path / "ran"))
    (tmp_path / "export/config.json").write_text(json.dumps(config))
    outcome = command("task=sample", f"weights={tmp_path}/export", "images_per_class=1", f"output={tmp_path}/samples")
    assert outcome.status == 1
    assert "sampler.order=${oc.create:" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_settings_of_a_manifest_are_plain_values(command, tmp_path):
    text = CREATED.replace("RAN", str(tmp_path / "ran"))
    Manifest("VQGAN", "0" * 64, 8, [2, 2], 4, ["a"], ["plain"], 3, {"train": []}).save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    tokenizer = {"_target_": "enat.tokenizers.vqgan.VQGAN", "quantizer": text}
    for change, sentence in (
        ({"tokenizer_settings": tokenizer}, "tokenizer_settings.quantizer=${oc.create:"),
        ({"codebook_size": text}, "codebook_size: Input should be a valid integer"),
        ({"grid": [1, text]}, "grid.1: Input should be a valid integer"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        outcome = command(f"data.shards={tmp_path}", f"output={tmp_path / 'run'}")
        assert outcome.status == 1
        assert sentence in outcome.err
        assert not (tmp_path / "ran").exists()
