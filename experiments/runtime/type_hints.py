"""Checks values of the configuration against type hints, and says in plain words what was expected.

Pydantic checks the values, in its strict mode for JSON. It reads ranges such as `Annotated[int, Ge(1)]`, which stand
inside of unions: `Annotated[int, Ge(1)] | None`. Numbers have to be finite, unless the hint has pydantic's
`AllowInfNan(True)`.
"""

import functools
import inspect
import json
import operator
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import ConfigDict, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from enat.errors import InputError

STRICT = ConfigDict(strict=True, allow_inf_nan=False)
WORDS = {  # for these types of errors; the others keep pydantic's own words
    "int_type": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "options by name",
    "missing": "more items",
}
_KNOWN_TO_PYDANTIC = (Any, Ellipsis, Literal, bool, float, int, str)


def check_value(option: str, value: Any, hint: Any) -> None:
    """Checks the value of one option.

    Args:
        option: the option's name, as the user types it.
        value: a value of the configuration, or a node.
        hint: a type hint, as `typing.get_type_hints(..., include_extras=True)` returns it.

    Raises:
        InputError: if the value, or an item of it, does not fit the type hint.
    """
    plain: Any = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    try:
        TypeAdapter(_hint_for_json(hint), config=STRICT).validate_json(json.dumps(plain))
    except ValidationError as refusal:
        errors = [(_place(plain, error["loc"]), _expected(error)) for error in refusal.errors()]
        place = max((place for place, _ in errors), key=len)  # in a union, of the member that fits best
        name = option + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
        wrong = functools.reduce(operator.getitem, place, plain)
        alternatives = list(dict.fromkeys(words for found_at, found in errors if found_at == place for words in found))
        expected = " or ".join([*filter(None, [", ".join(alternatives[:-1])]), alternatives[-1]])
        hint_to_quote = ""
        may_be_name = isinstance(wrong, bool | float) or (wrong is None and "an integer" in alternatives)
        if may_be_name and "a text" in alternatives:
            quoted = f'{option}=["true"]' if place and isinstance(place[-1], int) else f'{name}="true"'
            hint_to_quote = f"; a name such as true, null or 1e3 needs quotes, '{quoted}'"
        raise InputError(f"{name}={'null' if wrong is None else wrong}: expected {expected}{hint_to_quote}.") from None


def _hint_for_json(hint: Any) -> Any:
    """Rewrites a hint for values of a configuration, where a node with a `_target_` stands for an object."""
    kind = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if kind in _KNOWN_TO_PYDANTIC or isinstance(hint, typing.TypeVar):
        return hint
    if kind is Annotated:
        return Annotated[(_hint_for_json(arguments[0]), *arguments[1:])]
    if kind is type(None):
        return _only("null", lambda value: value is None)  # pydantic's errors would not mention it
    members = tuple(map(_hint_for_json, arguments))
    if kind in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, members)
    if kind is tuple and members:
        return types.GenericAlias(tuple, members)
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return types.GenericAlias(dict, members or (str, Any))
    if inspect.isclass(kind) and issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return types.GenericAlias(list, members[:1] or Any)
    name = getattr(hint, "__name__", str(hint))
    article = "an" if name[0] in "AEIOU" else "a"
    return _only(f"{article} {name} with its _target_", lambda value: isinstance(value, dict) and "_target_" in value)


def takes_partial(hint: Any) -> bool:
    """Says whether a parameter may take a `functools.partial`: not where its hint names classes of ours or of torch."""
    if isinstance(hint, typing.TypeVar) or hint in (Any, partial):
        return True
    kind, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Annotated:
        return takes_partial(arguments[0])
    if kind in (typing.Union, types.UnionType):
        return any(map(takes_partial, arguments))
    is_function = kind in (partial, Callable) or getattr(kind, "_is_protocol", False)
    return is_function or not inspect.isclass(kind)


def _only(words: str, fits: Callable[[Any], bool]) -> Any:
    """Returns a hint for the values that pass a test; `words` describe them."""

    def check(value: Any) -> Any:
        if not fits(value):
            raise PydanticCustomError("other", "{words}", {"words": words})
        return value

    return Annotated[Any, PlainValidator(check)]


def _place(value: Any, location: tuple[int | str, ...]) -> list[int | str]:
    """Returns the indices and keys that lead to an error, without pydantic's labels for the members of unions."""
    place = []
    for part in location:
        if part in (range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()):
            place.append(part)
            value = value[part]
    return place


def _expected(error: ErrorDetails) -> list[str]:
    """Says in plain words which alternatives a value should have been."""
    if error["type"] == "literal_error":
        return re.split(", | or ", error["ctx"]["expected"].replace("'", ""))
    message = re.sub("^.* should (be|have) | after validation.*", "", error["msg"])
    return [WORDS.get(error["type"], re.sub("^(?=greater|less)", "a value ", message))]
