"""Checks a configuration against the constructors that it names, before anything is built."""

import inspect
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError

# A configuration may name these and nothing else: `instantiate` would call whatever it is told to.
ALLOWED = ("enat.", "data.", "callbacks.", "experiments.", "torch.optim.", "lightning.pytorch.")
# Keys with a meaning for Hydra, not for the constructor.
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}


def check_config(config: DictConfig, key: str) -> None:
    """Checks the node `key` and all that it holds or refers to.

    Raises:
        InputError: for a `_target_` that is not allowed, an option that its constructor lacks or misses, a value of
            another type; the message names the option as the user would type it.
    """
    node = OmegaConf.select(config, key)
    if OmegaConf.is_list(node):
        for index, element in enumerate(node):
            if OmegaConf.is_config(element):
                check_config(config, f"{key}[{index}]")
        return
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    written_values = {str(name): written for name, written in raw.items()}
    parameters = _parameters(key, written_values) if "_target_" in raw else {}
    for name, written in written_values.items():
        if name in _HYDRA_KEYS:
            continue
        reference = isinstance(written, str) and written.startswith("${") and written.endswith("}")
        option = written[2:-1] if reference and written.count("${") == 1 else f"{key}.{name}"
        value = node[name]
        if OmegaConf.is_config(value):
            check_config(config, option)
        hint = parameters.get(name, Any)
        if not _fits(value, hint):
            shown = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            raise InputError(f"{option}={shown}: expected {_describe(hint)}.")


def _missing_package(error: BaseException | None) -> str:
    """The package whose absence caused an error; empty if it had another cause."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    return (error.name or "").partition(".")[0] if error else ""


def _parameters(key: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Type hints of the parameters of a node's target, after a look at the names."""
    target = raw["_target_"]
    if not str(target).startswith(ALLOWED):
        raise InputError(f"{key}._target_={target}: expected a name that starts with one of {', '.join(ALLOWED)}.")
    try:
        called = get_object(target)
    except Exception as error:
        if (package := _missing_package(error)) and not str(target).startswith(package):
            sentence = f"needs the package {package}, which is not installed; the README says which extra brings it."
        else:
            sentence = "there is nothing of this name to import."
        raise InputError(f"{key}._target_={target}: {sentence}") from error
    if not f"{called.__module__}.".startswith((*ALLOWED, "torch.", "lightning.", "pytorch_lightning.")):
        raise InputError(f"{key}._target_={target}: it comes from {called.__module__}, which is not allowed.")
    signature = inspect.signature(called).parameters
    kinds = {parameter.kind for parameter in signature.values()}
    given = set(raw) - _HYDRA_KEYS
    unknown = given - set(signature)
    if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise InputError(f"{key}.{min(unknown)}: no such option; expected one of {', '.join(signature)}.")
    required = [
        name
        for name, p in signature.items()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and name != "settings"  # `run_task` adds it
    ]
    missing = [name for name in required if name not in given]
    if missing and not raw.get("_partial_"):
        raise InputError(f"{key}.{missing[0]}: a value is missing; {target} needs it.")
    try:
        hints = typing.get_type_hints(called.__init__ if inspect.isclass(called) else called)
    except (NameError, TypeError, AttributeError):  # a library's hints that only its type checker can read
        return {}
    return hints


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of the configuration has the type that a hint asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if OmegaConf.is_dict(value):
        return hint not in (bool, int, float, str, None, type(None)) and origin not in (list, tuple)
    if value is None:
        return hint in (None, type(None), Any)
    if OmegaConf.is_list(value):
        elements = arguments[0] if arguments else Any
        is_collection = inspect.isclass(origin) and issubclass(origin, Iterable) and not issubclass(origin, Mapping)
        return hint in (Any, list, tuple) or (is_collection and all(_fits(v, elements) for v in value))
    if hint in (bool, int, str):
        return type(value) is hint
    if hint is float:
        return type(value) in (int, float)
    if origin is typing.Literal:
        return value in arguments
    return hint is Any or isinstance(hint, typing.TypeVar)


def _describe(hint: Any) -> str:
    """A type hint in words that a user of the command line knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping):
        return f"a list of {_describe(arguments[0]).removeprefix('an ').removeprefix('a ')}s" if arguments else "a list"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)} with its _target_")
