"""The train task: reproducible, resumable, and its checkpoint serves the other tasks."""

import csv
import json
import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image
from torch import nn

from callbacks.sample_grid import SampleGrid
from data.references import TensorImages
from data.scored_images import ClassFolderImages
from data.toy.digits import DigitFeatures, digit_images
from enat.checkpoints.official import to_official
from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.metrics.evaluation import Evaluation
from enat.metrics.scores import InceptionScore
from enat.metrics.view import OnView
from experiments import train
from experiments.train import refuse_other_split

DEBUG = "experiment=debug"
ROOT = Path(__file__).parents[2]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint has learnt: raw and EMA weights, and the optimiser's moments."""
    content = read_file(folder / "checkpoints" / "last.ckpt")
    moments = content["optimizer_states"][0]["state"]
    return {
        **{f"raw.{name}": tensor for name, tensor in content["state_dict"].items()},
        **{f"ema.{name}": tensor for name, tensor in select_state(content)[0].items()},
        **{f"adam.{i}.{name}": torch.as_tensor(value) for i, state in moments.items() for name, value in state.items()},
    }


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def pictures(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)) for path in sorted((folder / "samples").glob("*.png"))}


@pytest.fixture
def trained(command, tmp_path):
    """A finished run of the debug experiment."""
    outcome = command(DEBUG, f"output={tmp_path}/a")
    assert outcome.status == 0
    return tmp_path / "a", outcome.results


def test_real_images_that_are_split_in_another_way_are_refused(photos):
    """Or images that the network was trained on would count as held out."""
    split = {"seed": 0, "resolution": 16, "num_workers": 0}
    reference = ClassFolderImages(str(photos), "train", 0.25, **split)
    held_out = ClassFolderImages(str(photos), "held_out", 0.25, **split)

    def data(**numbers):
        return SimpleNamespace(numbers=lambda name: numbers[name])

    refuse_other_split(data(train=reference.numbers, held_out=held_out.numbers), reference)
    refuse_other_split(data(train=reference.numbers[1:], held_out=held_out.numbers[1:]), reference)  # unreadable ones
    refuse_other_split(data(train=None, held_out=None), reference)
    for other in ({"held_out": 0.5}, {"seed": 1}):
        options = {"held_out": 0.25, **split, **other}
        parts = {part: ClassFolderImages(str(photos), part, **options).numbers for part in ("train", "held_out")}
        with pytest.raises(InputError, match=r"metrics\.images: their split into training and held-out images is not"):
            refuse_other_split(data(**parts), reference)


def test_what_can_not_be_compared_with_leaves_the_scores_of_the_network(monkeypatch, capsys):
    """Such as fewer held-out images than an Inception Score has splits: the same command would never get its scores."""
    images = {name: TensorImages(digit_images("train")[:count]) for name, count in {"many": 40, "few": 3}.items()}
    monkeypatch.setattr(train, "GeneratedImages", lambda net, *options: images["many" if net.bias is None else "few"])
    scores = {"inception_score": OnView("logits", InceptionScore(10))}
    judge = Evaluation(DigitFeatures(), images["many"], scores, num_images=40, block_size=20, batch_size=20)
    fitter = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        precision_plugin=SimpleNamespace(forward_context=nullcontext),
        is_global_zero=True,
    )
    nets = {"this network": nn.Linear(1, 1, bias=False), "untrained network": nn.Linear(1, 1)}
    rows = train.score_all(fitter, nets, None, None, judge, images["few"])
    assert list(rows) == ["this network"]
    assert rows["this network"]["digits"]["inception_score"] > 1
    lines = capsys.readouterr().out.splitlines()
    for name in ("untrained network", "real, held out"):
        sentence = "3 images: expected at least two, and one for each of 10 splits."
        assert f"Note: No scores of {name}: {sentence}" in lines
    with pytest.raises(InputError, match="3 images"):
        train.score_all(fitter, {"this network": nets["untrained network"]}, None, None, judge, images["many"])


def test_the_grid_compiles_nothing(compose_config, monkeypatch, tmp_path):
    """It has a batch of its own, and other ranks wait for it."""
    config = compose_config(DEBUG, "sampler.compile=true")
    monkeypatch.setattr("enat.sampler.compile_step", lambda *_: pytest.fail("it compiles"))
    grid = SampleGrid(instantiate(config.sampler), [3], 2, 0, str(tmp_path))
    trainer = SimpleNamespace(is_global_zero=True, global_step=7, loggers=[], datamodule=instantiate(config.data))
    trainer.precision_plugin = SimpleNamespace(forward_context=nullcontext)
    grid.on_validation_epoch_end(trainer, instantiate(config.module).eval())
    assert [path.name for path in grid.pictures] == ["step_0000007.png", "step_0000007_reveal.png"]
    assert all(path.stat().st_size > 1000 for path in grid.pictures)


@pytest.mark.slow
def test_same_seed_same_bits(command, trained, tmp_path):
    folder, results = trained
    again = command(DEBUG, f"output={tmp_path}/b").results
    assert same(weights(folder), weights(tmp_path / "b"))
    first, second = pictures(folder), pictures(tmp_path / "b")
    assert len(first) == 4
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert (again["fid"], again["inception_score"]) == (results["fid"], results["inception_score"])
    command(DEBUG, f"output={tmp_path}/c", "seed=1")
    other = weights(tmp_path / "c")
    assert not any(
        torch.equal(tensor, other[name]) for name, tensor in weights(folder).items() if "attention.query.weight" in name
    )
    assert not np.array_equal(first["step_0000004.png"], pictures(tmp_path / "c")["step_0000004.png"])


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_equals_uninterrupted(command, trained, tmp_path, stop):
    folder, results = trained
    command(DEBUG, f"output={tmp_path}/b", f"trainer.max_steps={stop}")
    assert not same(weights(folder), weights(tmp_path / "b"))
    resumed = command(DEBUG, f"output={tmp_path}/b").results
    assert same(weights(folder), weights(tmp_path / "b"))
    assert resumed["fid"] == results["fid"]


@pytest.mark.slow
def test_accumulation_resumes_too(command, tmp_path):
    options = [DEBUG, "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"]
    command(*options, f"output={tmp_path}/a")
    command(*options, f"output={tmp_path}/b", "trainer.max_steps=3")
    command(*options, f"output={tmp_path}/b")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.slow
def test_a_mask_ratio_for_each_image(command, tmp_path):
    """It trains like the official masks, and goes on exactly."""
    run = [DEBUG, "masking@module.masking=per_sample", "trainer.val_check_interval=2", "trainer.max_steps=6"]
    command(*run, f"output={tmp_path}/whole")
    command(*run, "trainer.max_steps=2", f"output={tmp_path}/parts")
    outcome = command(*run, f"output={tmp_path}/parts")
    assert "Going on from" in outcome.out
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    with (tmp_path / "whole" / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/loss"]) for row in rows] == pytest.approx([2.78] * 6, abs=0.05)
    assert all(float(row["train/mask_ratio"]) == pytest.approx(0.8, abs=0.08) for row in rows)  # 16 images, each 0.1


def test_pictures_and_metrics_do_not_touch_training(command, trained, tmp_path):
    folder, _ = trained
    command(
        DEBUG,
        f"output={tmp_path}/b",
        "callbacks.sample_grid=null",
        "callbacks.generation_metrics=null",
        "callbacks.checkpoint.monitor=val/loss",
    )
    assert same(weights(folder), weights(tmp_path / "b"))


@pytest.mark.slow
def test_validation_and_pictures_show_the_ema(command, tmp_path):
    """With an average that never moves, they stay what they were before training."""
    options = [DEBUG, "callbacks.ema.decay=1.0", "module.optimizer.lr=0.1", "trainer.max_steps=8"]
    command(*options, f"output={tmp_path}", "trainer.val_check_interval=4")
    drawn = pictures(tmp_path)
    assert np.array_equal(drawn["step_0000004.png"], drawn["step_0000008.png"])
    with (tmp_path / "metrics" / "version_0" / "metrics.csv").open() as file:
        losses = [row["val/loss"] for row in csv.DictReader(file) if row["val/loss"]]
    assert losses[0] == losses[1]
    moved = pictures(tmp_path / "b") if command(*options[:1], *options[2:], f"output={tmp_path}/b").status == 0 else {}
    assert not np.array_equal(moved["step_0000002.png"], moved["step_0000008.png"])


@pytest.mark.slow
def test_the_default_experiment_runs(command, tmp_path):
    options = ["trainer.max_steps=1", "trainer.val_check_interval=1", "metrics.evaluation.num_images=20"]
    outcome = command(*options, "callbacks.generation_metrics.num_images=20", f"output={tmp_path}")
    assert outcome.results["steps"] == 1
    assert outcome.results["num_images"] == 20


@pytest.mark.slow
def test_two_processes(separate_command, tmp_path):
    """DDP on the CPU: each rank its own samples, one set of weights, one set of scores, from any number of ranks."""
    arguments = [DEBUG, "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    ended = separate_command(*arguments, f"output={tmp_path}")
    assert ended.status == 0, ended.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_images"] == 40
    evaluated = [DEBUG, "task=evaluate", f"weights={tmp_path}/checkpoints/last.ckpt", f"output={tmp_path}/e"]
    assert separate_command(*evaluated).results["fid"] == pytest.approx(results["fid"], rel=1e-9)


@pytest.mark.slow
def test_ema_is_the_average(command, tmp_path):
    """After one step from the initial weights: decay x initial + (1 - decay) x weights."""
    one_step = command(DEBUG, f"output={tmp_path}/a", "trainer.max_steps=1", "callbacks.ema.decay=0.75")
    command(DEBUG, f"output={tmp_path}/b", "trainer.max_steps=1", "callbacks.ema.decay=1.0")
    assert "Note: 75% of the average will be the network before training" in one_step.out
    averaged, initial = weights(tmp_path / "a"), weights(tmp_path / "b")
    changed = 0
    for name in (name.removeprefix("raw.net.") for name in averaged if name.startswith("raw.")):
        expected = 0.75 * initial[f"ema.{name}"] + 0.25 * averaged[f"raw.net.{name}"]
        torch.testing.assert_close(averaged[f"ema.{name}"], expected)
        changed += not torch.equal(averaged[f"raw.net.{name}"], initial[f"ema.{name}"])
    assert changed > 10  # the gates start at zero, so that not all get a gradient in the first step
    assert "of the average" not in command(DEBUG, f"output={tmp_path}/c", "trainer.max_steps=4").out


@pytest.mark.slow
def test_online_network_can_make_the_cache(command, trained, tmp_path):
    outcome = command(DEBUG, f"output={tmp_path}/b", "module.cache_from_ema=false", "module.masking.reuse_prob=1.0")
    assert outcome.status == 0
    command(DEBUG, f"output={tmp_path}/c", "module.masking.reuse_prob=1.0")
    assert not same(weights(tmp_path / "b"), weights(tmp_path / "c"))
    refused = command(DEBUG, f"output={tmp_path}/d", "callbacks.ema=null")
    assert refused.status == 1
    assert "callbacks.ema=null: expected module.cache_from_ema=false" in refused.err
    assert command(DEBUG, f"output={tmp_path}/e", "callbacks.ema=null", "module.cache_from_ema=false").status == 0


@pytest.mark.slow
def test_evaluate_reproduces_the_metrics(command, trained, tmp_path):
    folder, results = trained
    evaluated = command(
        DEBUG, "task=evaluate", f"weights={folder}/checkpoints/last.ckpt", f"output={tmp_path}/e"
    ).results
    for name in ("fid", "inception_score", "class_accuracy", "copies"):
        assert evaluated[name] == results[name]
    assert evaluated["kind"] == "EMA"
    assert json.loads((tmp_path / "e" / "results.json").read_text()) == evaluated
    fewer = command(DEBUG, "task=evaluate", f"weights={folder}/checkpoints/last.ckpt", f"output={tmp_path}/f", "seed=3")
    assert fewer.results["fid"] != results["fid"]


def test_sample_makes_the_pictures(command, trained, tmp_path):
    folder, _ = trained
    options = [DEBUG, "task=sample", f"weights={folder}/checkpoints/last.ckpt", "images_per_class=3"]
    results = command(*options, f"output={tmp_path}/s", "classes=[3,7]").results
    files = sorted(Path(results["images"]).glob("*.png"))
    assert len(files) == 6
    images = [np.asarray(Image.open(file)) for file in files]
    assert all(image.shape[:2] == (8, 8) for image in images)
    assert len({image.tobytes() for image in images}) == 6
    command(*options, f"output={tmp_path}/t", "classes=[7]")
    alone = sorted((tmp_path / "t" / "images").glob("*.png"))
    assert [np.asarray(Image.open(file)).tobytes() for file in alone] == [image.tobytes() for image in images[3:]]
    for picture in ("grid", "reveal"):
        assert np.asarray(Image.open(results[picture])).std() > 10


def test_official_and_safetensors_weights(command, trained, tmp_path):
    from safetensors.torch import save_file

    folder, results = trained
    state, _ = select_state(read_file(folder / "checkpoints" / "last.ckpt"))
    official = {f"module.{name}": tensor.contiguous() for name, tensor in to_official(state).items()}
    torch.save(official, tmp_path / "nnet_ema.pth")
    save_file(official, tmp_path / "nnet_ema.safetensors")
    for file in ("nnet_ema.pth", "nnet_ema.safetensors"):
        options = ["task=evaluate", f"weights={tmp_path}/{file}", f"output={tmp_path}/{Path(file).suffix}"]
        evaluated = command(DEBUG, *options).results
        assert (evaluated["fid"], evaluated["kind"]) == (results["fid"], "official")


def test_without_loggers_and_callbacks(command, tmp_path):
    options = ["logger.csv=null", "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss"]
    assert command(DEBUG, *options, "callbacks.sample_grid=null", f"output={tmp_path}").status == 0


@pytest.mark.slow
def test_a_folder_with_another_run_is_left_alone(command, trained):
    folder, _ = trained
    before = weights(folder)
    refused = command(DEBUG, f"output={folder}", "seed=5", "trainer.max_steps=8")
    assert refused.status == 1
    assert f"{folder}: the folder holds another run (data.seed: 0 before, 5 now; " in refused.err
    assert "seed: 0 before, 5 now); expected the same settings, another output=DIR, or resume=false" in refused.err
    assert same(before, weights(folder))
    fresh = command(DEBUG, f"output={folder}", "seed=5", "resume=false")
    assert fresh.status == 0
    assert fresh.results["checkpoint"] == f"{folder}-2/checkpoints/last.ckpt"
    assert same(before, weights(folder))


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.write_text, (Path("hacked"), "yes"))


@pytest.mark.slow
def test_weights_that_can_not_be_used(command, trained, tmp_path):
    folder, _ = trained
    whole = (folder / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "half.safetensors").write_bytes(b"12345")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"x": Evil()}, protocol=2))
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    sentences = {
        "none.ckpt": "there is no such file",
        "half.ckpt": "truncated or no checkpoint",
        "text.ckpt": "refused, since it is no checkpoint",
        "empty.ckpt": "truncated or no checkpoint",
        "half.safetensors": "truncated or no checkpoint",
        "evil.pkl": "refused",
        "evil.pth": "refused",
        "list.pth": "expected a dictionary of weights, found list",
        "other.pth": "not the weights of an ENAT network",
    }
    for task in ("evaluate", "sample"):
        for file, sentence in sentences.items():
            outcome = command(DEBUG, f"task={task}", f"weights={tmp_path}/{file}", f"output={tmp_path}/e")
            assert (outcome.status, len(outcome.err.strip().splitlines())) == (1, 1), outcome.err
            assert sentence in outcome.err
            assert str(tmp_path / file) in outcome.err
    assert not Path("hacked").exists()
    for option in ("num_heads=2", "encoder_depth=1 module.net.decoder_depth=2"):
        split = command(
            DEBUG, "task=evaluate", f"weights={folder}/checkpoints/last.ckpt", *f"module.net.{option}".split()
        )
        assert split.status == 1
        assert option.split("=")[0] in split.err
    wrong = command(
        "experiment=digits", "task=sample", f"weights={folder}/checkpoints/last.ckpt", f"output={tmp_path}/e"
    )
    assert wrong.status == 1
    assert "width 32 instead of" in wrong.err


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["module.net.widht=3"], 2, "module.net.widht: there is no such option; did you mean module.net.width"),
        (["module.net.width=abc"], 1, "module.net.width=abc: expected an integer."),
        (["seed=abc"], 1, "seed=abc: expected an integer."),
        (["module.net.width=33"], 1, "width=33: expected a multiple of num_heads=4."),
        (["sampler.num_steps=0"], 1, "sampler.num_steps=0: expected a value greater than or equal to 1."),
        (["experiment=digit"], 2, "experiment=digit: there is no such choice; did you mean digits? There are debug,"),
        (["task=fly"], 2, "task=fly: there is no such choice; there are benchmark,"),
        (["nonsense"], 2, "nonsense"),
        (["seed=-1"], 1, "seed=-1: expected a value greater than or equal to 0."),
        (["trainer.accelerator=fly"], 1, "trainer: "),
        (["trainer.strategy=fly"], 1, "trainer.strategy=fly: expected auto, or trainer=ddp for several devices"),
        (["trainer.strategy=fsdp"], 1, "trainer.strategy=fsdp: expected auto"),
        (["trainer.strategy=ddp_spawn_find_unused_parameters_true"], 1, "expected auto, or trainer=ddp"),
        (
            ["trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed"],
            1,
            "does not clip gradients in trainer.precision=bf16-mixed; expected module.optimizer.fused=false.",
        ),
        (["+module.optimizer.foreach=true"], 1, "module.optimizer: `fused` and `foreach` cannot be `True` together."),
        (["module.scheduler.start_factor=0"], 1, "module.scheduler: Starting multiplicative factor expected to be"),
        (
            ["~module.optimizer.eps", "changed_on_resume=[lr,eps]"],
            1,
            "changed_on_resume=[eps]: module.optimizer has no such option",
        ),
        (
            ["module.net.num_classes=0", "callbacks.sample_grid.class_ids=[1]", "metrics=none"],
            1,
            "callbacks.sample_grid.class_ids=[1]: expected null, for the network has no classes.",
        ),
        (["trainer.devices=2"], 1, "expected trainer=ddp for several devices"),
        (["trainer.accumulate_grad_batches=4"], 1, "trainer.val_check_interval=2: expected a multiple of"),
        (["module.optimizer.lr=-1.0"], 1, "module.optimizer: Invalid learning rate"),
        (["module.optimizer.betas=[0.9]"], 1, "module.optimizer.betas=[0.9]: expected more items"),
        (["module.net.num_tokens=16"], 1, "module.net: codebook_size=17, num_tokens=16; the tokenizer has 17 and 64."),
        (["tokenizer.num_levels=10"], 1, "module.net: codebook_size=17"),
        (["scores.inception_score.metric.splits=0"], 1, "splits=0: expected"),
        (["callbacks.sample_grid.class_ids=[11]"], 1, "class_ids=[11]: expected ids from 0 to 9."),
        (
            ["callbacks.generation_metrics.num_images=0"],
            1,
            "callbacks.generation_metrics.num_images=0: expected a value greater than or equal to 2.",
        ),
        (
            ["callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/fid"],
            1,
            "callbacks.checkpoint.monitor=val/fid: there is no",
        ),
        (
            ["callbacks.checkpoint.monitor=val/accuracy"],
            1,
            "callbacks.checkpoint.monitor=val/accuracy: a higher value is better, and the best checkpoint is the one",
        ),
        (
            ["experiment=own_images"],
            1,
            "data.shards=null: expected data.shards=DIR, a folder that task=tokenize wrote.",
        ),
        (["task=evaluate"], 1, "weights=null: expected weights=FILE"),
        (["task=sample", "classes=[]"], 1, "classes=[]: expected at least 1 item, an integer, a text or null."),
        (["data.batch_size=0"], 1, "data.batch_size=0: expected a value greater than or equal to 1."),
        (["task=verify", "golden=nowhere"], 1, "golden=nowhere: expected a folder with a readable golden.json ("),
    ],
)
def test_bad_input_is_one_sentence(command, tmp_path, arguments, status, sentence):
    outcome = (
        command(DEBUG, f"output={tmp_path}/x", *arguments) if "experiment" not in arguments[0] else command(*arguments)
    )
    assert outcome.status == status
    assert outcome.err.strip().splitlines()[-1].startswith("Error: ")
    assert sentence in outcome.err
    assert "Traceback" not in outcome.err + outcome.out


def test_debug_shows_the_traceback(command, tmp_path):
    with pytest.raises(Exception, match="width=33"):
        command(DEBUG, f"output={tmp_path}/x", "module.net.width=33", "debug=true")


@pytest.mark.parametrize(
    ("schedule", "options", "sentence"),
    [
        (
            "OneCycleLR",
            ["+module.scheduler.max_lr=0.1", "+module.scheduler.total_steps=3"],
            "module.scheduler: total_steps=3 of OneCycleLR is less than trainer.max_steps=4; expected at",
        ),
        ("ReduceLROnPlateau", [], "module.scheduler: ReduceLROnPlateau has no value to watch here"),
    ],
)
def test_a_schedule_that_would_stop_the_training_is_refused_before_it(command, tmp_path, schedule, options, sentence):
    options = [f"module.scheduler._target_=torch.optim.lr_scheduler.{schedule}", *options]
    without = ["~module.scheduler.start_factor", "~module.scheduler.total_iters"]
    outcome = command(DEBUG, f"output={tmp_path}", *options, *without)
    assert outcome.status == 1
    assert f"Error: {sentence}" in outcome.err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_gradients_are_clipped_in_half_precision_by_an_optimiser_that_is_not_fused(command, tmp_path):
    """As the sentence on a fused one says."""
    options = ["trainer.gradient_clip_val=1", "trainer.precision=bf16-mixed", "module.optimizer.fused=false"]
    assert command(DEBUG, "metrics=none", f"output={tmp_path}", *options).status == 0
