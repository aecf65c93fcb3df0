"""The one exception that a user is meant to see, and texts as they are printed."""

import re
from numbers import Integral, Real

_CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # but for the end of a line


class InputError(ValueError):
    """Bad input. The message is one plain sentence: the option or file, its value, what was expected."""


def check_whole(name: str, value: object, least: int) -> None:
    """Refuses anything but an integer of at least `least`, of Python or of NumPy.

    Raises:
        InputError: naming the argument.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise InputError(f"{name}={value}: expected an integer of at least {least}.")


def check_share(name: str, value: object) -> None:
    """Refuses anything but a number from 0 to 1.

    Raises:
        InputError: naming the argument.
    """
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise InputError(f"{name}={value}: expected a share from 0 to 1.")


def counted(count: int, word: str, plural: str | None = None) -> str:
    """Returns a number of things, such as `1 image` or `2,000 images`; a plural without `s` has to be given."""
    return f"{count:,} {word if count == 1 else plural or f'{word}s'}"


def printable(text: str) -> str:
    """Writes control characters of a text as escapes, so that a name in a file can't steer a terminal."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def without_controls(name: str) -> str:
    """Returns a name in a file as it is; raises ValueError for one with control characters, or that is no text.

    Bytes of another encoding, as in a folder's name, are kept as Python keeps them.
    """
    if _CONTROLS.search(name) or "\n" in name:
        raise ValueError("it has control characters")
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError("it is no valid Unicode") from error
    return name
