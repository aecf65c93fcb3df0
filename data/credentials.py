"""Keeps passwords and access keys that stand in URLs out of what is written and printed."""

import re
from collections.abc import Mapping
from typing import Any

# As in https://user:password@host. A password may have @ and quotes in it, and / where what is before can't be a port.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#\s@:]*:(?!\d*(?:[/?#\s]|$))\S*@|[^/?#\s]*@)")
_NAME = r"[\w.%\[\]-]*(?:token|key|sig|secret|pass|pwd|auth(?!or)|credential|jwt|bearer|session)[\w.%\[\]-]*"
_END = r"[\s,;:)\]}]|$"  # after a quote that is around the URL, and not in the key
_TOKEN = re.compile(rf"(?<=[?&;#])({_NAME}\\?=)(?:[^&;#\s'\"]|['\"](?!{_END}))*", re.IGNORECASE)


def without_credentials(value: Any) -> Any:
    """Returns plain values, or a text, without the passwords and access keys in their URLs."""
    if isinstance(value, Mapping):
        return {without_credentials(name): without_credentials(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_credentials(part) for part in value]
    return _TOKEN.sub(r"\1", _LOGIN.sub("", value)) if isinstance(value, str) else value
