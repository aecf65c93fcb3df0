"""Commands that take what they need from the files that they name: a folder of images, shards, a checkpoint."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import enat
from enat.checkpoints.weights import read_file
from enat.files import sha256_of
from experiments.runtime.settings_of_files import refuse_other_targets

ROOT = Path(__file__).parents[2]
OF_OTHER_TASKS = {"emoji", "from_images", "tokenizer", "emoji_tokenizer"}
EXPERIMENTS = sorted({path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")} - OF_OTHER_TASKS)
# Groups whose choices a checkpoint carries with it.
CARRIED = [
    *("module", "net", "attention", "optimizer", "scheduler", "masking", "tokenizer", "quantizer", "sampler"),
    *("schedule", "score", "protocol", "features", "reference", "perceptual", "discriminator", "variant", "metrics"),
]
FAST = ["trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.sample_grid.images_per_class=1"]


@pytest.fixture(scope="module")
def shards(separate_command, photos, tmp_path_factory):
    """Shards of four class folders, made by a small tokenizer."""
    folder = tmp_path_factory.mktemp("shards")
    options = ["tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.1"]
    written = separate_command("task=tokenize", *options, f"images={photos}", f"output={folder}")
    assert "60 images in 4 classes; 6 of them are held out" in written.out
    assert "cropped and scaled to 32 (tokenizer.resolution=32)" in written.out
    return folder


@pytest.fixture(scope="module")
def run_folder(separate_command, tmp_path_factory):
    """A run whose network, sampler and name are of no experiment."""
    folder = tmp_path_factory.mktemp("runs") / "renamed"
    sizes = ["variant=key_values", "module.net.width=48", "sampler.num_steps=5", "name=mine"]
    assert separate_command("experiment=debug", *sizes, f"output={folder}").status == 0
    return folder


@pytest.mark.parametrize("group", CARRIED)
def test_a_checkpoint_may_carry_every_choice(group):
    """What is refused is what no choice names; a run with another schedule of the rate could not be used once."""
    files = list((ROOT / "conf" / group).rglob("*.yaml"))
    assert files
    for path in files:
        refuse_other_targets(str(path), yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    ("callbacks", "expected"), [("{sample_grid: null}", None), ("{sample_grid: {class_ids: [1]}}", [1])]
)
def test_shards_leave_the_grid_of_an_experiment_as_it_is(command, monkeypatch, shards, tmp_path, callbacks, expected):
    """It may have none, and rows of its own."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    text = f"# @package _global_\ndefaults: [own_images]\nname: own\ncallbacks: {callbacks}\n"
    (tmp_path / "conf/experiment/own.yaml").write_text(text)
    built = []
    monkeypatch.setattr("experiments.runtime.task._results", lambda config, _: built.append(config) or {})
    options = ["experiment=own", f"data.shards={shards}", f"output={tmp_path}/run"]
    assert command("--config-dir", f"{tmp_path}/conf", *options).status == 0
    grid = built[0].callbacks.sample_grid
    assert (grid and grid.class_ids) == expected


@pytest.mark.parametrize("experiment", ["enat_l_256", "enat_l_512", "enat_s_256"])
def test_rows_of_imagenet_are_for_its_classes(compose_config, experiment):
    grids = [
        compose_config(f"experiment={experiment}", f"module.net.num_classes={count}").callbacks.sample_grid
        for count in (1000, 10)
    ]
    assert len(grids[0].class_ids) == 10
    assert grids[1].class_ids is None


def test_a_multirun_over_checkpoints_that_need_other_settings(command, run_folder, tmp_path):
    """Its jobs would all have the network and the sampler of the first."""
    assert command("experiment=debug", "sampler.guidance_scale=3", f"output={tmp_path}/other").status == 0
    both = f"weights={run_folder}/checkpoints/last.ckpt,{tmp_path}/other/checkpoints/last.ckpt"
    refused = command("-m", "task=evaluate", both, f"hydra.sweep.dir={tmp_path}/study")
    assert refused.status == 1
    assert (
        "module.net._target_ is KeyValueReuse in the one and ENAT in the other; expected a command for" in refused.err
    )
    assert not (tmp_path / "study").exists()
    same = f"weights={tmp_path}/other/checkpoints/last.ckpt,{tmp_path}/other/checkpoints/final.ckpt"
    shutil.copy(tmp_path / "other/checkpoints/last.ckpt", tmp_path / "other/checkpoints/final.ckpt")
    assert command("-m", "task=evaluate", same, f"hydra.sweep.dir={tmp_path}/study").status == 0
    content = torch.load(tmp_path / "other/checkpoints/last.ckpt", weights_only=True)
    content["settings"]["metrics"]["evaluation"]["num_images"] = 60
    torch.save(content, tmp_path / "other/checkpoints/final.ckpt")
    refused = command("-m", "task=evaluate", same, f"hydra.sweep.dir={tmp_path}/study2")
    assert "metrics.evaluation.num_images is 40 in the one and 60 in the other; expected metrics." in refused.err
    for both in (
        "metrics=none",
        "metrics.evaluation.num_images=50",
    ):  # which holds for both; `none` has nothing to score
        assert "in the other" not in command("-m", "task=evaluate", same, both, f"hydra.sweep.dir={tmp_path}/s3").err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda settings: "no settings", "does not say its network; expected experiment=NAME"),
        (lambda settings: {**settings, "module": None}, "its settings are damaged: module is None."),
        (lambda settings: {**settings, "tokenizer": 3}, "settings.tokenizer: Input should be a valid dictionary"),
    ],
)
def test_damaged_settings_of_a_checkpoint(command, run_folder, tmp_path, change, sentence):
    content = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**content, "settings": change(content["settings"])}, tmp_path / "damaged.ckpt")
    refused = command("task=sample", f"weights={tmp_path}/damaged.ckpt")
    assert sentence in refused.err


def test_shards_of_a_url_say_their_sizes(command, shards, tmp_path):
    options = [f"data.cache={tmp_path}/cache", "data.num_workers=0", "module.net.width=32", *FAST]
    trained = command(f"data.shards=file://{shards}", *options, f"output={tmp_path}/run")
    assert trained.status == 0, trained.err
    assert "54 training images and 6 held out, 4 classes, 64 tokens of 32 px" in trained.out
    refused = command(f"data.shards=file://{shards}/nothing", *options, f"output={tmp_path}/other")
    assert "nothing/manifest.json: there is no such file on the server." in refused.err


def test_shards_without_training_images(command, photos, tmp_path):
    tokenize = ["task=tokenize", "tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.995", f"images={photos}"]
    assert command(*tokenize, f"output={tmp_path}/shards").status == 0
    refused = command(f"data.shards={tmp_path}/shards", "data.num_workers=0", f"output={tmp_path}/run")
    assert "there are no train shards; task=tokenize with a smaller held_out makes some." in refused.err


def test_from_a_folder_of_images_to_pictures(command, shards, tmp_path):
    trained = command(
        f"data.shards={shards}", *FAST, "module.net.width=32", "data.num_workers=0", f"output={tmp_path}/a"
    )
    assert trained.status == 0, trained.err
    assert "54 training images and 6 held out, 4 classes, 64 tokens of 32 px" in trained.out
    weights = f"weights={tmp_path}/a/checkpoints/last.ckpt"
    drawn = command("task=sample", weights, "classes=[coffee,0]", "images_per_class=2").results
    assert drawn["classes"] == ["coffee", "astronaut"]
    assert Path(drawn["grid"]) == tmp_path / "a/sample-classes=coffee,0,images_per_class=2/grid.png"
    assert {path.name for path in Path(drawn["images"]).iterdir()} == {
        f"class_{name}_seed_0_{number:04d}.png" for name in ("0000_astronaut", "0002_coffee") for number in (0, 1)
    }
    for classes, sentence in {
        "coffe": "classes=coffe: expected class ids from 0 to 3, or names; did you mean coffee?",
        "4": "classes=4: expected class ids from 0 to 3, or names; names such as astronaut, chelsea, coffee.",
    }.items():
        refused = command("task=sample", weights, f"classes={classes}")
        assert (refused.status, refused.err) == (1, f"Error: {sentence}\n")


def test_what_contradicts_the_shards_is_said(command, shards, tmp_path):
    options = [f"data.shards={shards}", f"output={tmp_path}"]
    wrong = {
        "module.net.num_classes=9": "the data have 4; expected as many, or 0 to train without classes.",
        "tokenizer=pixels": "the tokenizer has 17 and 64.",
        "tokenizer.codebook_size=32": "the tokenizer has 32 and 64.",
    }
    for option, sentence in wrong.items():
        refused = command(*options, option)
        assert refused.status == 1
        assert refused.err.rstrip().endswith(sentence)
    large = command(*options, *FAST, "data.batch_size=270", "module.net.width=32", "data.num_workers=0")
    assert "data.batch_size=270: more than the 54 training images, so that a step trains on some of them" in large.out


def test_a_manifest_builds_nothing_but_tokenizers(command, shards, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    manifest = tmp_path / "shards" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["tokenizer_settings"] = {"_target_": "data.toy.photos.cut_photos", "folder": f"{tmp_path}/cut"}
    manifest.write_text(json.dumps(content))
    refused = command(f"data.shards={tmp_path}/shards")
    assert "its settings name data.toy.photos.cut_photos, which is no part of a network" in refused.err
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_without_scores_on_a_cpu(command, shards, run_folder, tmp_path, experiment):
    options = ["metrics=none", "trainer=cpu", *FAST, "sampler.num_steps=2", "module.mask_groups=2"]
    if experiment == "finetune":
        options.append(f"weights={run_folder}")
    else:
        sizes = {"width": 32, "num_heads": 4, "encoder_depth": 1, "decoder_depth": 1}
        options += [f"module.net.{name}={size}" for name, size in sizes.items()]
    if experiment not in ("debug", "digits"):
        options += ["data.num_workers=0", "data.batch_size=16"]
    if experiment not in ("debug", "digits", "photos"):
        options.append(f"data.shards={shards}")
    outcome = command(f"experiment={experiment}", *options, f"output={tmp_path}")
    assert outcome.status == 0, outcome.err
    assert outcome.results["steps"] == 2
    assert outcome.results["scores"] == {}


def test_from_a_checkpoint_alone_to_pictures_and_scores(command, run_folder):
    weights = f"weights={run_folder}/checkpoints/last.ckpt"
    trained = json.loads((run_folder / "results.json").read_text())
    drawn = command("task=sample", weights, "classes=3").results
    assert Path(drawn["images"]) == run_folder / "sample-classes=3" / "images"
    scored = command("task=evaluate", weights).results
    assert {name: scored[name] for name in trained["scores"]["digits"]} == trained["scores"]["digits"]
    assert (
        scored["sampler"]["num_steps"] == 5 if "sampler" in scored else scored["settings"]["sampler"]["num_steps"] == 5
    )
    other = command("task=evaluate", weights, "sampler.num_steps=2", "schedule@sampler.guidance_schedule=constant")
    assert other.results["settings"]["sampler"]["guidance_schedule"] == "constant"
    assert other.results["fid"] != scored["fid"]
    folders = {path.name for path in run_folder.glob("evaluate*")}
    assert folders == {"evaluate", "evaluate-sampler.num_steps=2,schedule@sampler.guidance_schedule=constant"}


def test_results_of_other_settings_are_not_replaced(command, run_folder, tmp_path):
    evaluate = ["task=evaluate", f"weights={run_folder}/checkpoints/last.ckpt", f"output={tmp_path}/e"]
    first = command(*evaluate).results
    refused = command(*evaluate, "sampler.num_steps=2")
    assert "the folder holds results of other settings (sampler.num_steps: 5 before, 2 now); expected" in refused.err
    shutil.copy(run_folder / "checkpoints" / "step_0000002.ckpt", tmp_path / "other.ckpt")
    refused = command("task=evaluate", f"weights={tmp_path}/other.ckpt", f"output={tmp_path}/e")
    assert f"the folder holds results of other weights than {tmp_path}/other.ckpt has now, such as" in refused.err
    again = command("task=evaluate", f"weights={tmp_path}/other.ckpt", f"output={tmp_path}/e", "resume=false")
    assert again.results["sha256"] != first["sha256"]
    assert (tmp_path / "e-2" / "results.json").exists()
    refused = command(*evaluate, "fabric.precision=bf16-true")
    assert "(fabric.precision: 32-true before, bf16-true now); expected" in refused.err
    assert json.loads((tmp_path / "e" / "results.json").read_text()) == first
    assert command(*evaluate, "trainer=ddp", "trainer.accelerator=cpu").results["fid"] == first["fid"]


def trained_sha256(run_folder):
    """The sha256 of the checkpoint of a run."""
    return sha256_of(run_folder / "checkpoints" / "last.ckpt")


def test_an_export_says_what_it_needs(command, run_folder, tmp_path):
    made = command("task=export", f"weights={run_folder}/checkpoints/last.ckpt").results
    trained = json.loads((run_folder / "results.json").read_text())
    for number, weights in enumerate((made["safetensors"], made["folder"])):
        again = command("task=evaluate", f"weights={weights}", f"output={tmp_path}/{number}").results
        assert again["fid"] == trained["fid"]
        assert again["sha256"] == made["safetensors_sha256"]
    config = json.loads(Path(made["config"]).read_text())
    assert config["scores"]["scores"] == trained["scores"]  # of the run that the checkpoint is of
    assert config["provenance"]["source_sha256"] == trained_sha256(run_folder)


def test_an_export_in_half_precision(command, run_folder, tmp_path):
    weights = f"weights={run_folder}/checkpoints/last.ckpt"
    made = command("task=export", weights, "half=true", f"output={tmp_path}/half").results
    assert "tokenizer" not in made  # one pixel a token: no weights
    exported, whole = load_file(made["safetensors"]), read_file(run_folder / "checkpoints" / "last.ckpt")
    for name, tensor in whole["callbacks"]["EMA"]["net"].items():
        assert torch.equal(exported[name], tensor.half())
    assert len(enat.load(made["safetensors"]).generate([0], 2)) == 2
    whole["callbacks"]["EMA"]["net"]["head_bias"][0] = 1e5
    torch.save(whole, tmp_path / "large.ckpt")
    refused = command("task=export", f"weights={tmp_path}/large.ckpt", "half=true", f"output={tmp_path}/x")
    assert "half=true: the weight head_bias has values beyond the range of float16" in refused.err
    save_file(exported, tmp_path / "bare.safetensors")
    bare = ["experiment=debug", "variant=key_values", "module.net.width=48", f"weights={tmp_path}/bare.safetensors"]
    told = command("task=export", *bare, f"output={tmp_path}/y")  # the command says what the file does not
    assert told.status == 0, told.err
    written, expected = (enat.load(folder).net.state_dict() for folder in (tmp_path / "y", made["folder"]))
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.safetensors", "nnet_ema.pth", "results.json", "config.yaml"]
)
def test_an_export_leaves_the_files_of_others(command, run_folder, tmp_path, name):
    (tmp_path / name).write_text('{"a": 3}')
    weights = f"weights={run_folder}/checkpoints/last.ckpt"
    refused = command("task=export", weights, f"output={tmp_path}")
    assert f"{name} would be replaced, and may be of another program" in refused.err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: '{"a": 3}'}


def test_an_export_may_be_repeated(command, run_folder, tmp_path):
    options = ["task=export", f"weights={run_folder}/checkpoints/last.ckpt", f"output={tmp_path}/x"]
    first, second = (command(*options).results for _ in range(2))
    assert first == second
    refused = command(*options[:2], 'licence="MIT\nfoo"', f"output={tmp_path}/y")
    assert "licence" in refused.err
    assert not (tmp_path / "y").exists()


def test_a_tokenizer_as_weights(command):
    refused = command("task=sample", "weights=examples/emoji/tokenizer.safetensors")
    assert "the checkpoint of a tokenizer; expected tokenizer.weights=examples/emoji/tok" in refused.err


def test_a_file_without_settings_asks_for_its_experiment(command, run_folder, tmp_path):
    averages = read_file(run_folder / "checkpoints" / "last.ckpt")["callbacks"]["EMA"]["net"]
    save_file(averages, tmp_path / "bare.safetensors")
    refused = command("task=sample", f"weights={tmp_path}/bare.safetensors")
    assert "does not say its network; expected experiment=NAME beside it" in refused.err


def test_a_checkpoint_of_an_older_version_asks_for_its_experiment(command, run_folder, tmp_path):
    """Its settings have no `scores`, as before scores were a group of their own."""
    content = read_file(run_folder / "checkpoints" / "last.ckpt")
    del content["settings"]["scores"]
    torch.save(content, tmp_path / "older.ckpt")
    refused = command("task=sample", f"weights={tmp_path}/older.ckpt")
    assert (refused.status, "is an official one or of an older version" in refused.err) == (1, True)


def test_a_checkpoint_builds_nothing_but_networks(command, run_folder, tmp_path):
    content = read_file(run_folder / "checkpoints" / "last.ckpt")
    content["settings"]["module"]["loss"] = {"_target_": "enat.files.write_atomically", "path": f"{tmp_path}/x"}
    torch.save(content, tmp_path / "evil.ckpt")
    refused = command("task=sample", f"weights={tmp_path}/evil.ckpt")
    assert "its settings name enat.files.write_atomically, which is no part of a network" in refused.err


def test_a_finished_run_says_so(command, run_folder):
    before = (run_folder / "results.json").read_text()
    again = command("experiment=debug", "variant=key_values", "module.net.width=48", "sampler.num_steps=5", "name=mine",
                    f"output={run_folder}")  # fmt: skip
    assert f"{run_folder} is finished: 4 steps. trainer.max_steps=N trains on; resume=false starts anew." in again.out
    assert "scoring" not in again.err
    assert again.results == json.loads(before)
    other = command("experiment=debug", "variant=key_values", "module.net.width=48", "sampler.num_steps=5", "name=mine",
                    "reference.path=another.npz", f"output={run_folder}")  # fmt: skip
    assert "is finished" not in other.out  # it is scored again
    assert {"command", "commit", "versions", "seed", "sampler", "device", "processes"} <= set(again.results)


def test_torchrun_trains_once_and_one_process_goes_on(command, killed, tmp_path):
    """Two processes train one network; after Ctrl-C, one goes on with it."""
    options = ["experiment=debug", "metrics=none", "module.mask_groups=2", "trainer.max_steps=12"]
    options += ["trainer.val_check_interval=12", f"output={tmp_path}"]
    left = killed(
        *options, at="callbacks.checkpoints:Checkpoints.on_train_batch_start", number=8, sent=signal.SIGINT, ranks=2
    )
    assert left.status == 75, left.err
    assert read_file(tmp_path / "checkpoints" / "last.ckpt")["world_size"] == 2
    done = command(*options)
    assert "Going on from" in done.out
    assert "1 process instead of 2" in done.out
    assert done.results["steps"] == 12
    assert len(list(tmp_path.glob("metrics/version_*"))) == 2  # one for each start


@pytest.mark.slow
def test_torchrun_itself(tmp_path):
    options = ["experiment=debug", "metrics=none", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "run.py"]
    ran = subprocess.run([*launcher, *options, f"output={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert not any(word in ran.stderr for word in ("Initializing distributed", "find_unused_parameters", "Warning"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["processes"], results["steps"]) == (2, 2)
    assert len(list(tmp_path.glob("metrics/version_*"))) == 1


def test_a_folder_without_classes_is_found_before_the_tokenizer_is_trained(command, photos, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted(photos.rglob("*.jpg"))[:8]:
        (flat / file.name).write_bytes(file.read_bytes())
    refused = command("experiment=from_images", f"images={flat}", f"output={tmp_path / 'run'}")
    assert refused.status == 1
    assert f"{flat}: expected a folder of images for each class in it; task=tokenize also takes a flat" in refused.err
    assert not (tmp_path / "run/tokenizer").exists()
