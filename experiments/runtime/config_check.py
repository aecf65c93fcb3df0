"""Checks a configuration against the constructors that it names, before anything is built."""

import inspect
import typing
from typing import Any

import torchmetrics
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError
from experiments.runtime.type_hints import check_value

# A configuration may name what is below these and nothing else, since `instantiate` calls whatever it is told to.
ALLOWED = ("enat.", "data.", "callbacks.", "experiments.", "torch.optim.", "lightning.pytorch.")
METRICS = "torchmetrics."  # of this, only the classes of metrics
# Keys with a meaning for Hydra, not for the constructor.
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
_ADDED = ("settings", "composition")  # arguments of tasks that `run_task` adds


def check_config(config: DictConfig, key: str) -> None:
    """Checks the node `key` of a configuration, and all that the node holds or refers to.

    Args:
        config: the whole configuration.
        key: of a mapping or a list, such as `module.net`.

    Raises:
        InputError: for a `_target_` that is not allowed, an option that its constructor does not have or that is
            missing, and a value of another type or out of range. The message names the option as the user types it.
    """
    node = OmegaConf.select(config, key)
    if OmegaConf.is_list(node):
        for index, element in enumerate(node):
            if OmegaConf.is_config(element):
                check_config(config, f"{key}[{index}]")
        return
    as_written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(as_written, dict)
    options = {str(name): text for name, text in as_written.items() if name not in _HYDRA_KEYS}
    hints = {}
    if "_target_" in as_written:
        hints = _hints_of_target(key, as_written["_target_"], list(options), bool(as_written.get("_partial_")))
    for name, text in options.items():
        is_reference = isinstance(text, str) and text.startswith("${") and text.endswith("}") and text.count("${") == 1
        option = text[2:-1] if is_reference else f"{key}.{name}"
        if OmegaConf.is_config(node[name]):
            check_config(config, option)
        hint = hints.get(name, Any)
        is_needed = hint is not Any and type(None) not in typing.get_args(hint)
        if is_needed and _gives_nothing(node[name]):
            raise InputError(
                f"metrics=none: there is nothing to compute {name} with; expected metrics=inception with a reference, "
                "such as reference=images reference.path=DIR (docs/evaluation.md)."
            )
        check_value(option, None if _gives_nothing(node[name]) else node[name], hint)


def _gives_nothing(node: Any) -> bool:
    """Says whether a node's target is a function that returns None, in place of what an option names."""
    if not OmegaConf.is_dict(node) or "_target_" not in node or node.get("_partial_"):
        return False
    return inspect.isfunction(called := get_object(node["_target_"])) and _type_hints(called).get("return") is type(
        None
    )


def _hints_of_target(key: str, target: str, options: list[str], is_partial: bool) -> dict[str, Any]:
    """Returns the type hints of a target's parameters, after a check of the options' names."""
    called = _import(key, target)
    signature = inspect.signature(called).parameters
    parameters, hints, takes_others = _parameters(called)
    unknown = sorted(set(options) - set(parameters))
    if unknown and not takes_others:
        raise InputError(f"{key}.{unknown[0]}: no such option; expected one of {', '.join(parameters)}.")
    for name, parameter in signature.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_required = is_named and parameter.default is parameter.empty
        if is_required and not is_partial and name not in (*options, *_ADDED):
            raise InputError(f"{key}.{name}: a value is missing; {target} needs it.")
    return {name: hints[name] for name in options if name in hints}


def _import(key: str, target: str) -> Any:
    """Imports the class or function that a `_target_` names.

    Raises:
        InputError: if it is not allowed, or can't be imported.
    """
    option = f"{key}._target_={target}"
    if not str(target).startswith((*ALLOWED, METRICS)):
        raise InputError(f"{option}: expected a name that starts with one of {', '.join((*ALLOWED, METRICS))}.")
    try:
        called = get_object(target)
    except Exception as error:
        package = _missing_package(error)
        if package and not str(target).startswith(package):
            sentence = f"needs the package {package}, which is not installed; the README says which extra brings it."
        else:
            sentence = "there is nothing of this name to import."
        raise InputError(f"{option}: {sentence}") from error
    # The origin counts too, since modules hold what they import: `enat.net.torch` is all of torch.
    origin = f"{getattr(called, '__module__', None)}."
    is_metric = inspect.isclass(called) and issubclass(called, torchmetrics.Metric)
    if not callable(called) or not origin.startswith((*ALLOWED, *([METRICS] if is_metric else []))):
        raise InputError(
            f"{option}: it comes from {origin[:-1]}; expected a class or function of {', '.join(ALLOWED)}, or a metric "
            f"of {METRICS}"
        )
    return called


def _missing_package(error: BaseException | None) -> str:
    """Returns the package whose absence caused an error; empty if the error had another cause."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    return (error.name or "").partition(".")[0] if error else ""


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
