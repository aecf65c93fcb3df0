"""Compares names that people type with names of files and classes, which may have their letters in several parts."""

import unicodedata
from collections.abc import Callable, Sequence


def composed(name: str) -> str:
    """Returns a name in Unicode's composed form (NFC), so that names that look the same are equal.

    The folders that macOS or a ZIP file makes may have `ä` as two signs, and a keyboard types one.
    """
    return unicodedata.normalize("NFC", name)


def finder(names: Sequence[str]) -> Callable[[str], int | None]:
    """Returns a function that gives the index of a name: of the same signs if it is there, or else of the same looks.

    Of several, it is the first. The function returns None for a name that is not there.
    """
    numbered = list(enumerate(names))[::-1]
    same = {name: place for place, name in numbered}
    alike = {composed(name): place for place, name in numbered}
    return lambda name: same.get(name, alike.get(composed(name)))
