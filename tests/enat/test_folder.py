"""A folder of weights loads again to the bit, says what it is, and is written whole."""

import json
import os
import runpy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import enat
from enat.checkpoints import folder as folder_module
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.files import sha256_of
from enat.schedules import cosine


def pixels(model, **options):
    return [image.tobytes() for image in model.generate(["bee", "emu"], 2, **options)]


def states(model):
    return {f"{name}.{key}": x for name in ("net", "tokenizer") for key, x in getattr(model, name).state_dict().items()}


def test_a_saved_folder_loads_to_the_bit(make_pipeline, tmp_path):
    model = make_pipeline()
    with torch.no_grad():
        model.tokenizer.decoder.conv_out.bias += 0.1  # not what the settings alone would give
    model.save(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(folder_module.FILES)
    for path in (tmp_path / "a", tmp_path / "a" / "model.safetensors", str(tmp_path / "a")):
        again = enat.load(path)
        expected = states(model)
        assert states(again).keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in states(again).items())
        assert again.class_names == model.class_names
        assert pixels(again, seed=3) == pixels(model, seed=3)
    again.save(tmp_path / "b")
    for name in ("model.safetensors", "tokenizer.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in "ab")
    assert first == second
    assert first["files"] == {name: sha256_of(tmp_path / "a" / name) for name in first["files"]}
    assert again.facts()["model_sha256"] == first["files"]["model.safetensors"]


def test_a_folder_in_half_precision(make_pipeline, tmp_path):
    model = make_pipeline()
    model.save(tmp_path, half=True)
    assert {x.dtype for x in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    again = states(enat.load(tmp_path))
    assert all(torch.equal(again[name], tensor.half().float()) for name, tensor in states(model).items())


def test_a_folder_of_another_type_of_numbers_has_the_same_weights(make_pipeline, tmp_path):
    """They load as float32, and are cast by the reader."""
    model = make_pipeline().to(dtype=torch.bfloat16)
    model.save(tmp_path)
    again = enat.load(tmp_path)
    expected = states(model)
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in states(again).items())
    assert pixels(again.to(dtype=torch.bfloat16)) == pixels(model)
    assert again.facts()["tokenizer_sha256"] == model.facts()["tokenizer_sha256"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"licence": "MIT\nfoo"}, "licence: .*control characters"),
        ({"licence": ["MIT"]}, "licence: Input should be a valid string"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(make_pipeline, tmp_path, options, sentence):
    with pytest.raises(InputError, match=f"x: can't be saved, since it could not be read again: {sentence}"):
        make_pipeline().save(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_settings_that_could_not_be_read_again_are_not_saved(make_pipeline, tmp_path):
    faults = [
        (
            make_pipeline().with_sampler(mask_schedule=cosine),
            "function is not JSON serializable; expected plain values",
        ),
        (make_pipeline(scores={"scores": {"a": {"fid": float("nan")}}}), "Out of range float values"),
        (make_pipeline(recipe={"a": "b" * 4_000_000}), r"config\.json would have more than 4,000,000 bytes"),
        (make_pipeline(weights_kind="best"), "weights_kind: Input should be 'EMA', 'official' or 'raw'"),
    ]
    for model, sentence in faults:
        with pytest.raises(InputError, match=f"x: can't be saved, since it could not be read again: .*{sentence}"):
            model.save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "an own format": ({"config.json": '{"model_type": "vit"}', "model.safetensors": "x"}, "config.json, model.safe"),
    "no JSON": ({"config.json": "a: 3"}, "config.json"),
    "weights alone": ({"model.safetensors": "x"}, "model.safetensors"),
    "a tokenizer alone": ({"tokenizer.safetensors": "x"}, "tokenizer.safetensors"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_another_program_are_not_replaced(make_pipeline, tmp_path, kind):
    files, sentence = OTHERS[kind]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{sentence}.* would be replaced, and may be of another program"):
        make_pipeline().save(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_link_to_nothing_is_not_replaced(make_pipeline, tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "none")
    with pytest.raises(InputError, match=r"model\.safetensors would be replaced"):
        make_pipeline().save(tmp_path)
    assert [path.is_symlink() for path in tmp_path.iterdir()] == [True]


def test_the_card_says_what_is_known_and_its_example_runs(make_pipeline, tmp_path, monkeypatch):
    known = {"scores": {"scores": {"adm": {"fid": 12.5}}}, "recipe": {"steps": 77, "data": "a|b"}}
    make_pipeline(**known).save(tmp_path / "birds", licence="CC BY-SA 4.0")
    card = (tmp_path / "birds" / "README.md").read_text()
    hashes = json.loads((tmp_path / "birds" / "config.json").read_text())["files"]
    rows = ["scores, adm, fid | 12.5", "steps | 77", r"data | a\|b", *(f"{name} | {x}" for name, x in hashes.items())]
    assert all(f"\n| {row} |\n" in card for row in rows)
    for part in ("# birds\n", "license: cc-by-sa-4.0\n", "ant, bee, cat, dog, emu", "\nCC BY-SA 4.0.\n"):
        assert part in card
    (tmp_path / "example.py").write_text(card.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path / "birds")
    images = runpy.run_path(str(tmp_path / "example.py"))["images"]
    assert [image.size for image in images] == [(8, 8)] * 5
    again = enat.load(".")
    again.save(tmp_path / "again")  # what is known is passed on
    assert (tmp_path / "again" / "README.md").read_text() == card.replace("# birds", "# again")


def test_a_card_of_the_user_stays(make_pipeline, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine, too")
    make_pipeline().save(tmp_path)
    assert (tmp_path / "README.md").read_text() == (tmp_path / "notes.txt").read_text()[:4] == "mine"
    assert len(enat.load(tmp_path).generate("bee")) == 1


def test_a_save_that_is_interrupted_leaves_nothing_that_loads_mixed(make_pipeline, tmp_path, monkeypatch):
    """A new folder is there as a whole or not at all; in an earlier one, a mixture is refused."""

    def fail_at(name):
        original = folder_module.Path.replace

        def replace(path, target):
            if path.name == name and ".partial" in path.parent.name:
                raise OSError(28, "No space left on device")
            return original(path, target)

        return replace

    model = make_pipeline()
    monkeypatch.setattr(folder_module.Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="new: can't be written: No space left"):
        model.save(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    model.save(tmp_path / "old")
    before = pixels(enat.load(tmp_path / "old"))
    with torch.no_grad():
        model.net.head_bias += torch.arange(13)
    monkeypatch.setattr(folder_module.Path, "replace", fail_at("config.json"))
    with pytest.raises(InputError, match="can't be written: No space left on device"):
        model.save(tmp_path / "old")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"its sha256 is not the one in config\.json"):
        enat.load(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    model.save(tmp_path / "old")
    assert pixels(enat.load(tmp_path / "old")) == pixels(model) != before


def test_a_changed_file_is_noticed_after_it_was_read(make_pipeline, tmp_path):
    make_pipeline().save(tmp_path)
    enat.load(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    save_file({**state, "head_bias": state["head_bias"] + 1}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="its sha256 is not the one"):
        read_file(tmp_path)


def test_a_file_of_an_older_version_and_its_tokenizer(make_pipeline, tmp_path):
    """Such an export has all in the metadata of weights.safetensors."""
    model = make_pipeline()
    state = {name: tensor.contiguous() for name, tensor in model.tokenizer.state_dict().items()}
    save_file(state, tmp_path / "tokenizer.safetensors")
    described = {
        "settings": model.description["settings"],
        "class_names": model.class_names,
        "net_sizes": model.net.sizes,
        "tokenizer_file": {"name": "tokenizer.safetensors", "sha256": sha256_of(tmp_path / "tokenizer.safetensors")},
    }
    metadata = {name: json.dumps(value) for name, value in described.items()}
    save_file(model.net.state_dict(), tmp_path / "weights.safetensors", metadata)
    older = enat.load(tmp_path / "weights.safetensors")
    assert pixels(older) == pixels(model)
    older.save(tmp_path / "new")
    assert pixels(enat.load(tmp_path / "new")) == pixels(model)


def test_without_settings_nothing_is_saved(make_pipeline, tmp_path):
    model = make_pipeline()
    bare = enat.Pipeline(model.net, model.sampler, model.tokenizer)
    assert len(bare.generate([1])) == 1
    with pytest.raises(InputError, match=r"the settings of the pipeline are unknown; expected one that enat\.load"):
        bare.save(tmp_path / "x")
    with pytest.raises(InputError, match=r"this pipeline: its settings are damaged: settings\.sampler is None"):
        bare.with_sampler(num_steps=2)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: this is a file; expected the name of a folder"):
        model.save(tmp_path / "file")


def test_another_sampler_draws_other_images_of_the_same_network(make_pipeline, tmp_path):
    model = make_pipeline()
    other = model.with_sampler(num_steps=5, guidance_scale=0.0)
    assert other.net is model.net
    assert (other.sampler.num_steps, model.sampler.num_steps) == (5, 3)
    assert pixels(other) != pixels(model)
    other.save(tmp_path)
    assert enat.load(tmp_path).sampler_settings["num_steps"] == 5
    assert model.sampler_settings["num_steps"] == 3
    with pytest.raises(InputError, match=r"Sampler: num_steps=0: Input should be greater than or equal to 1"):
        model.with_sampler(num_steps=0)
    with pytest.raises(InputError, match=r"Sampler: its options are wrong: got an unexpected keyword argument 'steps'"):
        model.with_sampler(steps=3)


def test_the_parts_of_a_sampler_are_saved(make_pipeline, tmp_path):
    options = {
        "order": {"_target_": "enat.orders.Fixed", "positions": list(range(16))},
        "correction": {"_target_": "enat.corrections.no_correction"},
        "guidance_schedule": {"_target_": "enat.schedules.interval", "_partial_": True, "start": 0.3, "end": 1.0},
        "mask_schedule": [0.75, 0.25, 0.0],
    }
    model = make_pipeline().with_sampler(**options)
    model.save(tmp_path)
    again = enat.load(tmp_path)
    assert pixels(again) == pixels(model) != pixels(make_pipeline())
    assert again.sampler_settings["order"] == {"Fixed": {"positions": list(range(16))}}
    assert again.sampler_settings["correction"] == "no_correction"
    bound = {"order": {"_target_": "enat.orders.EntropyBound", "bound": 1.0}}
    calls = []
    images = make_pipeline().with_sampler(**bound).generate(["ant"], 18, on_progress=lambda *call: calls.append(call))
    assert len(images) == 18
    assert calls == [(0, 6), (3, 6), (6, 6)]  # images are drawn one at a time


def test_progress_counts_the_steps_of_all_batches(make_pipeline):
    calls = []
    images = make_pipeline().generate(images_per_class=4, on_progress=lambda done, total: calls.append((done, total)))
    assert len(images) == 20  # two batches of at most 16, of three steps each
    assert calls == [(done, 6) for done in range(7)]


def test_reveal_covers_what_is_masked(make_pipeline):
    model = make_pipeline()
    (frames,) = model.reveal("cat", seed=4)
    (final,) = model.generate("cat", seed=4)
    assert len(frames) == model.sampler.num_steps + 1
    covered = tuple(round(255 * value) for value in (0.16, 0.22, 0.42))
    counts = [int((np.asarray(frame) == covered).all(2).sum()) for frame in frames]
    masked = [16, *model.sampler.mask_counts(16)]
    assert counts == [4 * count for count in masked]  # of 2 x 2 pixels each
    assert frames[-1].tobytes() == final.tobytes()


def test_types_of_numbers(make_pipeline):
    model = make_pipeline().to(dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in states(model).values()} == {torch.bfloat16}
    assert model.facts()["dtype"] == "bfloat16"
    assert [image.size for image in model.generate([0, 1])] == [(8, 8)] * 2
    with pytest.raises(InputError, match="images_per_class=0: expected an integer of at least 1"):
        model.generate([0], images_per_class=0)


def test_a_card_that_was_not_changed_is_made_anew(make_pipeline, tmp_path):
    make_pipeline().save(tmp_path, licence="MIT")
    make_pipeline().save(tmp_path, licence="CC BY-SA 4.0")
    card = (tmp_path / "README.md").read_text()
    assert "license: cc-by-sa-4.0\n" in card
    assert "MIT" not in card
    (tmp_path / "README.md").write_text(f"{card}More of my own.")
    make_pipeline().save(tmp_path, licence="MIT")
    assert (tmp_path / "README.md").read_text() == f"{card}More of my own."


def test_a_folder_with_another_tokenizer_is_told(make_pipeline, tmp_path, capsys):
    model = make_pipeline()
    model.description |= model.tokenizer.fingerprints()  # as a run's checkpoint says
    model.save(tmp_path / "whole")
    model.save(tmp_path / "half", half=True)
    state = load_file(tmp_path / "whole" / "tokenizer.safetensors")
    save_file({name: tensor + 0.5 for name, tensor in state.items()}, tmp_path / "other.safetensors")
    enat.load(tmp_path / "whole")
    enat.load(tmp_path / "half")  # has other weights by rounding
    assert capsys.readouterr().out == ""
    enat.load(tmp_path / "whole", tokenizer=tmp_path / "other.safetensors")
    assert "was trained on the tokens of another tokenizer" in capsys.readouterr().out


def test_more_steps_than_are_read_from_a_file(make_pipeline, tmp_path):
    model = make_pipeline()
    with pytest.raises(InputError, match=r"with_sampler: sampler\.num_steps is beyond 10,000"):
        model.with_sampler(num_steps=10_001)
    model.description["settings"]["sampler"]["num_steps"] = 10_001
    with pytest.raises(InputError, match=r"it could not be read again: sampler\.num_steps is beyond 10,000"):
        model.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
