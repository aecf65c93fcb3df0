"""Reads the settings that a run has left in its folder, which may come from anybody."""

from pathlib import Path
from typing import Any

import yaml

from enat.errors import InputError
from enat.files import EXPECTED, MAX_SETTINGS, read_text, values_of


def read_settings(path: Path) -> dict[str, Any]:
    """Returns what the `config.yaml` of a run says, by name.

    Raises:
        InputError: for a file that is no YAML, nests too deep, holds itself or has no names.
    """
    text = read_text(path)
    try:
        settings = yaml.safe_load(text) or {}
    except RecursionError as error:
        raise InputError(f"{path} nests too deep; {EXPECTED}.") from error
    except Exception as error:  # of a type that does not fit its value, PyYAML raises many
        raise InputError(f"{path} is no YAML; {EXPECTED}.") from error
    values_of(settings, path, MAX_SETTINGS)  # aliases may hold themselves, or one another many times
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no options by name; {EXPECTED}.")
    return settings
