"""Writes the model card of a folder of weights: what they draw, how they were trained, and how to use them."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enat.errors import counted

MAX_NAMES = 50  # classes that a card names


def model_card(folder: Path, config: Mapping[str, Any]) -> str:
    """Returns the text of a model card in Markdown.

    Args:
        folder: the card is named after it.
        config: the content of the folder's `config.json`.
    """
    name = _plain(folder.resolve().name)
    sizes = config["net_sizes"]
    settings = config["settings"]
    network = str(settings["module"]["net"].get("_target_")).rpartition(".")[2]
    licence = config.get("licence")
    lines = [
        *_front_matter(licence),
        f"# {name}",
        "",
        f"A network ({network}) and a tokenizer that draw images of {_classes(config)}. They were made with "
        "[ENAT](https://arxiv.org/abs/2411.06959), a framework for token-based image synthesis.",
        "",
        "```python",
        "import enat",
        "",
        'model = enat.load(".")  # the folder of this file, or its name on the Hugging Face Hub',
        "images = model.generate(images_per_class=1, seed=0)  # a list of PIL images",
        "```",
        "",
        "## Network",
        "",
        *_table({**sizes, "weights": config["weights_kind"]}),
        "## Sampler",
        "",
        *_table({key: value for key, value in settings["sampler"].items() if not key.startswith("_")}),
        "## Data and recipe",
        "",
        *_table(config.get("recipe") or {}, "Unknown."),
        "## Scores",
        "",
        *_table(config.get("scores") or {}, "None are known."),
        "## Origin",
        "",
        *_table(config.get("provenance") or {}),
        "## Files",
        "",
        *_table({file: sha256 or "left out" for file, sha256 in config["files"].items()}),
        "## Licence",
        "",
        f"{_plain(licence)}." if licence else "The licence of these weights is not stated here.",
        "",
    ]
    return "\n".join(lines)


def _front_matter(licence: str | None) -> list[str]:
    """Returns the lines that the Hugging Face Hub reads; a licence there is an id such as `cc-by-sa-4.0`."""
    lines = ["---", "library_name: enat", "pipeline_tag: unconditional-image-generation"]
    if licence:
        lines.append(f"license: {re.sub(r'[^a-z0-9.]+', '-', licence.lower()).strip('-')}")
    return [*lines, "---", ""]


def _classes(config: Mapping[str, Any]) -> str:
    """Names the classes in a sentence."""
    count = config["net_sizes"]["num_classes"]
    names = config.get("class_names") or []
    if not count:
        return "no classes"
    if not names:
        return counted(count, "class", "classes")
    shown = ", ".join(map(_plain, names[:MAX_NAMES]))
    return f"{counted(count, 'class', 'classes')}: {shown}{', and others' if len(names) > MAX_NAMES else ''}"


def _table(values: Mapping[str, Any], otherwise: str = "") -> list[str]:
    """Returns the lines of a table of values by name, nested ones by their full names."""
    rows = [f"| {_plain(name)} | {_plain(value)} |" for name, value in _flat(values)]
    return [*(["| | |", "|---|---|", *rows] if rows else [otherwise]), ""]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Goes through nested values by their full names; a function is shown by its name."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and "_target_" in value:
            yield name, str(value["_target_"]).rpartition(".")[2]
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        else:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _plain(text: Any) -> str:
    """Returns a text as Markdown shows it, whatever is in it."""
    flat = " ".join(str(text).encode("utf-8", "replace").decode().split())
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", flat)
