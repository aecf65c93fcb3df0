"""Training that starts from a checkpoint, and a run that goes on with another learning rate."""

import shutil
import unicodedata
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from enat.checkpoints.weights import read_file
from experiments.train import print_start

DEBUG = ["experiment=debug", "metrics=none", "callbacks.sample_grid=null"]


@pytest.fixture(scope="module")
def trained(separate_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert separate_command(*DEBUG, f"output={folder}").status == 0
    return folder / "checkpoints" / "last.ckpt"


def learning_rates(folder) -> list[float]:
    tables = [pd.read_csv(path) for path in sorted(folder.glob("metrics/*/metrics.csv"))]
    return pd.concat(tables)["train/learning_rate"].dropna().to_list()


@pytest.mark.slow
def test_digits_to_other_images(command, separate_command, trained, photos, tmp_path):
    """The network of a run on digits, on photos: another codebook, grid and number of classes."""
    tokenized = ["task=tokenize", "tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.1", f"images={photos}"]
    separate_command(*tokenized, f"output={tmp_path}/shards")
    options = ["experiment=finetune", f"weights={trained}", f"data.shards={tmp_path}/shards", "data.num_workers=0"]
    options += ["trainer.max_steps=2", "trainer.val_check_interval=1", "callbacks.sample_grid.images_per_class=1"]
    outcome = command(*options, f"output={tmp_path}/a")
    assert outcome.status == 0, outcome.err
    assert f"Training starts from {trained} (EMA weights)." in outcome.out
    assert "module.net.num_classes is 4 instead of 10." in outcome.out
    assert len(outcome.results["started_from"]["changes"]) == 3  # the digits have as many tokens
    width = read_file(trained)["net_sizes"]["width"]
    tuned = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")
    assert tuned["net_sizes"]["width"] == width
    assert tuned["settings"]["started_from"] == outcome.results["started_from"]
    again = command(*options, f"output={tmp_path}/a", "trainer.max_steps=3")
    assert "Going on from" in again.out
    assert "Training starts from" not in again.out


def test_a_run_of_random_weights_does_not_go_on_as_one_of_others(command, trained, tmp_path):
    command(*DEBUG, f"output={tmp_path}/a")
    refused = command(*DEBUG, f"weights={trained}", f"output={tmp_path}/a", "trainer.max_steps=6")
    assert "the folder holds a run that started from other weights (weights.sha256: null before, " in refused.err


def test_finetuning_needs_weights(command):
    refused = command("experiment=finetune", "data.shards=any")
    assert (
        refused.err == "Error: experiment=finetune: expected weights=FILE, the checkpoint that training starts from.\n"
    )


def test_a_checkpoint_and_shards_alone_are_finetuning(command, separate_command, trained, photos, tmp_path):
    """As many classes of other names: their embeddings are kept, and that is said."""
    tokenized = ["task=tokenize", "tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.1"]
    for name, folders in {"a": ["astronaut", "coffee"], "b": ["chelsea", "rocket"]}.items():
        for folder in folders:
            shutil.copytree(photos / folder, tmp_path / name / folder)
        separate_command(*tokenized, f"images={tmp_path}/{name}", f"output={tmp_path}/shards_{name}")
    short = ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.num_workers=0", "callbacks.sample_grid=null"]
    first = command(f"data.shards={tmp_path}/shards_a", *short, "module.net.width=32", f"output={tmp_path}/r").results
    tuned = command(
        f"weights={first['checkpoint']}", f"data.shards={tmp_path}/shards_b", *short, f"output={tmp_path}/t"
    )
    assert tuned.status == 0, tuned.err
    assert "kept, though the classes have other names: astronaut becomes chelsea." in tuned.out
    assert tuned.results["started_from"]["changes"] == []
    assert tuned.results["started_from"]["notes"] == []


def test_the_first_class_of_another_name_is_named(capsys):
    started_from = {"weights": "a.ckpt", "kind": "EMA", "changes": [], "notes": [], "class_names": ["cat", "dog"]}
    data = SimpleNamespace(known_class_names=lambda: ("cat", "bird"))
    print_start(started_from, data)
    assert "though the classes have other names: dog becomes bird." in capsys.readouterr().out


def test_classes_whose_names_look_the_same_have_no_other_names(capsys):
    before, now = (unicodedata.normalize(form, "Käse") for form in ("NFC", "NFD"))
    started_from = {"weights": "a.ckpt", "kind": "EMA", "changes": [], "notes": [], "class_names": [before, "dog"]}
    print_start(started_from, SimpleNamespace(known_class_names=lambda: (now, "dog")))
    assert "other names" not in capsys.readouterr().out


def test_training_starts_where_the_file_is(command, trained, tmp_path):
    """Nothing is trained at a rate of zero, so that the weights stay those that training started from."""
    options = [*DEBUG, f"weights={trained}", "module.optimizer.lr=0", f"output={tmp_path}/a"]
    assert command(*options).status == 0
    before = read_file(trained)["callbacks"]["EMA"]["net"]
    now = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")
    assert all((now["state_dict"][f"net.{name}"] == tensor).all() for name, tensor in before.items())
    assert all((now["callbacks"]["EMA"]["net"][name] == tensor).all() for name, tensor in before.items())
    assert now["global_step"] == 4


@pytest.mark.slow
def test_another_learning_rate_where_it_is_asked_for(command, tmp_path):
    run = [*DEBUG, f"output={tmp_path}/a", "trainer.log_every_n_steps=1", "module.scheduler.total_iters=8"]
    command(*run, "trainer.max_steps=4")
    rate = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")["settings"]["module"]["optimizer"]["lr"]
    changed = [*run, "trainer.max_steps=12", f"module.optimizer.lr={rate / 2}"]
    refused = command(*changed)
    assert f"module.optimizer.lr: {rate} before, {rate / 2} now" in refused.err
    assert "a new folder; changed_on_resume=[lr] goes on with the change." in refused.err
    refused = command(*changed, "module.optimizer.weight_decay=0.5", "changed_on_resume=[lr]")
    assert f"lr: {rate} before" not in refused.err
    assert "a new folder; changed_on_resume=[lr,weight_decay] goes on with the change." in refused.err
    assert command(*changed, "changed_on_resume=[lr]").status == 0
    group = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert group["lr"] == pytest.approx(rate / 2)
    command(*[option.replace("/a", "/b") for option in run], "trainer.max_steps=12")
    command(*run, "trainer.max_steps=13", "module.optimizer.lr=0.1", "changed_on_resume=[lr,weight_decay]",
            "module.optimizer.weight_decay=0.5")  # fmt: skip
    group = read_file(tmp_path / "a" / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"][0]
    assert (group["weight_decay"], group["lr"], group["initial_lr"]) == (0.5, pytest.approx(0.1), 0.1)
    whole, parts = learning_rates(tmp_path / "b"), learning_rates(tmp_path / "a")
    assert parts[:4] == pytest.approx(whole[:4])
    assert parts[4:12] == pytest.approx([value / 2 for value in whole[4:]])
    refused = command(*run, "changed_on_resume=[momentum]")
    assert "changed_on_resume[0]=momentum: expected lr, betas, eps or weight_decay" in refused.err


def test_an_official_file_with_the_network_that_it_has(command, trained, tmp_path):
    """As docs/data.md shows: the file does not say its network, so that an option does."""
    exported = command("task=export", f"weights={trained}", f"output={tmp_path}/export").results
    official = next(path for path in map(str, (tmp_path / "export").iterdir()) if path.endswith("nnet_ema.pth"))
    assert exported
    sizes = ["net@module.net=enat_digits", "module.net.width=32", "module.net.encoder_depth=2"]
    sizes += ["module.net.decoder_depth=1", "data=digits", "tokenizer=pixels", "metrics=none"]
    outcome = command(
        "experiment=finetune", *sizes, f"weights={official}", "trainer.max_steps=1", "trainer.val_check_interval=1",
        "callbacks.sample_grid=null", f"output={tmp_path}/run",
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert f"Training starts from {official} (official weights)." in outcome.out
    assert "The embedding of tokens is kept; the file does not say whether its tokenizer is the same." in outcome.out


def test_after_a_rate_that_has_fallen_to_zero(command, tmp_path):
    """The schedule of the rate of the first training is over."""
    first = [*DEBUG, "scheduler@module.scheduler=warmup_cosine", "module.scheduler.warmup_steps=1"]
    assert command(*first, "~module.scheduler.total_iters", f"output={tmp_path}/a").status == 0
    options = [
        "experiment=finetune",
        f"weights={tmp_path}/a/checkpoints/last.ckpt",
        "data=digits",
        "trainer.max_steps=2",
    ]
    tuned = command(
        *options,
        "trainer.log_every_n_steps=1",
        "trainer.val_check_interval=1",
        "callbacks.sample_grid=null",
        f"output={tmp_path}/b",
    )
    assert tuned.status == 0, tuned.err
    assert learning_rates(tmp_path / "b")[-1] > 0


def test_a_run_goes_on_without_the_file_that_it_started_from(command, trained, photos, tmp_path):
    command(
        "task=tokenize",
        "tokenizer=vqgan_tiny",
        "num_workers=0",
        "held_out=0.1",
        f"images={photos}",
        f"output={tmp_path}/shards",
    )
    shutil.copy(trained, tmp_path / "start.ckpt")
    run = ["experiment=finetune", f"weights={tmp_path}/start.ckpt", f"data.shards={tmp_path}/shards"]
    run += [
        "data.num_workers=0",
        "callbacks.sample_grid=null",
        "trainer.val_check_interval=1",
        f"output={tmp_path}/run",
    ]
    assert command(*run, "trainer.max_steps=1").status == 0
    (tmp_path / "start.ckpt").unlink()
    longer = command(*run, "trainer.max_steps=2")
    assert longer.status == 0, longer.err
    assert longer.results["steps"] == 2
    assert "there is no such file" in command(*run, f"output={tmp_path}/new").err


def test_the_untrained_network_of_a_run_that_goes_on(command, monkeypatch, trained, tmp_path):
    """It is the one that training started from or, where its file is gone, none."""
    scored = []

    def keep(fitter, nets, *_):
        scored.append({name: net.state_dict() for name, net in nets.items()})
        return {}

    monkeypatch.setattr("experiments.train.score_all", keep)
    shutil.copy(trained, tmp_path / "start.ckpt")
    start = f"weights={tmp_path}/start.ckpt"
    run = ["experiment=debug", "callbacks.generation_metrics=null", "callbacks.sample_grid=null"]
    run += ["metrics.untrained=true", f"output={tmp_path}/run"]
    for steps in (2, 4):
        assert command(*run, start, f"trainer.max_steps={steps}").status == 0
    before, now = (nets["untrained network"] for nets in scored)
    assert all(torch.equal(before[name], now[name]) for name in before)
    (tmp_path / "start.ckpt").unlink()
    for steps, options in ((6, [start]), (8, [])):
        longer = command(*run, *options, f"trainer.max_steps={steps}")
        assert "Note: the untrained network is not scored (metrics.untrained), for the run started from" in longer.out
        assert scored[-1].keys() == {"this network"}
