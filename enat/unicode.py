"""Compares names that people type with names of files and classes, whatever Unicode form each of them has."""

import unicodedata
from collections.abc import Callable, Sequence


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), so that names that look the same are equal.

    In the folders that macOS or a ZIP file makes, `ä` may be a letter and an accent; a keyboard types one character.
    """
    return unicodedata.normalize("NFC", name)


def finder(names: Sequence[str]) -> Callable[[str], int | None]:
    """Returns a function that gives the index of a name in a list, or None if the list lacks it.

    An identical name comes before one that is equal in composed form only; of several of these, the first counts.
    """
    numbered = list(enumerate(names))[::-1]
    same = {name: place for place, name in numbered}
    alike = {composed(name): place for place, name in numbered}
    return lambda name: same.get(name, alike.get(composed(name)))
