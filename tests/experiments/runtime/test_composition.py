"""Jobs of a multirun have the settings of the first file that the command names, so that others have to be alike."""

import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from data.manifest import Manifest
from enat.errors import InputError
from experiments.runtime.composition import primary_config
from experiments.runtime.options import CONF
from experiments.runtime.settings_of_files import settings_of_shards


def test_shards_of_other_sizes_are_refused(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, classes in zip(folders, ("xy", "vw", "xyz"), strict=True):
        folder.mkdir()
        Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, list(classes), ["plain"], 100, {"train": []}).save(folder)
    first, same, other = folders
    assert primary_config(["-m", f"data.shards={first},{same}"]) == "config_of_files"
    sentence = (
        f"data.shards={first},{other}: num_classes is 2 in the one and 3 in the other; expected a command for each."
    )
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        primary_config(["-m", f"data.shards={first},{same},{other}"])


def test_tokenizers_of_other_settings_are_refused(tmp_path):
    """The tokens of the second would be read with the levels of the first, whose weights have the same shapes."""
    levels = {"a": [8, 5, 5], "b": [8, 5, 5], "c": [5, 5, 8]}
    for name, of_file in levels.items():
        tokenizer = {"_target_": "enat.tokenizers.vqgan.ConvTokenizer", "batch_size": ord(name)}
        tokenizer["quantizer"] = {"_target_": "enat.tokenizers.quantizers.FSQ", "levels": of_file}
        torch.save({"settings": {"tokenizer": tokenizer}}, tmp_path / name)
    torch.save({"state_dict": {}}, tmp_path / "d")  # of another program
    first, same, other, foreign = (tmp_path / name for name in "abcd")
    task = ["-m", "task=tokenize"]
    assert primary_config([*task, f"tokenizer.weights={first},{same}"]) == "config_of_files"
    levels_given = [f"tokenizer.weights={first},{other}", "tokenizer.quantizer.levels=[8,5,5]"]
    assert primary_config([*task, *levels_given]) == "config_of_files"
    assert primary_config([*task, f"tokenizer.weights={first},{other}", "tokenizer=conv"]) == "config"
    sentence = f"tokenizer.weights={first},{other}: tokenizer.quantizer.levels is [8, 5, 5] in the one and [5, 5, 8] in"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)} the other; expected a command for each"):
        primary_config([*task, f"tokenizer.weights={first},{same},{other}"])
    for both in (f"{first},{foreign}", f"{foreign},{first}"):
        with pytest.raises(InputError, match=r"expected a command for each\.$"):
            primary_config([*task, f"tokenizer.weights={both}"])


def test_options_whose_values_are_not_listed(tmp_path):
    """A search draws values of an interval, and Hydra finds those of a glob."""
    Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, ["x"], ["plain"], 100, {"train": []}).save(tmp_path)
    options = ["sampler.guidance_scale=interval(0,1)", "+preset=glob(*)"]
    assert primary_config(["-m", f"data.shards={tmp_path}", *options]) == "config_of_files"


def test_shards_find_their_tokenizer_in_a_moved_folder(tmp_path):
    """In that of experiment=from_images, whose shards name it relative to another working directory."""
    settings = {"_target_": "enat.tokenizers.vqgan.VQGAN", "weights": "outputs/x/tokenizer/checkpoints/last.ckpt"}
    manifest = Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, ["x"], ["plain"], 100, {"train": []})
    manifest.tokenizer_settings = settings
    (tmp_path / "shards").mkdir()
    manifest.save(tmp_path / "shards")
    assert settings_of_shards(f"{tmp_path}/shards", {})[1] == settings
    weights = tmp_path / "tokenizer" / "checkpoints" / "last.ckpt"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert settings_of_shards(f"{tmp_path}/shards", {})[1] == {**settings, "weights": str(weights)}
    manifest.tokenizer_settings = settings = {**settings, "weights": "assets/vqgan.ckpt"}  # is another tokenizer
    manifest.save(tmp_path / "shards")
    assert settings_of_shards(f"{tmp_path}/shards", {})[1] == settings


@pytest.mark.parametrize("options", [[], ["name=mine"], ["output=elsewhere"]])
def test_a_run_that_goes_on_without_its_start_is_found_by_its_name(compose_config, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    folder = {"": "outputs/finetuned", "name=mine": "outputs/mine", "output=elsewhere": "elsewhere"}["".join(options)]
    settings = OmegaConf.to_container(compose_config("experiment=own_images"), resolve=True)
    (tmp_path / folder / "checkpoints").mkdir(parents=True)
    torch.save({"settings": settings, "state_dict": {}}, tmp_path / folder / "checkpoints" / "last.ckpt")
    command = ["experiment=finetune", "weights=gone.ckpt", *options]
    assert primary_config(command) == "config_of_files"
    with pytest.raises(InputError, match=r"gone\.ckpt"):
        primary_config([*command, "name=another", "output=outputs/another"])


@pytest.mark.parametrize("task", ["evaluate", "neighbours"])
def test_images_stay_split_as_in_training_whatever_the_seed_is_now(compose_config, tmp_path, task):
    """Or images that the network was trained on would count as held out."""
    trained = compose_config("experiment=own_images", "metrics=lite0", "metrics.images=a", "metrics.held_out_share=0.2")
    content = {"settings": OmegaConf.to_container(trained, resolve=True), "state_dict": {"x": torch.zeros(1)}}
    torch.save(content, tmp_path / "last.ckpt")

    def of_command(*options):
        arguments = [f"task={task}", f"weights={tmp_path}/last.ckpt", "seed=1", *options]
        name = primary_config(arguments)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            metrics = compose(name, arguments).metrics
        assert metrics.evaluation.seed == 1
        parts = [metrics.evaluation.reference, metrics.held_out]
        return [[part.path, part.held_out, part.seed] for part in parts]

    assert of_command() == [["a", 0.2, 0]] * 2
    named = ["metrics.images=b", "metrics.held_out_share=0.3", "metrics.split_seed=5"]
    assert of_command(*named) == [["b", 0.3, 5]] * 2
    del content["settings"]["metrics"]["split_seed"]  # of an older version
    torch.save(content, tmp_path / "last.ckpt")
    assert of_command() == [["a", 0.2, 0]] * 2


def test_other_metrics_have_their_own_scores(compose_config, tmp_path):
    """Those of the checkpoint may need what only its metrics have."""
    trained = compose_config("experiment=own_images", "metrics=lite0", "metrics.images=a", "metrics.held_out_share=0.2")
    content = {"settings": OmegaConf.to_container(trained, resolve=True), "state_dict": {"x": torch.zeros(1)}}
    torch.save(content, tmp_path / "last.ckpt")

    def scores_of(*options):
        arguments = [f"weights={tmp_path}/last.ckpt", *options]
        name = primary_config(arguments)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(name, arguments)
        return list(OmegaConf.to_container(config, resolve=True)["scores"])

    assert scores_of("task=evaluate") == list(trained.scores)
    assert scores_of("task=evaluate", "score=[fid]") == ["fid"]
    assert scores_of("task=sample", "metrics=none") == ["fid", "inception_score"]
    assert scores_of("experiment=finetune", "data.shards=null") == ["fid", "inception_score"]
    assert scores_of("task=evaluate", "metrics=inception") == [
        "fid",
        "inception_score",
        "sfid",
        "kid",
        "precision_recall",
    ]
    assert "memorization" in scores_of("experiment=finetune", "data.shards=null", "metrics=lite0")
    del content["settings"]["scores"]["memorization"]
    del content["settings"]["metrics"]["evaluation"]["scores"]["memorization"]
    torch.save(content, tmp_path / "other.ckpt")
    both = f"weights={tmp_path}/last.ckpt,{tmp_path}/other.ckpt"
    primary_config(["-m", "task=evaluate", both, "metrics=inception"])  # which has the scores of neither
    with pytest.raises(InputError, match=r"scores\.memorization\.\S* is .* in the one and None in the other"):
        primary_config(["-m", "task=evaluate", both])
