"""The examples run."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import enat
from data.manifest import Manifest
from experiments.command.main import main

ROOT = Path(__file__).parent.parent
SAMPLE, BATCH = ROOT / "examples/sample.py", ROOT / "examples/train.sbatch"


def code_blocks(page: str, language: str) -> list[str]:
    """The blocks of code in a language on a page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def checkpoint(command, tmp_path) -> Path:
    """A checkpoint of the debug experiment."""
    outcome = command("experiment=debug", f"output={tmp_path}/debug")
    assert outcome.status == 0, outcome.err
    return Path(outcome.results["checkpoint"])


def test_sample_saves_the_images_of_its_checkpoint(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py", str(checkpoint), "3", "7"])
    pictures = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        monkeypatch.chdir(folder)
        runpy.run_path(str(SAMPLE), run_name="__main__")
        pictures.append({path.name: path.read_bytes() for path in folder.iterdir()})
        assert all(Image.open(path).size == (8, 8) for path in folder.iterdir())
    assert sorted(pictures[0]) == [f"sample_{number}.png" for number in range(8)]
    assert pictures[0] == pictures[1]  # the seed decides
    assert len(set(pictures[0].values())) == 8


def test_the_weights_in_the_repository_draw():
    folder = ROOT / "examples/emoji"
    model = enat.load(folder)
    images = model.generate(["face", "flag"], images_per_class=2)
    assert [image.size for image in images] == [(32, 32)] * 4
    face, flag = (np.asarray(images[number]).astype(int) for number in (0, 2))
    assert (face[0, 0] > 240).all()
    red, _, blue = face[10:22, 10:22].mean((0, 1))
    assert red > blue + 50  # yellow
    assert flag[8:24, 2].mean() < 128  # the frame
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 8_000_000
    assert "CC BY-SA 4.0" in (folder / "README.md").read_text()


def test_sample_is_the_readmes():
    docstring, _, code = SAMPLE.read_text().partition("\n\n")
    assert docstring.startswith('"""')
    assert code_blocks("README.md", "python") == [code]


def test_python_without_hydra_runs():
    (block,) = code_blocks("docs/reference.md", "python")
    names: dict = {}
    exec(block, names)
    assert names["token_ids"].shape == (2, 64)
    assert names["token_ids"].max() < 17


def test_the_batch_script_is_bash():
    subprocess.run(["bash", "-n", BATCH], check=True)


def test_the_batch_script_asks_for_its_shards():
    outcome = subprocess.run(["bash", BATCH], capture_output=True, text=True)
    assert outcome.returncode != 0
    assert "expected the folder of shards" in outcome.stderr


def test_the_command_of_the_batch_script_composes(command, tmp_path):
    script = BATCH.read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^srun python run\.py (.*)$", script, re.MULTILINE)
    names = list(map(str, range(1000)))
    Manifest("VQGAN", "0" * 64, 256, [16, 16], 1024, names, ["plain"], 100, {"train": []}).save(tmp_path)
    outcome = command("--cfg", "job", *shlex.split(line.replace("$shards", str(tmp_path))))
    assert outcome.status == 0, outcome.err
    config = yaml.safe_load(outcome.out)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    assert config["name"] == "enat_l_256"
    assert config["data"]["shards"] == str(tmp_path)
    assert config["trainer"]["precision"] == "16-mixed"
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # Lightning expects a task for each GPU
    assert options["signal"] == "USR1@120"


def test_the_python_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    first, second = code_blocks("docs/python.md", "python")
    names: dict = {}
    exec(first, names)
    assert len(names["images"]) == 8
    assert Image.open("face.png").tobytes() == names["images"][0].tobytes()
    exec(second, names)
    assert (len(names["images"]), len(names["frames"])) == (2, names["model"].sampler.num_steps + 1)
    saved = enat.load("my_emoji")
    assert saved.generate("clock")[0].tobytes() == names["model"].generate("clock")[0].tobytes()
    assert "CC BY-SA 4.0" in (tmp_path / "my_emoji/README.md").read_text()
    (line,) = [line for line in code_blocks("docs/python.md", "bash")[0].splitlines() if "enat sample" in line]
    assert main(shlex.split(line)[1:]) == 0
    assert len(list((tmp_path / "samples").iterdir())) == 8
