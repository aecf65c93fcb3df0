"""Builds the objects that a configuration describes.

The configuration is resolved once to plain values. `plan` walks through these, checks every name and value, and returns
the calls to make; `build` makes these calls. So what was checked is what is built.
"""

import inspect
import re
import typing
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError
from experiments.runtime.options import CONF, choices_of
from experiments.runtime.targets import import_target, refuse_variables
from experiments.runtime.type_hints import check_value, takes_partial

MISSING = "???"  # as OmegaConf writes a value that has to be given
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.\[\]]*)\}")
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_ADDED = ("settings", "composition")  # arguments of tasks that `run_task` adds


@dataclass(frozen=True)
class Call:
    """A call of a class or function with the options of a configuration.

    Attributes:
        option: where the configuration has it, as the user types it.
        called: the class or function.
        arguments: by name; values may hold further calls.
        is_partial: whether it is built as a `functools.partial`, to be called later.
    """

    option: str
    called: Any
    arguments: dict[str, Any]
    is_partial: bool

    def gives_nothing(self) -> bool:
        """Says whether this calls a function that returns None, in place of what an option names."""
        returned = _type_hints(self.called).get("return") if inspect.isfunction(self.called) else Any
        return not self.is_partial and returned is type(None)


def plan(config: DictConfig, key: str) -> Any:
    """Checks the node `key` of a configuration and all that it holds or refers to, and returns what to build.

    Args:
        config: the whole configuration.
        key: of a mapping or a list, such as `module.net`.

    Returns:
        The node's values, with a `Call` for each mapping that has a `_target_`.

    Raises:
        InputError: for a `_target_` that is not allowed, an option that its constructor does not have or that is
            missing, and a value of another type or out of range. The message names the option as the user types it.
    """
    as_written = OmegaConf.to_container(config, resolve=False)
    resolved = OmegaConf.to_container(OmegaConf.select(config, key), resolve=True)
    return _plan(resolved, key, _part(as_written, key), as_written)


def build(planned: Any) -> Any:
    """Makes the calls that `plan` returned, the inner ones first.

    Raises:
        InputError: if a constructor refuses a value.
    """
    if isinstance(planned, list):
        return [build(value) for value in planned]
    if isinstance(planned, dict):
        return {name: build(value) for name, value in planned.items()}
    if not isinstance(planned, Call):
        return planned
    arguments = build(planned.arguments)
    if planned.is_partial:
        return partial(planned.called, **arguments)
    try:
        return planned.called(**arguments)
    except (InputError, MisconfigurationException, ValueError, TypeError, ImportError) as error:
        sentence = str(error)  # one that begins with an option of the call, such as `path=FILE`, gets its full name
        names_it = sentence.partition("=")[0] in planned.arguments and not planned.option.startswith("task.")
        raise InputError(f"{planned.option}{'.' if names_it else ': '}{sentence}") from error


def _plan(value: Any, option: str, as_written: Any, root: Any) -> Any:
    """Plans a resolved value.

    Args:
        value: plain, without references.
        option: its name, as the user types it.
        as_written: the same value with its references, which give the names of options and nothing else.
        root: the whole configuration with its references.
    """
    if isinstance(value, list):
        return [_plan(item, f"{option}[{i}]", _part(as_written, f"[{i}]"), root) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    has_target = "_target_" in value
    names = [name for name in value if not (has_target and name in ("_target_", "_partial_"))]
    hints: dict[str, Any] = {}
    called, is_partial = None, False
    if has_target:
        called, is_partial = import_target(option, value["_target_"]), value.get("_partial_", False)
        check_value(f"{option}._partial_", is_partial, bool)
        hints = _hints_of_call(option, called, names, is_partial)
        refuse_variables(option, value["_target_"], value)
    planned = {}
    for name in names:
        text = as_written.get(name) if isinstance(as_written, dict) else None
        reference = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
        place, written = (reference[1], _part(root, reference[1])) if reference else (f"{option}.{name}", text)
        planned[name] = _plan(value[name], place, written, root)
        _check(place, name, value[name], planned[name], hints.get(name, Any))
    return Call(option, called, planned, is_partial) if has_target else planned


def _check(option: str, name: str, value: Any, planned: Any, hint: Any) -> None:
    """Checks the value of an option against the type hint of its parameter."""
    if value == MISSING:
        raise InputError(f"{option}: a value is missing; expected {option}=VALUE.")
    if isinstance(planned, Call) and planned.is_partial and not takes_partial(hint):
        raise InputError(f"{option}._partial_=true: expected false, since {name} is used as it is and not called.")
    gives_nothing = isinstance(planned, Call) and planned.gives_nothing()
    if gives_nothing and hint is not Any and type(None) not in typing.get_args(hint):
        raise InputError(
            f"metrics=none: there is nothing to compute {name} with; expected metrics=inception with a reference, "
            "such as reference=images reference.path=DIR (docs/evaluation.md)."
        )
    try:
        check_value(option, None if gives_nothing else value, hint)
    except InputError:
        group = re.split(r"[._]", option)[-1]  # sampler.mask_schedule is a choice of conf/schedule
        if value is not None or not (choices := choices_of(CONF / group)):
            raise
        place = group if group == option else f"{group}@{option}"
        raise InputError(f"{option}=null: expected {place}=NAME with one of {', '.join(choices)}.") from None


def _part(node: Any, key: str) -> Any:
    """Returns a part of plain values by its name, such as `module.net` or `[0]`; None if there is no such part."""
    for name in key.replace("[", ".").replace("]", "").strip(".").split("."):
        if isinstance(node, dict):
            node = node.get(name)
        elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def _hints_of_call(option: str, called: Any, names: list[str], is_partial: bool) -> dict[str, Any]:
    """Returns the type hints of the parameters that are given, after a check of the options' names."""
    signature = inspect.signature(called).parameters
    parameters, hints, takes_others = _parameters(called)
    for name in names:
        if name not in parameters and not (takes_others and name.isidentifier() and not name.startswith("_")):
            raise InputError(
                f"{option}.{name}: no such option; expected one of {', '.join(parameters)}. If the experiment sets it "
                f"for another choice, ~{option}.{name} leaves it out."
            )
    for name, parameter in signature.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_required = is_named and parameter.default is parameter.empty
        if is_required and not is_partial and name not in (*names, *_ADDED):
            raise InputError(f"{option}.{name}: a value is missing; {called.__qualname__} needs it.")
    return {name: hints[name] for name in names if name in hints}


def _parameters(called: Any) -> tuple[list[str], dict[str, Any], bool]:
    """Returns the parameters' names, their type hints, and whether any other name is accepted too.

    A constructor that takes `**options` hands them to the constructor of its base class, whose parameters count then.
    """
    functions = [called]
    if inspect.isclass(called):
        bases = [base for base in called.__mro__ if base is not object]
        functions = [vars(base)["__init__"] for base in bases if "__init__" in vars(base)]
    names: dict[str, None] = {}
    hints: dict[str, Any] = {}
    for function in functions:
        parameters = inspect.signature(function).parameters
        kinds = {name: parameter.kind for name, parameter in parameters.items() if name != "self"}
        names |= {name: None for name, kind in kinds.items() if kind not in _VARIABLE}
        hints = _type_hints(function) | hints
        if inspect.Parameter.VAR_KEYWORD not in kinds.values():
            return list(names), hints, False
    return list(names), hints, bool(functions)


def _type_hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # a library's hints that only its type checker can read
        return {}
