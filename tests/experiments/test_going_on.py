"""What a run that goes on may not carry over in silence: scores, averages, best values and records of before."""

import csv
import json
import math
import re
import shutil

import pytest
import torch
import yaml
from PIL import Image

from enat.checkpoints.weights import read_file
from enat.errors import InputError
from experiments.runtime.options import prepare

DEBUG = ["experiment=debug", "callbacks.sample_grid=null"]
NO_SCORES = ["metrics=none"]


@pytest.mark.slow
def test_scores_of_fewer_steps_are_no_results_of_more(command, killed, tmp_path):
    """Killed while it scores after eight steps, in a folder with the results of four."""
    run = [*DEBUG, "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss", f"output={tmp_path}"]
    first = command(*run).results
    longer = [*run, "trainer.max_steps=8", "metrics.evaluation.num_images=60"]
    killed(*longer, at="experiments.train:score_all")
    assert json.loads((tmp_path / "results_before.json").read_text()) == first
    again = command(*longer)
    assert (again.results["steps"], again.results["num_images"]) == (8, 60)
    assert again.results["fid"] != first["fid"]
    assert "is finished: 8 steps" in command(*longer).out


def test_a_run_that_trained_on_keeps_its_new_settings_though_its_scores_fail(command, monkeypatch, tmp_path):
    run = [*DEBUG, "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss", f"output={tmp_path}"]
    assert command(*run).status == 0

    def fail(*_):
        raise InputError("no scores")

    monkeypatch.setattr("experiments.train.score_all", fail)
    assert command(*run, "trainer.max_steps=8").status == 1
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["trainer"]["max_steps"] == 8
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("wrong", ["callbacks.checkpoint.monitor=val/typo", "callbacks.ema=null"])
def test_a_command_that_fails_leaves_a_finished_run_as_it_is(command, tmp_path, wrong):
    """Its options are refused when training has begun, or is about to."""
    run = [*DEBUG, "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss", f"output={tmp_path}"]
    assert command(*run).status == 0
    names = ("config.yaml", "results.json", "checkpoints/last.ckpt")
    before = [(tmp_path / name).read_bytes() for name in names]
    assert command(*run, "trainer.max_steps=8", wrong).status == 1
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert not (tmp_path / "results_before.json").exists()


def test_a_finished_run_is_scored_again_with_other_reference_images(command, tmp_path):
    """Under the same path: the settings are those of before, and the scores would be, too."""
    (tmp_path / "real").mkdir()

    def draw(*numbers):
        for number in numbers:
            Image.new("L", (8, 8), 20 * number).save(tmp_path / "real" / f"{number}.png")

    draw(1, 2, 3)
    run = [*DEBUG, "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss"]
    run += ["metrics.evaluation.reference._target_=data.scored_images.FolderImages", f"output={tmp_path}/run"]
    run += [f"+metrics.evaluation.reference.path={tmp_path}/real", "+metrics.evaluation.reference.resolution=null"]
    run += ["+metrics.evaluation.reference.num_workers=0", "~metrics.evaluation.reference.images"]
    assert command(*run).status == 0
    assert "is finished" in command(*run).out
    draw(4)
    assert "is finished" not in command(*run).out
    assert "is finished" in command(*run).out
    results = json.loads((tmp_path / "run/results.json").read_text())
    del results["evaluation"]  # which those of older versions lack
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    assert "is finished" in command(*run).out


def test_a_users_own_copy_of_a_checkpoint_stays(command, tmp_path):
    run = [*DEBUG, *NO_SCORES, "callbacks.checkpoint.keep=1", f"output={tmp_path}"]
    command(*run, "trainer.max_steps=2")
    folder = tmp_path / "checkpoints"
    copies = {"step_0000002_good.ckpt", "step_2.ckpt", "step_0000002.ckpt.bak"}
    for name in copies:
        shutil.copy(folder / "step_0000002.ckpt", folder / name)
    command(*run, "trainer.max_steps=6")
    there = {path.name for path in folder.iterdir()}
    assert there - {"best.ckpt", "last.ckpt"} == {"step_0000006.ckpt", *copies}


def test_an_average_that_is_added_starts_from_the_trained_weights(command, tmp_path):
    run = [*DEBUG, *NO_SCORES, "module.cache_from_ema=false", f"output={tmp_path}"]
    command(*run, "callbacks.ema=null", "trainer.max_steps=6")
    trained = read_file(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    outcome = command(*run, "callbacks.ema.decay=1.0", "trainer.max_steps=8")
    assert "The run had no average so far (callbacks.ema): it starts from the trained weights." in outcome.out
    average = read_file(tmp_path / "checkpoints" / "last.ckpt")["callbacks"]["EMA"]["net"]
    assert all(torch.equal(trained[f"net.{name}"], tensor) for name, tensor in average.items())


@pytest.mark.parametrize("change", [[], ["callbacks.generation_metrics.num_images=60"], ["sampler.num_steps=1"]])
def test_the_best_checkpoint_is_the_best_of_what_is_watched_now(command, tmp_path, change):
    """A loss of 2.8 is below any FID; FIDs of more images, or of images made in fewer steps, are others."""
    first = NO_SCORES if not change else []
    command(*DEBUG, *first, f"output={tmp_path}")
    command(*DEBUG, *change, f"output={tmp_path}", "trainer.max_steps=8")
    best = read_file(tmp_path / "checkpoints" / "best.ckpt")
    assert best["global_step"] in (6, 8)
    state = next(state for name, state in best["callbacks"].items() if name.startswith("Checkpoints"))
    assert state["best_of"][:2] == ["val/fid", 60 if "callbacks.generation_metrics.num_images=60" in change else 40]


@pytest.mark.parametrize(("limit", "steps"), [("1", [4]), ("1.0", [6, 8])])
def test_the_best_loss_is_that_of_the_same_samples(command, tmp_path, limit, steps):
    """A loss of one batch may be lower than any of all batches."""
    run = [*DEBUG, *NO_SCORES, f"output={tmp_path}"]
    command(*run)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["callbacks"]["Checkpoints"]["best"] = 0.0
    for other in path.parent.glob("*.ckpt"):
        torch.save(content, other)
    command(*run, f"trainer.limit_val_batches={limit}", "trainer.max_steps=8")
    best = read_file(tmp_path / "checkpoints" / "best.ckpt")
    assert best["global_step"] in steps
    assert read_file(path)["callbacks"]["Checkpoints"]["best_of"] == ["val/loss", 1 if limit == "1" else "all"]


def test_a_run_without_the_checkpoint_callback_says_what_it_is(command, tmp_path):
    run = [*DEBUG, *NO_SCORES, "callbacks.checkpoint=null", f"output={tmp_path}"]
    command(*run)
    assert list(tmp_path.rglob("*.ckpt")) == [tmp_path / "checkpoints" / "last.ckpt"]
    assert command("task=sample", f"weights={tmp_path}", "classes=1", "images_per_class=1").status == 0
    outcome = command(*run, "trainer.max_steps=6")
    assert "Going on from" in outcome.out
    assert outcome.results["steps"] == 6


@pytest.mark.slow
def test_weights_that_training_started_from_may_be_gone(command, tmp_path):
    command(*DEBUG, *NO_SCORES, f"output={tmp_path}/a")
    shutil.copy(tmp_path / "a" / "checkpoints" / "last.ckpt", tmp_path / "w.ckpt")
    run = [*DEBUG, *NO_SCORES, f"output={tmp_path}/b"]
    started = command(*run, f"weights={tmp_path}/w.ckpt").results["started_from"]
    (tmp_path / "w.ckpt").unlink()
    for steps, weights in ((6, [f"weights={tmp_path}/w.ckpt"]), (8, [])):
        outcome = command(*run, *weights, f"trainer.max_steps={steps}")
        assert outcome.status == 0, outcome.err
        assert outcome.results["started_from"] == started
    refused = command(*run, f"weights={tmp_path}/a/checkpoints/step_0000002.ckpt", "trainer.max_steps=9")
    assert "the folder holds a run that started from other weights (weights.sha256: " in refused.err


@pytest.mark.slow
def test_training_from_another_network_is_refused(command, tmp_path):
    command(*DEBUG, *NO_SCORES, f"output={tmp_path}/a")
    run = [*DEBUG, *NO_SCORES, f"weights={tmp_path}/a/checkpoints/last.ckpt", f"output={tmp_path}/b"]
    for option, sentence in {
        "module.net.num_heads=2": "its network has num_heads 4, this one 2. Fine-tuning keeps width, heads,",
        "variant=nat": "its network has variant ENAT, this one NAT. Fine-tuning",
    }.items():
        assert sentence in command(*run, option).err
    command(*DEBUG, *NO_SCORES, "variant=nat_without_visible_to_visible", f"output={tmp_path}/c")
    run = [*DEBUG, *NO_SCORES, "variant=nat", f"weights={tmp_path}/c/checkpoints/last.ckpt", f"output={tmp_path}/d"]
    assert "its network has interactions ['" in command(*run).err


@pytest.mark.slow
def test_a_new_run_in_an_old_folder_is_a_new_run_on_wandb(command, tmp_path):
    run = [*DEBUG, *NO_SCORES, "logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}"]
    command(*run)
    first = (tmp_path / "wandb_id.txt").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    command(*run, "seed=1")
    assert (tmp_path / "wandb_id.txt").read_text() != first
    logs = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda path: first in path.name)
    assert len(logs) == 2
    assert all(b"train/loss" in path.read_bytes() for path in logs)


def test_a_dangling_link_among_checkpoints(command, tmp_path):
    command(*DEBUG, *NO_SCORES, f"output={tmp_path}")
    (tmp_path / "checkpoints" / "step_0000009.ckpt").symlink_to("nowhere.ckpt")
    assert "Going on from" in command(*DEBUG, *NO_SCORES, f"output={tmp_path}", "trainer.max_steps=6").out


def test_an_empty_configuration(command, tmp_path):
    """As an older version may have left it on a full disk."""
    command(*DEBUG, *NO_SCORES, f"output={tmp_path}")
    (tmp_path / "config.yaml").write_text("")
    assert command(*DEBUG, *NO_SCORES, f"output={tmp_path}").results["steps"] == 4


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0: expected at least 1."),
        ("trainer.accumulate_grad_batches=-2", "trainer.accumulate_grad_batches=-2: expected at least 1."),
        ("+trainer.fast_dev_run=true", "trainer.fast_dev_run: it would end without the steps asked for"),
        ("+trainer.min_steps=10", "trainer.min_steps=10: the data have no epochs; expected trainer.max_steps=N."),
        (
            "+trainer.callbacks=[]",
            "trainer.callbacks: training replaces it; callbacks and loggers are",
        ),
        (
            "+trainer.logger=false",
            "trainer.logger: training replaces it; callbacks and loggers are",
        ),
        (
            "callbacks.checkpoint.folder=elsewhere",
            "callbacks.checkpoint.folder=elsewhere: checkpoints are looked for in",
        ),
        (
            "+logger.csv.version=0",
            "logger.csv.version=0: the curves of this version would be deleted when the run goes",
        ),
        ("logger.csv.name=curves", "logger.csv: its files would be in "),
        ("callbacks.sample_grid.class_ids=[1]", "callbacks.sample_grid=null leaves it out with all of its options"),
    ],
)
def test_options_that_would_be_ignored(command, tmp_path, option, sentence):
    outcome = command(*DEBUG, *NO_SCORES, f"output={tmp_path}/a", option)
    assert outcome.status in (1, 2)
    assert sentence in outcome.err
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_a_folder_whose_name_looks_like_a_number():
    assert prepare(["output=2024_01", "scored.path=1e5", "seed=1_0", "data.shards=17", "weights=a,b"]) == [
        "output='2024_01'",
        "scored.path='1e5'",
        "seed=1_0",
        "data.shards='17'",
        "weights=a,b",
    ]


@pytest.mark.parametrize("checkpoint", [[], ["callbacks.checkpoint=null"]])
def test_a_training_that_has_diverged_is_no_success(command, tmp_path, checkpoint):
    run = [*DEBUG, *NO_SCORES, *checkpoint, "callbacks.guard=null", f"output={tmp_path}"]
    outcome = command(*run, "module.optimizer.lr=1e18", "trainer.max_steps=30", "trainer.val_check_interval=30")
    assert outcome.status == 1
    assert "step 30: training has diverged, for weights are NaN or infinite; they are not saved" in outcome.err
    assert "A lower module.optimizer.lr may help." in outcome.err  # the precision is 32-true already
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "results.json").exists()


def test_scores_of_a_training_that_has_diverged(command, tmp_path):
    outcome = command(*DEBUG, "module.optimizer.lr=1e30", f"output={tmp_path}")
    assert outcome.status == 1
    assert "expected an earlier checkpoint, or a training with a lower module.optimizer.lr." in outcome.err


@pytest.mark.parametrize("part", ["weights", "EMA weights"])
def test_weights_of_nan_do_not_go_on(command, tmp_path, part):
    run = [*DEBUG, *NO_SCORES, f"output={tmp_path}"]
    command(*run)
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    average = content["callbacks"]["EMA"]["net"]
    name = "net.head_bias" if part == "weights" else "head_bias"
    (content["state_dict"] if part == "weights" else average)[name][0] = torch.nan
    step = path.with_name("step_0000004.ckpt")
    path.unlink()
    step.unlink()
    torch.save(content, path)
    step.hardlink_to(path)
    shutil.copy(path, path.with_name("copy.ckpt"))  # as on a disk without links
    outcome = command(*run, "trainer.max_steps=6")
    assert outcome.status == 1
    named = re.search(
        f"ckpt: {name} of its {part} holds NaN or infinite values; remove ([^ ]+, [^ ]+, [^ ]+) to", outcome.err
    )
    assert set(named[1].split(", ")) == {"last.ckpt", "step_0000004.ckpt", "copy.ckpt"}
    for other in named[1].split(", "):
        (path.parent / other).unlink()
    assert "best.ckpt, step 4" in command(*run, "trainer.max_steps=6").out  # whose content is sound


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("Adafactor", []),  # which keeps other moments of vectors than of matrices
        ("LBFGS", ["~module.optimizer.weight_decay"]),
        ("RMSprop", ["+module.optimizer.momentum=0.9", "+module.optimizer.centered=true"]),
    ],
)
def test_optimizers_of_torch_go_on(command, tmp_path, optimizer, options):
    without = [f"~module.optimizer.{name}" for name in ("betas", "eps", "fused")]
    options = [f"module.optimizer._target_=torch.optim.{optimizer}", *without, *options]
    run = [*DEBUG, *NO_SCORES, *options, f"output={tmp_path}"]
    assert command(*run, "trainer.max_steps=2").status == 0
    longer = command(*run, "trainer.max_steps=3")
    assert longer.status == 0, longer.err
    assert "Going on from" in longer.out


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 4}),
        ("ExponentialLR", {"gamma": 5}),
    ],
)
def test_schedules_far_above_the_rate_that_they_start_from_go_on(command, tmp_path, schedule, options):
    changes = [f"module.scheduler._target_=torch.optim.lr_scheduler.{schedule}"]
    changes += ["~module.scheduler.start_factor", "~module.scheduler.total_iters"]
    changes += [f"+module.scheduler.{name}={value}" for name, value in options.items()]
    run = [*DEBUG, *NO_SCORES, *changes, f"output={tmp_path}"]
    assert command(*run, "trainer.max_steps=2").status == 0
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = read_file(path)
    longer = command(*run, "trainer.max_steps=3")
    assert longer.status == 0, longer.err
    assert "Going on from" in longer.out
    content["optimizer_states"][0]["param_groups"][0]["lr"] *= 100
    path.unlink()
    torch.save({**content, "global_step": 9}, path)
    assert "the state of its optimiser is damaged (the learning rate " in command(*run, "trainer.max_steps=10").err


@pytest.mark.parametrize(
    ("option", "before"),
    [
        ("callbacks.ema.decay=0.7", "0.5"),
        ("trainer.precision=bf16-mixed", "32-true"),
        ("trainer.gradient_clip_val=2", "null"),
    ],
)
def test_what_changes_the_result_does_not_change_in_silence(command, tmp_path, option, before):
    run = [*DEBUG, *NO_SCORES, f"output={tmp_path}"]
    command(*run)
    outcome = command(*run, option, "trainer.max_steps=6")
    assert outcome.status == 1
    assert f"{option.partition('=')[0]}: {before}" in outcome.err


@pytest.mark.parametrize(("options", "is_told"), [([], False), (["module.scheduler.warmup_steps=1"], True)])
def test_a_schedule_that_depends_on_the_number_of_steps_says_so(command, tmp_path, options, is_told):
    if options:
        options = [*options, "scheduler@module.scheduler=warmup_cosine", "~module.scheduler.total_iters"]
    run = [*DEBUG, *NO_SCORES, *options, f"output={tmp_path}"]
    command(*run)
    outcome = command(*run, "trainer.max_steps=6")
    assert "Going on from" in outcome.out
    note = "Note: trainer.max_steps=6 instead of 4: the learning rate depends on it, so the results will differ"
    assert (note in outcome.out) == is_told
    with (tmp_path / "metrics" / "version_1" / "metrics.csv").open() as file:
        rates = [float(row["train/learning_rate"]) for row in csv.DictReader(file) if row["train/learning_rate"]]
    if is_told:  # half a cosine from the second step to the sixth
        whole = yaml.safe_load((tmp_path / "config.yaml").read_text())["module"]["optimizer"]["lr"]
        assert rates == pytest.approx([whole * (1 + math.cos(math.pi * share)) / 2 for share in (3 / 5, 4 / 5)])


def test_masks_that_are_drawn_by_batch_say_that_they_change(command, tmp_path):
    run = [*DEBUG, *NO_SCORES, "module.mask_groups=null", f"output={tmp_path}"]
    command(*run)
    outcome = command(*run, "trainer.accumulate_grad_batches=2", "trainer.max_steps=6")
    assert "Note: trainer.accumulate_grad_batches=2 instead of 1: masks and dropout are drawn by batch" in outcome.out


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("trainer.val_check_interval=0", "trainer.val_check_interval=0: expected a number of batches of at least 1"),
        ("trainer.val_check_interval=00:00:00:03", "expected a number of batches of at least 1"),
        ("trainer.val_check_interval=0.5", "expected a number of batches of at least 1"),
        ("trainer.gradient_clip_val=-5", "trainer.gradient_clip_val=-5: expected a norm above 0"),
    ],
)
def test_options_of_the_trainer_out_of_range(command, tmp_path, option, sentence):
    outcome = command(*DEBUG, *NO_SCORES, option, f"output={tmp_path}")
    assert outcome.status == 1
    assert sentence in outcome.err
