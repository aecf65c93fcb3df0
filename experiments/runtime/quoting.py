"""Puts quotes around strings that Hydra's grammar can't read: paths with `=`, and letters outside ASCII."""

import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

CLOSING = {"[": "]", "{": "}", "(": ")"}
LISTS = ("[", "{")  # what begins one, or a dictionary
QUOTES = ("'", '"')
# A quoted string where a value begins, an escaped sign, or one sign.
TOKEN = re.compile(r"""(?<![^\s\[{(,:])(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\\.|.""", re.DOTALL)


def parsed(text: str) -> Override | None:
    """Returns a value as Hydra reads it, as that of some option; None for what it can't read."""
    try:
        return OverridesParser.create().parse_override(f"x={text}")
    except HydraException:
        return None  # composition says what is wrong with it


def quote(text: str) -> str:
    """Returns a string in quotes, which Hydra reads as it is."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)  # a backslash counts only before a quote
    return f"'{escaped}'"


def split(text: str) -> list[str] | None:
    """Splits text at the commas that are in no quotes and no brackets; returns None if its brackets do not match."""
    items = [""]
    open_brackets: list[str] = []
    for token in TOKEN.findall(text):
        if token in CLOSING:
            open_brackets.append(token)
        elif token in CLOSING.values() and (not open_brackets or CLOSING[open_brackets.pop()] != token):
            return None
        if token == "," and not open_brackets:
            items.append("")
        else:
            items[-1] += token
    return None if open_brackets else [item.strip() for item in items]


def readable(text: str) -> str | None:
    """Returns a value so that Hydra reads it, with quotes around its strings that need them, also in lists.

    What Hydra reads already stays as it is. None for what can't be told, such as brackets that do not match.
    """
    if not text:
        return None
    override = parsed(text)
    if override is not None and not override.is_sweep_override():
        return text
    if text[0] + text[-1] not in ("[]", "{}"):
        return None if text[0] in (*LISTS, *QUOTES) else quote(text)
    parts = []
    for item in split(text[1:-1]) or [""]:
        key, colon, value = item.partition(":") if text[0] == "{" else ("", "", item)
        part = readable(value.strip())
        if part is None:
            return None
        parts.append(f"{key}{colon}{part}")
    return f"{text[0]}{','.join(parts)}{text[-1]}"
