"""The documentation refers to files and sections that exist, and each of its commands composes."""

import ast
import functools
import importlib.util
import io
import re
import shlex
import tokenize
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig

from experiments.runtime.building import plan
from experiments.runtime.unused_options import refuse_unused_options

ROOT = Path(__file__).parent.parent
ROOMS = ("enat", "data", "callbacks", "experiments", "tests", "docs", "examples", "conf")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKDOWN = [*PAGES, *sorted((ROOT / "experiments").rglob("*.md")), *sorted((ROOT / "tests").rglob("*.md"))]
IN_ROOMS = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*"))
SOURCES = [path for path in IN_ROOMS if path.suffix in (".py", ".yaml", ".sbatch")]
SOURCES += [ROOT / "run.py", ROOT / "mkdocs.yml"]

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
PAGE = re.compile(r"\bdocs/[\w/]+\.md(?:, (?=[A-Z])(.{1,60}))?")
FILE = re.compile(
    rf"(?<![\w./-])(?:{'|'.join(ROOMS)})/[\w./-]*\.(?:py|yaml|md|png|sbatch|json|safetensors)\b|\b[A-Z]+\.md\b"
)
CHOICE = re.compile(
    rf"(?<![\w./@-])({'|'.join(sorted(path.name for path in (ROOT / 'conf').iterdir() if path.is_dir()))})"
    r"(?:@[\w.]+)?=\[?([a-z][\w,]*)"
)
EXTRAS = re.compile(r"'\.\[([\w,]+)\]'")


def prose(path: Path) -> str:
    """Returns all text of a Markdown file, or the comments and docstrings of code, with whitespace collapsed."""
    text = path.read_text()
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        parts = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
        owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        parts += [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, owners)]
    elif path.suffix == ".md":
        parts = [text]
    else:
        parts = re.findall(r"(?<!\S)#+ ?(.*)", text)
    return " ".join(" ".join(parts).split())


def headings(markdown: str) -> list[str]:
    """The headings of a Markdown file, as a reader sees them."""
    lines = re.findall(r"^#+ (.+)$", FENCE.sub("", markdown), re.MULTILINE)
    return [re.sub(r"\[(.*?)\]\(.*?\)|`", r"\1", line) for line in lines]


def anchor(heading: str) -> str:
    """The anchor that GitHub and mkdocs make of a heading."""
    return re.sub(r"[^\w\s-]", "", heading).strip().lower().replace(" ", "-")


def broken_links(markdown: str, folder: Path) -> list[str]:
    """Relative links of a Markdown text in a folder that lead to no file, or to no section of it."""
    broken = []
    for target, section in LINK.findall(FENCE.sub("", markdown)):
        if ":" in target:
            continue
        path = folder / target
        linked = markdown if not target else path.read_text() if path.suffix == ".md" and path.is_file() else ""
        if not path.exists() or (section and section not in map(anchor, headings(linked))):
            broken.append(f"{target}#{section}" if section else target)
    return broken


def broken_references(text: str) -> list[str]:
    """Files and sections that a text names and that do not exist."""
    broken = [match.group() for match in FILE.finditer(text) if not (ROOT / match.group()).exists()]
    for match in PAGE.finditer(text):
        path, rest = ROOT / match.group().partition(",")[0], match.group(1)
        sections = headings(path.read_text()) if path.exists() else []
        if rest and not any(re.match(rf"{re.escape(section)}\b", rest) for section in sections):
            broken.append(match.group())
    return broken


def commands(markdown: str) -> list[list[str]]:
    """The arguments of every call of run.py in a Markdown text: in blocks of bash and between backticks."""
    blocks = [text.replace("\\\n", " ") for _, language, text in FENCE.findall(markdown) if language == "bash"]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", markdown))]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [span for span in spans if "python run.py" in span]
    words = [shlex.split(line, comments=True) for line in lines]
    calls = [line[line.index("run.py") + 1 :] for line in words if "run.py" in line]
    return [call for call in calls if "--help" not in call]  # which composes nothing


def first_value(override: Override) -> str:
    """An override with the first of its values, if it has several."""
    if not override.is_sweep_override():
        return str(override.input_line)
    value = override.value()
    first = value.start if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={first}"


def without_missing_launcher(overrides: list[str]) -> list[str]:
    """Leaves out the options of submitit's launcher where it is not installed: only the extra `slurm` brings it."""
    if "hydra/launcher=submitit_slurm" not in overrides or importlib.util.find_spec("submitit"):
        return overrides
    return [text for text in overrides if not text.startswith(("hydra/launcher", "hydra.launcher."))]


def composed(overrides: list[str], hydra: bool = False) -> DictConfig:
    """The configuration that overrides give, with Hydra's own options if asked for."""
    GlobalHydra.instance().clear()
    chooses = any("experiment=" in text or text.startswith("+sweep=table_") for text in overrides)
    if any(text.startswith("data.shards=") for text in overrides) and not chooses:
        overrides = ["experiment=own_images", *overrides]  # which `primary_config` chooses
    if any(text.startswith("tokenizer.weights=") for text in overrides) and not chooses:
        overrides = ["tokenizer=conv", *overrides]  # which the file says
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=hydra)


@functools.cache
def compose_command(arguments: tuple[str, ...]) -> None:
    """Composes the configuration of a command, of the first job if there are several; checks that all of it counts."""
    multirun = "-m" in arguments
    overrides = without_missing_launcher([word for word in arguments if word not in ("-m", "--cfg", "job")])
    if multirun:
        parser = OverridesParser.create()
        given = parser.parse_overrides(overrides)
        overrides = [first_value(override) for override in given]
        params = composed(overrides, hydra=True).hydra.sweeper.get("params") or {}
        chosen = {override.get_key_element() for override in given}
        study = parser.parse_overrides([f"{name}={values}" for name, values in params.items() if name not in chosen])
        overrides += [first_value(override) for override in study]
    config = composed(overrides, hydra=True)
    plan(config, "task")
    refuse_unused_options(config, overrides, config.hydra.runtime.choices)


def missing_choices(text: str) -> list[str]:
    """YAMLs and extras that a text chooses and that do not exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    missing = [
        f"{group}={name}"
        for group, names in CHOICE.findall(text)
        for name in names.split(",")
        if not (ROOT / "conf" / group / f"{name}.yaml").is_file()
    ]
    return missing + [name for names in EXTRAS.findall(text) for name in names.split(",") if name not in extras]


def in_files(paths: list[Path], check: Callable[[Path], list[str]]) -> str:
    """Returns what a check finds in files, one line each with the name of the file."""
    return "\n".join(f"{path.relative_to(ROOT)}: {problem}" for path in paths for problem in check(path))


def test_links_lead_somewhere():
    problems = in_files(MARKDOWN, lambda path: broken_links(path.read_text(), path.parent))
    assert not problems, problems


def test_references_to_files_and_sections_exist():
    problems = in_files([*MARKDOWN, *SOURCES], lambda path: broken_references(prose(path)))
    assert not problems, problems


def test_choices_and_extras_exist():
    problems = in_files(PAGES, lambda path: missing_choices(path.read_text()))
    assert not problems, problems


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_compose(page):
    for arguments in commands(page.read_text()):
        try:
            compose_command(tuple(arguments))
        except Exception as error:
            raise AssertionError(f"python run.py {shlex.join(arguments)}: {error}") from error


def test_the_method_page_has_the_sections_that_comments_cite():
    text = (ROOT / "docs/method.md").read_text()
    assert headings(text)[1:] == [
        *("Notation", "Token and class ids"),
        *("Network", "Embedding", "Block", "Encoder", "Decoder", "Head", "Initialisation"),
        *("Masking", "Loss", "Reuse in training", "Recipe", "Sampling", "Tokenizer", "Data", "Evaluation"),
        "Official files",
    ]


@pytest.mark.parametrize(
    ("markdown", "broken"),
    [
        ("[a](docs/method.md) [b](docs/method.md#loss) [c](https://x.y/z) [d](#here)\n# Here", []),
        ("[a](docs/nothing.md)", ["docs/nothing.md"]),
        ("![a](docs/nothing.png)", ["docs/nothing.png"]),
        ("[a](docs/method.md#nothing)", ["docs/method.md#nothing"]),
        ("[a](#nothing)\n```\n# nothing\n```\n", ["#nothing"]),
    ],
)
def test_broken_links_are_seen(markdown, broken):
    assert broken_links(markdown, ROOT) == broken


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("see docs/method.md, Masking; docs/method.md, which README.md names, and enat/net.py", []),
        ("see docs/method.md, Nothing.", ["docs/method.md, Nothing."]),
        ("see docs/nothing.md", ["docs/nothing.md"]),
        ("see NOTES.md and enat/nothing.py", ["NOTES.md", "enat/nothing.py"]),
    ],
)
def test_broken_references_are_seen(text, broken):
    assert broken_references(text) == broken


def test_prose_is_comments_and_docstrings(tmp_path):
    code, config = tmp_path / "code.py", tmp_path / "config.yaml"
    code.write_text('"""docs/method.md,\n  Loss."""\nx = "not me"  # a comment\n# in two lines\n')
    config.write_text("# first\nkey: value#no   # second\n")
    assert prose(code) == "a comment in two lines docs/method.md, Loss."
    assert prose(config) == "first second"


def test_commands_are_found():
    text = (
        "`python run.py a=1\nb=2`, `run.py`, `c=3`\n```bash\n# python run.py no\npip install -e . && python run.py\n"
        'torchrun x run.py "d=[1,2]" \\\n  e=5  # why\n```\n```\npython run.py no\n```\n'
    )
    assert commands(text) == [[], ["d=[1,2]", "e=5"], ["a=1", "b=2"]]


@pytest.mark.parametrize(
    "line",
    [
        "task=nothing",
        "module.net.nothing=1",
        "module.net.width=wide",
        "seed=1,2",
        "-m +sweep=nothing",
        "-m +sweep=reuse_prob variant=nothing,enat",
        "-m +sweep=reuse_prob hydra/launcher=nothing",
        "...",
    ],
)
def test_wrong_commands_are_seen(line):
    with pytest.raises(Exception, match=r"nothing|width|seed|\.\.\."):
        compose_command(tuple(line.split()))


def test_missing_choices_are_seen():
    text = "task=train protocol=[enat,adm] +sweep=steps pip install -e '.[docs,test]' my-task=x weights=FILE"
    assert missing_choices(text) == []
    bad = "task=nothing protocol=[enat,never] +sweep=deep schedule@sampler.x=cosine,round pip install -e '.[dogs]'"
    assert missing_choices(bad) == ["task=nothing", "protocol=never", "sweep=deep", "schedule=round", "dogs"]
