"""Folders of weights from strangers: each fault is told in a sentence, before anything runs or much memory is taken."""

import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import enat
from enat.errors import InputError
from enat.files import sha256_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sound(make_pipeline, tmp_path_factory):
    """A folder that loads."""
    folder = tmp_path_factory.mktemp("sound") / "folder"
    make_pipeline().save(folder)
    assert len(enat.load(folder).generate([0])) == 1
    return folder


@pytest.fixture
def saved(sound, tmp_path):
    """A copy of a sound folder, which a test damages."""
    return Path(shutil.copytree(sound, tmp_path / "folder"))


def change_config(folder, change):
    """Changes the content of `config.json`, whose hashes are made right again."""
    config = json.loads((folder / "config.json").read_text())
    for name in config["files"]:
        config["files"][name] = sha256_of(folder / name)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder):
    """The sentence with which a folder is refused."""
    with pytest.raises(InputError) as caught:
        enat.load(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_under_the_name_of_safetensors(saved, tmp_path, name, kind):
    bomb = Bomb(tmp_path / "ran")
    content = pickle.dumps(bomb)
    if kind == "torch":
        torch.save({"state_dict": bomb}, tmp_path / "bomb.pt")
        content = (tmp_path / "bomb.pt").read_bytes()
    (saved / name).write_bytes(content)
    change_config(saved, lambda config: None)
    assert f"{name}: the file is truncated or no checkpoint." in refused(saved)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(bomb))  # it would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "tokenizer.safetensors/../x", "code.py"])
def test_other_files_in_the_settings(saved, name):
    change_config(saved, lambda config: config["files"].update({name: "0" * 64}))
    assert "config.json: it is damaged, or of another program." in refused(saved)


@pytest.mark.parametrize("option", ["weights", "folder"])
@pytest.mark.parametrize("value", ["/etc/passwd", "../../other.ckpt", "tokenizer.safetensors"])
def test_other_files_of_the_tokenizer(saved, option, value):
    change_config(saved, lambda config: config["settings"]["tokenizer"].update({option: value}))
    assert f"settings.tokenizer.{option}={value}: expected null" in refused(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.safetensors", "config.json"])
def test_links_out_of_the_folder(saved, tmp_path, name):
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name}: a link to a file in another folder; expected the file itself." in refused(saved)
    (tmp_path / "elsewhere").rename(saved / "beside")
    (saved / name).unlink()
    (saved / name).symlink_to("beside")
    assert len(enat.load(saved).generate([0])) == 1


def test_no_files_but_pipes(saved):
    (saved / "tokenizer.safetensors").unlink()
    os.mkfifo(saved / "tokenizer.safetensors")
    assert "expected tokenizer.safetensors beside it" in refused(saved)
    (saved / "model.safetensors").unlink()
    os.mkfifo(saved / "model.safetensors")
    assert "model.safetensors: there is no such file" in refused(saved)


HUGE = {
    "a width": (("module", "net", "width"), 10**9, "module.net.width is beyond 16,777,216"),
    "a smaller width": (("module", "net", "width"), 2**24, "its settings have width 16777216, and its weights 32"),
    "a depth": (
        ("module", "net", "encoder_depth"),
        10**6,
        "its settings have depth 1000002, and its weights 4",
    ),
    "classes": (("module", "net", "num_classes"), 10**7, "its settings have num_classes 10000000, and its weights 5"),
    "heads": (("module", "net", "num_heads"), 10**7, "width=32: expected a multiple of num_heads=10000000"),
    "steps": (("sampler", "num_steps"), 10**6, "sampler.num_steps is beyond 10,000"),
    "channels": (("tokenizer", "channels"), 2**20, "weight encoder.conv_in.weight has shape"),
    "codes": (("tokenizer", "codebook_size"), 2**24, "weight quantize.embedding.weight has shape"),
    "blocks": (("tokenizer", "num_blocks"), 10**5, "tokenizer.num_blocks is beyond 64"),
    "resolutions": (
        ("tokenizer", "multipliers"),
        [1] * 10**4,
        "multipliers has 10000 items; expected at most",
    ),
    "pixels": (("tokenizer", "resolution"), 2**20, "codebook_size=12, num_tokens=16; the tokenizer has 12 and"),
    "a quantiser": (
        ("tokenizer",),
        {
            **{"_target_": "enat.tokenizers.vqgan.ConvTokenizer", "channels": 32, "multipliers": [1, 1]},
            **{"num_blocks": 1, "resolution": 8, "weights": None},
            "quantizer": {"_target_": "enat.tokenizers.quantizers.FSQ", "levels": [1000] * 20},
        },
        "more than 1,048,576 codes",
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_sizes_that_the_weights_do_not_have(saved, kind):
    """This process may not take much more memory than it has, so that a sentence after the fact would be none."""
    (*way, last), value, sentence = HUGE[kind]

    def change(config):
        node = config["settings"]
        for name in way:
            node = node[name]
        node[last] = value

    change_config(saved, change)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 1_000_000_000, limits[1]))
    try:
        assert sentence in refused(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_weights_of_empty_shapes(saved):
    """The first weights may claim any width without a byte; the others do not have it."""
    state = load_file(saved / "model.safetensors")
    state["token_embedding.weight"] = torch.zeros(0, 2**23)
    save_file(state, saved / "model.safetensors")
    change_config(saved, lambda config: config["settings"]["module"]["net"].update(width=2**23))
    assert "its settings have codebook_size 12, and its weights -1" in refused(saved)


def test_weights_of_other_shapes(saved):
    for name, weight in (("model.safetensors", "head_bias"), ("tokenizer.safetensors", "decoder.conv_out.bias")):
        before = (saved / name).read_bytes()
        state = load_file(saved / name)
        save_file({**state, weight: torch.zeros(7)}, saved / name)
        change_config(saved, lambda config: None)
        assert f"weight {weight} has shape [7] instead of" in refused(saved)
        save_file({**state, "mine": torch.zeros(7)}, saved / name)
        change_config(saved, lambda config: None)
        assert "weight mine is unknown" in refused(saved)
        (saved / name).write_bytes(before)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "expected JSON of a moderate depth"),
        ('{"a":' * 500 + "1" + "}" * 500, "nests more than 50 levels deep"),
        ('{"a": NaN}', "expected JSON of a moderate depth"),
        ("1" * 10_000, "expected JSON of a moderate depth"),
        ("[]", "it is damaged, or of another program"),
        ('{"format": "enat"}', "format_version None; expected 1"),
        ('{"format": "other", "format_version": 1}', "it is damaged, or of another program"),
        ('{"format": "enat", "format_version": 2}', "format_version 2; expected 1"),
        (" " * 5_000_000, "larger than 4,000,000 bytes"),
        ("\udcff", "expected JSON of a moderate depth"),
    ],
)
def test_other_texts(saved, text, sentence):
    (saved / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert sentence in refused(saved)


WRONG = {
    "no settings": (lambda config: config.pop("settings"), "settings: Field required"),
    "settings": (lambda config: config.update(settings=[]), "settings: Input should be a valid dictionary"),
    "no network": (lambda config: config["settings"].pop("module"), "module.net is None"),
    "a network": (lambda config: config["settings"]["module"].update(net=3), "module.net is 3"),
    "a sampler": (lambda config: config["settings"].update(sampler="x"), "settings.sampler: Input should be"),
    "a number": (lambda config: config["settings"]["sampler"].update(num_steps="3"), "num_steps=3: Input should be"),
    "a bool": (lambda config: config["settings"]["module"]["net"].update(width=True), "have width True, and its"),
    "a list": (lambda config: config["settings"]["tokenizer"].update(multipliers=2), "multipliers=2: Input should be"),
    "an option": (lambda config: config["settings"]["sampler"].update(x=1), "unexpected keyword argument 'x'"),
    "names": (lambda config: config.update(class_names=["a"]), "class_names: 1 names for the 5 classes"),
    "controls": (lambda config: config.update(class_names=["\x1b[2J"] * 5), "it has control characters"),
    "no text": (lambda config: config.update(class_names=["\ud800"] * 5), "class_names.0: Value error, it is no valid"),
    "a hash": (lambda config: config["files"].update({"model.safetensors": "0" * 64}), "its sha256 is not the one"),
    "no hash": (lambda config: config.update(files={}), "files.model.safetensors: expected a sha256"),
    "no hash of the tokenizer": (
        lambda config: config["files"].update({"tokenizer.safetensors": None}),
        "its tokenizer was left out; expected tokenizer.weights=FILE on the command line, or tokenizer=FILE in Python",
    ),
    "another target": (
        lambda config: config["settings"]["sampler"].update(_target_="os.system"),
        "_target_=os.system: expected one of",
    ),
    "a target inside": (
        lambda config: config["settings"]["sampler"].update(mask_schedule={"_target_": "subprocess.run", "args": "ls"}),
        "_target_=subprocess.run: expected one of",
    ),
    "a tokenizer as a network": (
        lambda config: config["settings"]["module"].update(net=config["settings"]["tokenizer"]),
        "the checkpoint of a tokenizer",
    ),
    "a network as a tokenizer": (
        lambda config: config["settings"].update(tokenizer=config["settings"]["module"]["net"]),
        "unexpected keyword argument 'weights'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_settings(saved, kind):
    change, sentence = WRONG[kind]
    change_config(saved, change)
    assert sentence in refused(saved)


def test_a_folder_without_its_settings(saved, tmp_path):
    (saved / "config.json").unlink()
    assert f"weights={saved}: there is no config.json in this folder; expected a folder that task=export" in refused(
        saved
    )
    assert f"weights={tmp_path / 'none'}: there is no such file" in refused(tmp_path / "none")


@pytest.mark.slow
def test_the_commands_refuse_alike(saved, command, tmp_path):
    """A task reads the same folder by the same rules, and `enat` ends with the status 2 and no traceback."""
    complete = {name: {} for name in ("metrics", "reference", "scores", "protocols", "trainer")}
    complete = {**complete, "trainer": {"devices": 1}}
    config = (saved / "config.json").read_text()
    change_config(saved, lambda config: config["settings"].update(complete))
    change_config(saved, lambda config: config["settings"]["module"]["net"].update(width=2**23))
    outcome = command("task=sample", f"weights={saved}", f"output={tmp_path / 'x'}")
    assert (outcome.status, "its settings have width 8388608, and its weights 32" in outcome.err) == (1, True)
    change_config(saved, lambda config: config["settings"]["module"]["net"].update(width=32))
    change_config(saved, lambda config: config["settings"]["tokenizer"].update(channels=2**20))
    outcome = command("task=sample", f"weights={saved}", f"output={tmp_path / 'x'}")
    assert (outcome.status, "weight encoder.conv_in.weight has shape" in outcome.err) == (1, True)
    change_config(saved, lambda config: config["settings"]["tokenizer"].update(weights="/etc/passwd"))
    sentence = "settings.tokenizer.weights=/etc/passwd: expected null"
    outcome = command("task=sample", f"weights={saved}", f"output={tmp_path / 'x'}")
    assert (outcome.status, sentence in outcome.err) == (1, True)
    start = "import sys; from experiments.command.main import main; sys.exit(main())"
    options = {"capture_output": True, "text": True, "cwd": ROOT}
    done = subprocess.run([sys.executable, "-c", start, "sample", str(saved)], **options)
    assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    (saved / "config.json").write_text(config)
    for name in ("modeling.py", "__init__.py", "enat.py"):  # code in the folder is never looked at
        (saved / name).write_text("raise SystemExit('ran')")
    assert len(enat.load(saved).generate([0])) == 1
