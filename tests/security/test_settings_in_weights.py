"""Settings in the weights of others that are of other types, or that no file of ours has."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

import enat
from enat.checkpoints.saving import save_folder
from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import read_file
from enat.errors import InputError

DAMAGED = "what it says of itself is damaged."


@pytest.fixture
def content(trained):
    """The content of a checkpoint, to be changed."""
    return torch.load(trained / "checkpoints/last.ckpt", weights_only=True)


SETTINGS = {
    "task": ({"task": 5}, f"{DAMAGED} settings.task: Input should be a valid dictionary"),
    "trainer": ({"trainer": []}, f"{DAMAGED} settings.trainer: Input should be a valid dictionary"),
    "metrics": ({"metrics": 5}, f"{DAMAGED} settings.metrics: Input should be a valid dictionary"),
    "scores": ({"scores": 5}, f"{DAMAGED} settings.scores: Input should be a valid dictionary"),
    "protocols": ({"protocols": "x"}, f"{DAMAGED} settings.protocols: Input should be a valid dictionary"),
    "reference": ({"reference": [1]}, f"{DAMAGED} settings.reference: Input should be a valid dictionary"),
    "name": ({"name": {"a": 1}}, f"{DAMAGED} settings.name: Input should be a valid string"),
    "no metrics": ({"metrics": None}, "its settings are damaged: metrics is None"),
    "no scores": ({"scores": None}, "its settings are damaged: scores is None"),
    "no task": ({"task": None, "module": None}, "its settings are damaged: module is None"),
    "an option without a name": (
        {"sampler": {"a": [{5: 1}]}},
        f"{DAMAGED} settings: expected a text as the name of an",
    ),
    "an option of bytes": (
        {"metrics": {"a": {b"x": 1}}},
        f"{DAMAGED} settings: expected a text as the name of an option",
    ),
}


@pytest.mark.parametrize("part", SETTINGS)
def test_settings_of_other_types(command, content, tmp_path, part):
    change, sentence = SETTINGS[part]
    content["settings"] |= change
    torch.save(content, tmp_path / "x.ckpt")
    outcome = command("task=sample", f"weights={tmp_path / 'x.ckpt'}", f"output={tmp_path / 'samples'}")
    assert outcome.status == 1
    assert outcome.err.startswith(f"Error: weights={tmp_path / 'x.ckpt'}: {sentence}")
    assert outcome.err.count("\n") == 1


def test_a_trainer_without_devices(command, content, tmp_path):
    content["settings"]["trainer"] = {}
    torch.save(content, tmp_path / "x.ckpt")
    options = ["images_per_class=1", "classes=[0]", "sampler.num_steps=1", f"output={tmp_path / 'samples'}"]
    outcome = command("task=sample", f"weights={tmp_path / 'x.ckpt'}", *options)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("settings", [5, [1], "x", {"task": "images", "name": 3, "trainer": "adam"}])
def test_settings_of_another_program_are_left_out(content, tmp_path, settings):
    """Its weights can be used with the settings of an experiment."""
    torch.save({**content, "settings": settings}, tmp_path / "x.ckpt")
    assert "settings" not in read_file(tmp_path / "x.ckpt")
    with pytest.raises(InputError, match=r"x\.ckpt: expected the checkpoint of a training run"):
        enat.load(tmp_path / "x.ckpt")


TOKENIZER_FILE = {"name": "tokenizer.bin", "sha256": hashlib.sha256(b"x").hexdigest()}
OLD = {
    "no settings": ({}, "its settings are damaged: tokenizer is None"),
    "settings of another type": ({"settings": 5}, "its settings are damaged: tokenizer is None"),
    "no tokenizer": ({"settings": {"module": {}}}, "its settings are damaged: tokenizer is None"),
    "a long name": ({"tokenizer_file": {**TOKENIZER_FILE, "name": "a" * 300}}, "a file's name has at most 255 bytes"),
    "a long name of letters": (
        {"tokenizer_file": {**TOKENIZER_FILE, "name": "\u00e9" * 200}},
        "a file's name has at most 255 bytes",
    ),
    "a long path": (
        {"tokenizer_file": None, "settings": {"module": {}, "tokenizer": {"weights": "a" * 300}}},
        "its settings are damaged: module.net is None",
    ),
}


@pytest.mark.parametrize("facts", OLD)
def test_files_as_older_versions_exported_them(content, tmp_path, facts):
    change, sentence = OLD[facts]
    (tmp_path / "tokenizer.bin").write_bytes(b"x")
    said = {name: json.dumps(fact) for name, fact in {"tokenizer_file": TOKENIZER_FILE, **change}.items() if fact}
    state = {name: tensor.contiguous() for name, tensor in select_state(content)[0].items()}
    save_file(state, tmp_path / "net.safetensors", said)
    with pytest.raises(InputError, match=r"net\.safetensors: ") as refused:
        enat.load(tmp_path / "net.safetensors")
    assert sentence in str(refused.value)


def test_a_name_that_no_file_can_have():
    with pytest.raises(InputError, match=r"weights=a{300}: can't be read: File name too long\."):
        read_file("a" * 300)


def test_what_an_export_reads_of_the_settings(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    settings = pipeline.description["settings"]
    parts = {"trainer": None, "data": None, "module": {**settings["module"], "optimizer": 5}}
    description = {**pipeline.description, "settings": {**settings, **parts}}
    save_folder(tmp_path / "a", pipeline.net, pipeline.tokenizer, None, description)
    description["settings"]["module"] = None
    with pytest.raises(InputError, match="the settings of the pipeline are unknown"):
        save_folder(tmp_path / "b", pipeline.net, pipeline.tokenizer, None, description)


OF_RUN = {
    "state_dict": [1],
    "callbacks": 5,
    "callbacks.EMA": {"EMA": 5},
    "callbacks.EMA.net": {"EMA": {"net": [1]}},
    "global_step": "many",
    "world_size": "many",
}


@pytest.mark.parametrize("place", OF_RUN)
def test_going_on_passes_over_what_is_no_checkpoint_of_a_run(command, content, tmp_path, place):
    checkpoints = tmp_path / "run/checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save(content, checkpoints / "last.ckpt")
    torch.save({**content, "global_step": 9, place.partition(".")[0]: OF_RUN[place]}, checkpoints / "other.ckpt")
    outcome = command("experiment=debug", "metrics=none", "trainer.max_steps=3", f"output={tmp_path / 'run'}")
    assert outcome.status == 0, outcome.err
    assert f"weights={checkpoints / 'other.ckpt'}: this is no checkpoint of a run. {place}: " in outcome.out
    assert "last.ckpt, step 2; resume=false" in outcome.out
