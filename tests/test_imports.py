"""Imports go one way: run -> experiments -> {callbacks, data} -> enat; enat is plain torch but for module.py."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.command.main import COMMANDS

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "enat": {"data", "callbacks", "experiments", "run"},
    "data": {"callbacks", "experiments", "run"},
    "callbacks": {"data", "experiments", "run"},
    "experiments": {"run"},
}
FRAMEWORKS = {"lightning", "hydra", "omegaconf"}


def imported(source: str) -> set[str]:
    """Returns the top-level packages that a module imports, at its head or inside functions."""
    packages = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            packages.add(node.module.split(".")[0])
    return packages


def test_the_reader_of_imports_sees_them():
    assert imported("import a.b\ndef f():\n  from c.d import e") == {"a", "c"}


@pytest.mark.parametrize(
    "path", sorted(p for room in FORBIDDEN for p in (ROOT / room).rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    forbidden = FORBIDDEN[room] | (FRAMEWORKS if room == "enat" and path.name != "module.py" else set())
    assert not imported(path.read_text()) & forbidden


DRAW = """
import sys
import enat
model = enat.load("examples/emoji")
model.generate(["face"])
model.save(sys.argv[1])
print(*sys.modules)
"""


def test_drawing_imports_no_framework(tmp_path):
    """Not even indirectly, by a module of another package."""
    options = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
    printed = subprocess.run([sys.executable, "-c", DRAW, str(tmp_path / "x")], **options).stdout
    modules = {name.partition(".")[0] for name in printed.split()}
    assert {"enat", "torch"} <= modules
    assert not modules & {*FRAMEWORKS, "pytorch_lightning", "torchmetrics", "matplotlib", "wandb", "diffusers"}


def test_the_command_imports_no_framework():
    """`enat score` needs torchmetrics, but neither Hydra nor Lightning; gradio is imported when a page is started."""
    names = ", ".join(f"experiments.command.{name}" for name in COMMANDS)
    code = f"import {names}, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {name.partition(".")[0] for name in printed.split()} & {*FRAMEWORKS, "pytorch_lightning", "gradio"}


def test_importing_the_package_does_not_import_torch():
    code = "import enat, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "enat" in printed.split()
    assert "torch" not in printed.split()
