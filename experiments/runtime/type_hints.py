"""Says whether a value of the configuration fits a type hint, and describes the hint to a user of the command line.

Ranges stand in the hints, as `Annotated[int, Ge(1)]` with the classes of the package annotated_types. A `float` is a
finite number, unless a bound of the hint is infinite itself: `Annotated[float, Interval(ge=0, le=math.inf)]`.
"""

import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from annotated_types import BaseMetadata, GroupedMetadata
from omegaconf import OmegaConf

# Limits are named as the fields of annotated_types are: a bound, a factor or a length by `ge`, `multiple_of` and so on.
Limits = Mapping[str, Any]
NO_LIMITS: Limits = {}
RANGES: dict[str, Callable[[Any, Any], bool]] = {
    "ge": operator.ge,
    "gt": operator.gt,
    "le": operator.le,
    "lt": operator.lt,
    "multiple_of": lambda value, factor: value % factor == 0,
}
LENGTHS = ("min_length", "max_length")

_UNIONS = (typing.Union, types.UnionType)
_NOUNS = {  # one, and several
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "values that are true or false"),
    str: ("a text", "texts"),
    type(None): ("null", "nulls"),
}


def fits(value: Any, hint: Any, limits: Limits = NO_LIMITS) -> bool:
    """Says whether a value has the type that a hint asks for, and is in its range.

    The values of a mapping without a `_target_` are not looked at; their own hint is `values_hint(hint)`.

    Args:
        value: of the configuration, with interpolations resolved.
        hint: as of `typing.get_type_hints(..., include_extras=True)`.
        limits: ranges and lengths that hold in addition.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if origin is Annotated:
        return fits(value, arguments[0], {**limits, **_limits(arguments[1:])})
    if origin in _UNIONS:
        return any(fits(value, argument, limits) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if value is None or hint is type(None):
        return value is None and hint is type(None)
    if OmegaConf.is_dict(value):
        return _is_mapping(hint) or ("_target_" in value and hint not in _NOUNS and not _is_list(hint))
    if OmegaConf.is_list(value):
        return _is_list(hint) and _has_length(value, limits) and _elements_fit(value, hint)
    if hint in (int, float):
        return type(value) in (int, hint) and _is_in_range(value, limits)
    return hint in (bool, str) and type(value) is hint and (hint is bool or _has_length(value, limits))


def values_hint(hint: Any) -> Any:
    """Returns the hint of each value of a mapping; `Any` where the hint allows no mapping, or says nothing of them."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return values_hint(arguments[0])
    if origin in _UNIONS:
        return next((values_hint(argument) for argument in arguments if _is_mapping(argument)), Any)
    return arguments[1] if _is_mapping(hint) and arguments else Any


def _limits(metadata: Iterable[Any]) -> dict[str, Any]:
    """Collects the limits of an `Annotated` hint.

    Raises:
        TypeError: for a constraint that `fits` does not check, such as a predicate.
    """
    limits: dict[str, Any] = {}
    for item in metadata:
        if not isinstance(item, BaseMetadata | GroupedMetadata):
            continue  # not of annotated_types
        fields = asdict(item)  # type: ignore[call-overload]
        if unchecked := set(fields) - {*RANGES, *LENGTHS}:
            raise TypeError(f"{item}: the check of the configuration knows no {min(unchecked)}.")
        limits |= {name: limit for name, limit in fields.items() if limit is not None}
    return limits


def _is_in_range(value: float, limits: Limits) -> bool:
    ranges = {name: limit for name, limit in limits.items() if name in RANGES}
    is_finite = type(value) is int or math.isfinite(value)
    return (is_finite or math.inf in map(abs, ranges.values())) and all(
        RANGES[name](value, limit) for name, limit in ranges.items()
    )


def _has_length(value: Any, limits: Limits) -> bool:
    return limits.get("min_length", 0) <= len(value) <= limits.get("max_length", math.inf)


def _is_mapping(hint: Any) -> bool:
    kind = typing.get_origin(hint) or hint
    return inspect.isclass(kind) and issubclass(kind, Mapping)


def _is_list(hint: Any) -> bool:
    """Says whether a hint is of a list, tuple, sequence or the like, and not of a class that can also be iterated."""
    kind = typing.get_origin(hint) or hint
    is_builtin = getattr(kind, "__module__", "") in ("builtins", "collections.abc") and kind is not str
    return is_builtin and inspect.isclass(kind) and issubclass(kind, Iterable) and not _is_mapping(hint)


def _element_hints(hint: Any, length: int) -> list[Any]:
    """Returns the hint of each element of a list; as many as a tuple's hint has, whatever the list's length."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and arguments[-1] is not Ellipsis:
        return list(arguments)
    return [arguments[0] if arguments else Any] * length


def _elements_fit(value: Any, hint: Any) -> bool:
    hints = _element_hints(hint, len(value))
    return len(hints) == len(value) and all(fits(*pair) for pair in zip(value, hints, strict=True))


def describe(hint: Any) -> str:
    """Describes a type hint in words that a user of the command line knows, such as `an integer of at least 1`."""
    return _join(_alternatives(hint, NO_LIMITS, False))


def _join(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _alternatives(hint: Any, limits: Limits, plural: bool) -> list[str]:
    """Describes the alternatives of a hint, in the singular or the plural."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _alternatives(arguments[0], {**limits, **_limits(arguments[1:])}, plural)
    if origin in _UNIONS:
        return [words for argument in arguments for words in _alternatives(argument, limits, plural)]
    if origin is Literal:
        return [str(argument) for argument in arguments]
    if hint is float:
        infinities = [str(limit) for limit in limits.values() if abs(limit) == math.inf]
        return [f"{_NOUNS[float][plural]}{_describe_numbers(limits)}", *infinities]
    if hint is int:
        return [f"{_NOUNS[int][plural]}{_describe_integers(limits)}"]
    if hint is str and (length := _describe_length(limits)):
        return [f"{_NOUNS[str][plural]} of {length} characters"]
    if hint in _NOUNS:
        return [_NOUNS[hint][plural]]
    if _is_mapping(hint):
        return ["options by name"]
    if _is_list(hint):
        return [f"{('a list', 'lists')[plural]}{_describe_elements(hint, limits)}"]
    name = getattr(hint, "__name__", str(hint))
    article = "" if plural else "an " if name[0] in "AEIOU" else "a "
    return [f"{article}{name}{'s' * plural} with {('its', 'their')[plural]} _target_"]


def _describe_elements(hint: Any, limits: Limits) -> str:
    hints = _element_hints(hint, 1)
    if len(set(hints)) > 1:
        return f" of {len(hints)} values: {', '.join(map(describe, hints))}"
    length = _describe_length({"min_length": len(hints), "max_length": len(hints)} if hints[1:] else limits)
    if hints == [Any]:
        return f" of {length} values" if length else ""
    return " of " + f"{length} {_join(_alternatives(hints[0], NO_LIMITS, True))}".strip()


def _describe_length(limits: Limits) -> str:
    """Describes how many elements there may be; empty where any number may be."""
    shortest, longest = limits.get("min_length", 0), limits.get("max_length")
    if longest is None:
        return {0: "", 1: "one or more"}.get(shortest, f"{shortest} or more")
    if shortest == longest:
        return str(longest)
    return f"{shortest} to {longest}" if shortest else f"at most {longest}"


def _describe_integers(limits: Limits) -> str:
    """Describes the range of an integer, with both ends included."""
    lows = [limits[name] + more for name, more in (("ge", 0), ("gt", 1)) if name in limits]
    highs = [limits[name] - less for name, less in (("le", 0), ("lt", 1)) if name in limits]
    included = {"ge": max(lows)} if lows else {}
    included |= {"le": min(highs)} if highs else {}
    return _describe_numbers({**included, **{name: limits[name] for name in limits if name == "multiple_of"}})


def _describe_numbers(limits: Limits) -> str:
    """Describes the range of a number: ` of at least 1`, ` from 0 to 1`, ` above 0 and below 1` and so on."""
    shown = {name: str(limit) if type(limit) is int else f"{limit:g}" for name, limit in limits.items()}
    finite = {name for name in limits if name in RANGES and abs(limits[name]) != math.inf}
    if {"ge", "le"} <= finite:
        words = f" from {shown['ge']} to {shown['le']}"
    else:
        openings = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        words = " and".join(f" {opening} {shown[name]}" for name, opening in openings.items() if name in finite)
        words = f" of{words}" if words.startswith(" at") else words
    factor = f" divisible by {shown['multiple_of']}" if "multiple_of" in finite else ""
    return f"{words}{' and' * bool(words and factor)}{factor}"
