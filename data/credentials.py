"""Keeps passwords and access keys that stand in URLs out of what is written and printed."""

import re
from collections.abc import Mapping
from typing import Any

_LOGIN = re.compile(r"(?<=://)[^/\s@'\"]+@")  # as in https://user:password@host
_TOKEN = re.compile(r"(?<=[?&])([\w-]*(?:token|key|sig|secret|pass|credential)[\w-]*=)[^&\s'\"]*", re.IGNORECASE)


def without_credentials(value: Any) -> Any:
    """Returns plain values, or a text, without the passwords and access keys in their URLs."""
    if isinstance(value, Mapping):
        return {name: without_credentials(part) for name, part in value.items()}
    if isinstance(value, list):
        return [without_credentials(part) for part in value]
    return _TOKEN.sub(r"\1", _LOGIN.sub("", value)) if isinstance(value, str) else value
