"""Selects the weights that generate from the content of a file, of this program or of another one."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from enat.checkpoints.official import from_official, is_official
from enat.checkpoints.pickles import SAVE_ALONE
from enat.errors import InputError
from enat.files import values_of

# Names that other programs give to an average of the weights, which generates best, and where they put it beside its
# decay and the like.
AVERAGE = re.compile(r"(^|[^A-Za-z])(ema|average|avg|swa)|EMA|Ema|Average")
WRAPPERS = ("module", "state_dict", "model", "shadow")
COUNTER = "n_averaged"  # beside the weights in torch's AveragedModel


def is_state(part: Any) -> TypeGuard[dict[str, Tensor]]:
    """Says whether a part of a file is a dictionary of weights by name."""
    is_by_name = isinstance(part, dict) and len(part) > 0
    return is_by_name and all(isinstance(x, Tensor) and isinstance(name, str) for name, x in part.items())


def state_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights in a file's content, without what other programs put before their names.

    Such are `module.` of DataParallel, `_orig_mod.` of torch.compile, and any other prefix that all names share.

    Raises:
        InputError: if there are none, or an average of them that can't be used.
    """
    parts = [_average_in(content), content.get("state_dict"), content.get("model")]
    state = next((part for part in parts if is_state(part)), content)
    if not is_state(state):
        raise InputError(
            f"expected a dictionary of weights by name, found other things in it ({_shown(content)}); a program that "
            f"you trust can {SAVE_ALONE}."
        )
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items() if name != COUNTER}
    while len(state) > 1 and len({name.partition(".")[0] for name in state}) == 1:
        state = {name.partition(".")[2]: tensor for name, tensor in state.items()}
    return state


def _average_in(content: dict[str, Any]) -> dict[str, Tensor] | None:
    """Returns the part of a file's content that is an average of the weights by its name; None if there is none.

    Raises:
        InputError: if it can't be used, since other weights would be taken for it, and if there are several.
    """
    callbacks = content.get("callbacks")
    averages = {
        name: part
        for parts in (content, callbacks if isinstance(callbacks, dict) else {})
        for name, part in parts.items()
        if isinstance(name, str) and AVERAGE.search(name)
        if any(isinstance(value, Tensor) for value in values_of(part, name))
    }
    states = [_state_in(part) for part in averages.values()]
    if not states:
        return None
    if len(states) > 1 or states[0] is None:
        found = [f"{name} of {_shown(part)}" if isinstance(part, dict) else name for name, part in averages.items()]
        raise InputError(
            f"expected one average of the weights, by name, found {'; '.join(found)[:1000]}; a program that you trust "
            f"can {SAVE_ALONE}."
        )
    return states[0]


def _state_in(part: Any) -> dict[str, Tensor] | None:
    """Returns the weights in an average, or one level below, without plain values; None if there are none."""
    if not isinstance(part, dict):
        return None
    wrapped = (part[name] for name in WRAPPERS if is_state(part.get(name)))
    tensors = {name: x for name, x in part.items() if isinstance(x, Tensor)}
    state = next(wrapped, tensors)
    return state if is_state(state) else None


def _shown(names: Iterable[Any]) -> str:
    """Returns the first names of a part of a file."""
    listed = [str(name)[:100] for name in names]
    return ", ".join([*listed[:6], *(["..."] if len(listed) > 6 else [])]) or "nothing"


def select_state(content: dict[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Selects the weights that generate from a file's content.

    Returns:
        The weights, and their kind: EMA where there are such, else official or raw. Their names are those of
        `enat.net.ENAT`, but in files of older versions and official ones, blocks are in one numbering: see
        `enat.checkpoints.names.split_blocks`.

    Raises:
        InputError: if there are none.
    """
    callbacks = content.get("callbacks")
    if isinstance(callbacks, dict) and isinstance(callbacks.get("EMA"), dict) and "net" in callbacks["EMA"]:
        average = callbacks["EMA"]["net"]
        if not is_state(average):
            raise InputError("expected the average, callbacks.EMA.net, to be weights by name.")
        return average, "EMA"
    state = state_of(content)
    if is_official(state):
        return from_official(state), "official"
    return state, content.get("weights_kind", "raw" if _average_in(content) is None else "EMA")


def state_of_file(content: dict[str, Any], path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Selects the weights as `select_state` does; errors name the file.

    Raises:
        InputError: if there are none.
    """
    try:
        return select_state(content)
    except InputError as error:
        raise InputError(f"weights={path}: {error}") from error
