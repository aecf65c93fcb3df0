"""Reads weights from a file without running anything in it: a checkpoint, an official one, or safetensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from enat.checkpoints.description import (
    BUILT,
    DESCRIPTIONS,
    Description,
    check_description,
    check_names,
    parse_json,
    without_other_settings,
)
from enat.checkpoints.folder import config_of, read_config
from enat.checkpoints.limits import has_numbers, refuse_claims
from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import infer_sizes
from enat.checkpoints.pickles import load_pickle
from enat.checkpoints.selection import state_of_file
from enat.errors import InputError
from enat.files import MAX_SETTINGS, by_full_name, sha256_of, values_of, weights_file
from enat.net import ENAT
from enat.variants import INTERACTIONS

WEIGHTS_OF = {"ContextReuse": "NAT"}  # variants that take the weights of another one, whose name is the value


def read_file(path: str | Path) -> dict[str, Any]:
    """Reads the content of a checkpoint, or of a folder of weights. Nothing in it is executed.

    Raises:
        InputError: if the file is missing, broken, or a pickle that wants to run code.
    """
    file, described = _find_file(path)
    content = _read_weights(file)
    if not isinstance(content, dict):
        raise InputError(f"weights={path}: expected a dictionary of weights, found {type(content).__name__}.")
    if not all(isinstance(name, str) for name in content):
        raise InputError(f"weights={path}: expected a dictionary of weights by name, found other keys in it.")
    content = without_other_settings({**content, **described})
    values_of(content.get("settings"), f"weights={path}", MAX_SETTINGS)
    refuse_claims(values_of(content, f"weights={path}"), file)
    damaged = f"weights={path}: what it says of itself is damaged."
    check_description(content, Description, damaged)
    for part in BUILT:
        check_names(content.get("settings", {}).get(part), damaged)
    return content


def _find_file(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Returns the file with the weights, and what the `config.json` of a folder of weights says of them."""
    try:
        config = config_of(path)
        described = {} if config is None else read_config(config)
        file = weights_file(path)
        if not file.is_file():
            raise InputError(f"weights={path}: there is no such file.")
    except OSError as error:
        raise InputError(f"weights={path}: can't be read: {error.strerror}.") from error
    return file, described


def _read_weights(path: Path) -> Any:
    """Reads a file with weights.

    Raises:
        InputError: if it is broken, or a pickle that wants to run code.
    """
    with path.open("rb") as file:
        begin = file.read(9)
    is_safetensors = begin[4:] == b"\0\0\0\0{"  # 8 bytes say how long the JSON that follows is
    if not is_safetensors and path.suffix != ".safetensors":
        return load_pickle(path)
    try:
        return _read_safetensors(path)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        is_other = begin.startswith((b"PK", b"\x80"))  # an archive or a pickle
        hint = " It may be one of torch.save, whose name has to end otherwise, such as in .ckpt." if is_other else ""
        raise InputError(f"weights={path}: the file is truncated or no checkpoint.{hint}") from error


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Reads weights and, from the metadata of files that older versions exported, what belongs to them."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    described = {name: parse_json(metadata[name], f"weights={path}") for name in DESCRIPTIONS if name in metadata}
    return {"state_dict": load_file(path), **described}


def without_loss(content: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the networks of the loss, which files of taming-transformers and of our own training also hold."""
    return {
        name: without_loss(part) if isinstance(part, dict) else part
        for name, part in content.items()
        if not str(name).startswith("loss.")
    }


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, hint: str = "") -> None:
    """Loads a state dict that must have exactly the names and shapes of the module.

    Args:
        module: gets the weights.
        state: the weights by name.
        path: of their file, for errors.
        hint: says what to do about names and shapes that do not fit.

    Raises:
        InputError: naming the first weight that differs.
    """
    own = module.state_dict()
    refuse_other_shapes(own, state, path, hint)
    for name in own:
        if reason := _unusable(state[name], own[name]):
            raise InputError(f"{path}: weight {name} {reason}.")
    module.load_state_dict(state)


def refuse_other_shapes(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | Path, hint: str = ""
) -> None:
    """Refuses weights whose names or shapes are not those of a module, which may be on the device `meta`.

    Raises:
        InputError: naming the first weight that differs.
    """
    for name in [*own, *state]:
        if name not in state or name not in own:
            raise InputError(f"{path}: weight {name} is {'missing' if name in own else 'unknown'}. {hint}".rstrip())
        if own[name].shape != state[name].shape:
            shapes = f"{list(state[name].shape)} instead of {list(own[name].shape)}"
            raise InputError(f"{path}: weight {name} has shape {shapes}. {hint}".rstrip())


def _unusable(tensor: Tensor, own: Tensor) -> str | None:
    """Says why a tensor can't become a weight; None if it can."""
    if not has_numbers(tensor):
        kind = "sparse" if tensor.layout != torch.strided else "quantised or without content"
        return f"is {kind}; expected floating-point numbers, all of them"
    if not tensor.is_floating_point() and tensor.dtype != own.dtype:
        return f"is of type {tensor.dtype}; expected floating-point numbers"
    if not tensor.to(own.dtype).isfinite().all():
        return "holds NaN or infinite values"
    return None


def refuse_other_network(
    net: ENAT, content: Mapping[str, Any], path: str | Path, names: Sequence[str], hint: str
) -> None:
    """Refuses a file that says that its network is another one in what the shapes of its weights do not show.

    Args:
        net: gets the weights.
        content: of the file.
        path: of the file, for the error.
        names: of what is compared: sizes, such as `num_heads`, and `variant` and `interactions`.
        hint: says what to do.

    Raises:
        InputError: naming what differs.
    """
    before = dict(content.get("net_sizes", {}))
    trained = by_full_name(content.get("settings") or {})
    if "module.net._target_" in trained:
        variant = trained["module.net._target_"]
        before["variant"] = WEIGHTS_OF.get(variant, variant)
        interactions = trained.get("module.net.interactions")  # an empty list is none of them
        before["interactions"] = sorted(INTERACTIONS if interactions is None else interactions)
    kept = sorted(getattr(net, "interactions", INTERACTIONS))
    variant = type(net).__name__
    now = {**net.sizes, "variant": WEIGHTS_OF.get(variant, variant), "interactions": kept}
    for name in names:
        if name in before and before[name] != now[name]:
            raise InputError(f"weights={path}: its network has {name} {before[name]}, this one {now[name]}. {hint}")


def load_weights(net: ENAT, path: str | None) -> dict[str, Any]:
    """Loads a file's weights into a network of the same size, and puts it in evaluation mode.

    Returns:
        Where the weights come from: `weights` (the path), `kind` (EMA, official or raw) and `sha256`.

    Raises:
        InputError: if no file is given, it can't be read, or it is of a network of another size.
    """
    if path is None:
        raise InputError(
            "weights=null: expected weights=FILE, a checkpoint such as outputs/digits/checkpoints/last.ckpt."
        )
    content = read_file(path)
    state, kind = state_of_file(content, path)
    sizes = infer_sizes(state, f"weights={path}") | content.get("net_sizes", {})
    expected = net.sizes | {"depth": len(net.blocks)}
    wrong = [f"{name} {size} instead of {expected[name]}" for name, size in sizes.items() if size != expected[name]]
    if wrong:
        raise InputError(
            f"weights={path}: the checkpoint has {', '.join(wrong)}; choose the experiment it was trained with."
        )
    hint = "Choose the variant it was trained with."
    refuse_other_network(net, content, path, ("variant", "interactions"), hint)
    if unknown := [f"{name}={size}" for name, size in net.sizes.items() if name not in sizes]:
        print(f"{path} does not say its {', '.join(unknown)}; these are the configuration's.")
    load_exactly(net, split_blocks(state, net.encoder_depth), path, hint)
    net.eval()
    return {"weights": str(path), "kind": kind, "sha256": sha256_of(weights_file(path))}
