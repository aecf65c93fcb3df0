"""Every YAML under conf/ is composed, checked and instantiated; every task and experiment fits together."""

import functools
import inspect
import json
import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

import experiments
from data.images import ImageList, PlainAndFlipped
from data.sources import ImageSource
from data.tokenization import write_shards
from enat.errors import InputError
from enat.tokenizers.vqgan import VQGAN
from experiments.runtime import targets
from experiments.runtime.building import build, plan
from experiments.runtime.hydra_settings import TABLE

CONF = Path(__file__).parents[3] / "conf"
GOLDEN = Path(__file__).parents[2] / "golden"
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))
PACKAGES = {  # group -> the place of its choice, and what else must be chosen for it
    "net": ("module.net", ()),
    "optimizer": ("module.optimizer", ()),
    "attention": ("module.net.attention", ()),
    "masking": ("module.masking", ()),
    "scheduler": ("module.scheduler", ()),
    "schedule": ("sampler.guidance_schedule", ()),
    "order": ("sampler.order", ()),
    "correction": ("sampler.correction", ()),
    "reader": ("data.reader", ("data=shards",)),
    "quantizer": ("tokenizer.quantizer", ("tokenizer=conv",)),
    "perceptual": ("module.loss.terms.perceptual", ("experiment=tokenizer", "data.images=images")),
    "discriminator": ("module.loss.adversarial", ("experiment=tokenizer", "data.images=images")),
}
IN_NO_LIST = ("ablation", "preset", "perceptual", "discriminator")  # groups of no defaults list
EXTRA = {  # what else a choice needs
    "schedule/per_step": [f"sampler.guidance_schedule.values={[0.5] * 8}"],
    "order/fixed": [f"sampler.order.positions={list(range(64))}"],
    "metrics/none": ["callbacks.generation_metrics=null"],
    "features/inception": ["task=statistics", "scored.path=images"],
    "fabric/default": ["task=score", "scored.path=images"],
    "task/evaluate": ["weights=digits.safetensors"],
    "task/sample": ["weights=digits.safetensors"],
    "task/edit": ["weights=digits.safetensors"],
    "task/page": ["weights=digits.safetensors"],
    "task/report": ["runs=images"],
    "task/statistics": ["scored.path=images"],
    "task/score": ["scored.path=images"],
    "scored/folder": ["task=score", "metrics=inception", "scored.path=images"],
    "scored/cropped": ["task=score", "metrics=inception", "scored.path=images"],
    "scored/npz": ["task=score", "metrics=inception", "scored.path=images.npz"],
    "scored/shards": ["task=score", "metrics=inception", "scored.path=shards", "tokenizer=vqgan_tiny"],
    "reference/images": ["metrics=inception", "reference.path=images"],
    "reference/npz": ["metrics=inception", "reference.path=images.npz"],
    "reference/shards": ["metrics=inception", "reference.images.path=shards", "tokenizer=vqgan_tiny"],
    "views/plain_and_flipped": ["task=tokenize"],
    "views/plain": ["task=tokenize"],
    "views/ten_crop": ["task=tokenize"],
    "module/tokenizer": ["experiment=tokenizer", "data.images=images"],
    "scheduler/warmup_cosine": ["experiment=tokenizer", "data.images=images"],
    "metrics/lite0": ["metrics.images=images", "metrics.held_out_share=0.5"],
    "score/linear_probe": ["metrics=lite0", "metrics.images=images", "metrics.held_out_share=0.5"],
    "score/memorization": ["metrics=lite0", "metrics.images=images", "metrics.held_out_share=0.5"],
    "metrics/reconstruction": ["experiment=tokenizer", "data.images=images", "data.held_out=0.5"],
    "features/lite0": ["task=statistics", "scored.path=images"],
    "task/train_tokenizer": ["experiment=tokenizer", "data.images=images"],
    "task/stages": ["experiment=emoji"],
    "task/neighbours": [
        "metrics=lite0",
        "metrics.images=images",
        "metrics.held_out_share=0.5",
        "weights=digits.safetensors",
    ],
    "callbacks/tokenizer": ["metrics=none"],
    "experiment/emoji_network": ["metrics.images=images", "metrics.held_out_share=0.5", "data.shards=shards"],
    "experiment/emoji_s": ["metrics.images=images", "metrics.held_out_share=0.5", "data.shards=shards"],
    "experiment/tokenizer": ["data.images=images"],
    "experiment/emoji_tokenizer": ["data.images=images"],
    "experiment/from_images": ["images=images"],
    "data/shards": ["data.batch_size=16"],
    "tokenizer/diffusers": ["tokenizer.folder=vqvae"],
    "tokenizer/taming": ["tokenizer.weights=taming.ckpt"],
}
WHOLE = {"task", "experiment", "variant", "ablation", "preset"}  # merged into the root
PLACES = {"protocol": "protocols", "score": "scores"}  # where a group's choice says itself that it goes


@pytest.fixture(scope="session")
def assets(tmp_path_factory, inception, compose_config):
    """Stand-ins for the files that can't be shipped: a VQGAN checkpoint, Inception weights, a reference, weights."""
    folder = tmp_path_factory.mktemp("with_assets")
    save_file(instantiate(compose_config().module.net).state_dict(), folder / "digits.safetensors")
    (folder / "assets").mkdir()
    torch.save({"state_dict": VQGAN().state_dict()}, folder / "assets/vqgan_jax_strongaug.ckpt")
    (folder / "assets/weights-inception-2015-12-05-6726825d.pth").symlink_to(inception)
    (folder / "images/one").mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(folder / f"images/one/{number}.png")
    np.savez(folder / "images.npz", np.zeros((2, 8, 8, 3), dtype=np.uint8))
    tokenizer, listed = VQGAN(64, 32, 32, (1, 1, 2), 1, 32), ImageList.find(folder / "images")
    write_shards(ImageSource(listed, PlainAndFlipped(32), 4, 0), tokenizer, folder / "shards", 0.25, 4, 4, 0)
    VQModel(block_out_channels=[32], norm_num_groups=8).save_pretrained(folder / "vqvae")
    shapes = json.loads((GOLDEN / "taming.json").read_text())["shapes"]
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "taming.ckpt")
    for side in (256, 512):
        name = "VIRTUAL_imagenet256_labeled" if side == 256 else "VIRTUAL_imagenet512"
        np.savez(folder / "assets" / f"{name}.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(assets, monkeypatch):
    monkeypatch.chdir(assets)


@pytest.mark.slow
@pytest.mark.parametrize("file", [str(file) for file in FILES if len(file.parts) > 1 and file.parts[0] != "sweep"])
def test_every_yaml_is_instantiated(compose_config, file):
    group, choice = file.split("/", 1)
    key, more = PACKAGES.get(group, ("task" if group in WHOLE else PLACES.get(group, group), ()))
    override = f"{group}@{key}={choice}" if group in PACKAGES else f"{group}={choice}"
    override = f"+{override}" if group in IN_NO_LIST else override
    config = compose_config(*more, override, *EXTRA.get(file, []))
    plan(config, "task")
    planned = plan(config, key)
    node = OmegaConf.select(config, key)
    with torch.device("meta") if choice.startswith(("enat_", "nat_")) else nullcontext():  # sizes, without the memory
        built = build(replace(planned, is_partial=True) if group in WHOLE else planned)
    target = node.get("_target_")
    if target is None:  # a dict by name
        assert set(built) == set(node)
    else:
        expected = get_object(target)
        if isinstance(built, functools.partial):
            assert built.func is expected
        else:
            made = inspect.signature(expected).return_annotation if isfunction(expected) else expected
            assert type(built) is (type(None) if made is None else made)


def test_no_yaml_is_forgotten():
    assert {str(file) for file in FILES if len(file.parts) == 1} == {"config"}
    assert len(FILES) > 15


TASKS = [file.name for file in FILES if file.parts[0] == "task"]
EXPERIMENT_NAMES = [file.name for file in FILES if file.parts[0] == "experiment"]
# Tasks of their own, which have experiments of their own.
OWN = {"stages": ("emoji", "from_images"), "train_tokenizer": ("tokenizer", "emoji_tokenizer")}
OF_NETWORKS = [name for name in EXPERIMENT_NAMES if not any(name in experiments for experiments in OWN.values())]
OWN["neighbours"] = ("digits", "emoji_network")  # compares with images
# Every task with an experiment of each kind, and every experiment with the tasks that take most of its options.
PAIRS = {(task, experiment) for task in set(TASKS) - OWN.keys() for experiment in ("debug", "enat_l_256", "own_images")}
PAIRS |= {(task, experiment) for task in ("train", "evaluate", "benchmark") for experiment in OF_NETWORKS}
PAIRS |= {(task, experiment) for task, own in OWN.items() for experiment in own}


@pytest.mark.parametrize(("task", "experiment"), sorted(PAIRS))
def test_tasks_fit_experiments(compose_config, experiment, task):
    needed = EXTRA["experiment/from_images"] if experiment == "from_images" else []
    config = compose_config(f"experiment={experiment}", f"task={task}", *needed)
    if experiment in ("photos", "own_images", "finetune") and task in ("evaluate", "score"):
        with pytest.raises(InputError, match="metrics=none: there is nothing to compute evaluation with"):
            plan(config, "task")
    else:
        plan(config, "task")


def test_a_missing_package_is_named(compose_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    monkeypatch.delitem(sys.modules, "experiments.dashboard", raising=False)
    monkeypatch.delattr(experiments, "dashboard", raising=False)  # imported by another test, it is an attribute
    with pytest.raises(
        InputError, match=r"experiments\.dashboard\.dashboard: needs the package wandb_workspaces, which"
    ):
        plan(compose_config("task=dashboard"), "task")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"module.net._target_": "os.system"}, r"module\.net\._target_=os\.system: a configuration may not name this"),
        ({"module.net._target_": "enat.net.NoSuchNet"}, r"a configuration may not name this"),
        ({"module.net.width": "abc"}, r"module\.net\.width=abc: expected an integer"),
        ({"module.net.width": 1.5}, r"module\.net\.width=1\.5: expected an integer"),
        ({"module.cache_from_ema": 1}, r"module\.cache_from_ema=1: expected true or false"),
        ({"module.net.dropout": True}, r"module\.net\.dropout=True: expected a number"),
        ({"seed": "abc"}, r"^seed=abc: expected an integer"),
        ({"module.net.width": None}, r"module\.net\.width=null: expected an integer"),
        ({"module.masking": {"ratio_alpha": 1.0}}, r"expected a RandomMasking with its _target_"),
        ({"callbacks.ema": 3}, r"^callbacks\.ema=3: expected a Callback with its _target_ or null"),
        ({"trainer.precision": "fast"}, r"trainer\.precision=fast: expected 64, 32, 16, transformer-engine"),
        ({"module.net": 3}, r"module\.net=3: expected an ENAT with its _target_"),
        ({"module.net": None}, r"^module\.net=null: expected net@module\.net=NAME with one of enat_b, "),
        ({"module.net.attention": None}, r"expected attention@module\.net\.attention=NAME with one of auto, "),
        (
            {"module.scheduler": None},
            r"expected scheduler@module\.scheduler=NAME with one of constant, warmup, warmup_co",
        ),
        (
            {"module.optimizer": None},
            r"^module\.optimizer=null: expected optimizer@module\.optimizer=NAME with one of ad",
        ),
        ({"sampler.mask_schedule": None}, r"=null: expected schedule@sampler\.mask_schedule=NAME with one of arccos, "),
        ({"trainer.max_steps": "many"}, r"trainer\.max_steps=many"),
        ({"callbacks.sample_grid.class_ids": ["a"]}, r"class_ids\[0\]=a: expected an integer"),
    ],
)
def test_wrong_values_are_named(compose_config, change, sentence):
    config = compose_config()
    OmegaConf.set_struct(config, False)
    for key, value in change.items():
        OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(InputError, match=sentence):
        plan(config, "task")


def test_targets_in_lists_are_refused(compose_config):
    config = compose_config()
    config.module.optimizer.betas = [{"_target_": "os.getpid"}, 0.9]
    with pytest.raises(InputError, match=r"betas\[0\]\._target_=os\.getpid: a configuration may not name this"):
        plan(config, "task")


@pytest.mark.parametrize(
    "target",
    [
        "experiments.runtime.command_line.os.getpid",
        "enat.checkpoints.weights.torch.load",
        "enat.files.os",
        "enat.files.write_atomically",
        "torch.optim.lr_scheduler",
        "torch.optim.torch.load",
        "torchmetrics.functional.accuracy",
        "torchmetrics.MetricCollection",
        "torchmetrics.text.BERTScore",
        "experiments.export.export",
    ],
)
def test_other_targets_are_refused(compose_config, target):
    """A module has what it imports among its names, so that a prefix says nothing of what a name stands for."""
    config = compose_config()
    config.module.loss = {"_target_": target}
    sentence = f"module.loss._target_={target}: a configuration may not name this; expected a class or function of the"
    with pytest.raises(InputError, match=re.escape(sentence)):
        plan(config, "task")


@pytest.mark.parametrize("target", ["torch.optim.AdmW", "torchmetrics.image.fid.torch.load"])
def test_names_of_libraries_that_do_not_exist(target):
    with pytest.raises(InputError, match=r"there is nothing of this name to import\.$"):
        targets.import_target("module.optimizer", target)


def test_every_yaml_names_what_is_allowed():
    """And nothing is allowed that no YAML names, but for callbacks of Lightning."""
    pattern = re.compile(r"_target_: *([\w.]+)")
    named = {target for file in CONF.rglob("*.yaml") for target in pattern.findall(file.read_text())}
    assert all(target in targets.TASKS or target == TABLE or targets.is_allowed(target) for target in named)
    unused = {*targets.TARGETS, *targets.TASKS} - named
    assert all(target.startswith("lightning.pytorch.callbacks.") for target in unused)
    for target in targets.TARGETS:
        targets.import_target("module.net", target)


@pytest.mark.parametrize(
    "target",
    [
        "torchmetrics.image.fid.FrechetInceptionDistance",
        "torchmetrics.image.mifid.MemorizationInformedFrechetInceptionDistance",
        "torchmetrics.image.TotalVariation",
        "torchmetrics.MeanMetric",
    ],
)
def test_metrics_of_torchmetrics_are_allowed(target):
    plan(OmegaConf.create({"metric": {"_target_": target, "sync_on_compute": False}}), "metric")


def test_options_of_metrics_are_checked():
    fid = {"_target_": "torchmetrics.image.fid.FrechetInceptionDistance", "normalize": 3}
    with pytest.raises(InputError, match=r"^metric\.normalize=3: expected true or false\.$"):
        plan(OmegaConf.create({"metric": fid}), "metric")


def test_options_for_a_base_class_are_checked(compose_config):
    """NAT hands its options on to ENAT."""
    with pytest.raises(InputError, match=r"^module\.net\.width=abc: expected an integer"):
        plan(compose_config("variant=nat", "module.net.width=abc"), "task")
    with pytest.raises(InputError, match=r"^module\.net\.widht: no such option"):
        plan(compose_config("variant=nat", "+module.net.widht=3"), "task")


def test_unknown_and_missing_options(compose_config):
    with pytest.raises(InputError, match=r"module\.net\.widht: no such option; expected one of codebook_size"):
        plan(compose_config("+module.net.widht=3"), "task")
    with pytest.raises(InputError, match=r"module\.net\.width: a value is missing"):
        plan(compose_config("~module.net.width"), "task")


def test_options_of_an_experiment_that_another_choice_lacks(compose_config):
    """The sentence says how to leave them out."""
    choice = "scheduler@module.scheduler=warmup_cosine"
    with pytest.raises(InputError, match=r"total_iters: no such .* sets it .*, ~module\.scheduler\.total_iters leaves"):
        plan(compose_config("experiment=digits", choice), "module")
    plan(compose_config("experiment=digits", choice, "~module.scheduler.total_iters"), "module")
