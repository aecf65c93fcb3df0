"""Imports go one way: run -> experiments -> {callbacks, data} -> enat; enat is plain torch but for module.py."""

import ast
from pathlib import Path

import pytest

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
