"""Builds networks, samplers and tokenizers from the settings in a file, which may come from anybody.

Settings name classes and functions of a closed list. Before anything of the sizes that they name is made, the sizes are
compared with those of the weights in the file.
"""

import functools
import inspect
import math
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from enat import kernels, schedules
from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import infer_sizes
from enat.checkpoints.selection import state_of_file
from enat.checkpoints.weights import read_file, refuse_other_shapes
from enat.corrections import ConfidenceRemasking, LeastConfident, Remasking, no_correction
from enat.errors import InputError
from enat.net import ENAT
from enat.orders import Confidence, Entropy, EntropyBound, Fixed, Halton, Moment, Random
from enat.reuse import AllTokensReuse, LayerToLayerReuse, ReuseWithoutProjection
from enat.sampler import Sampler
from enat.tokenizers.diffusers import DiffusersTokenizer, TamingTokenizer
from enat.tokenizers.pixels import PixelTokenizer
from enat.tokenizers.quantizers import FSQ, LFQ, AveragedCodebook, Codebook
from enat.tokenizers.vqgan import VQGAN, ConvTokenizer
from enat.variants import NAT, ContextReuse, KeyValueReuse, SeparateBlock

# What the settings in a checkpoint may name, whatever module they say it is in. Nothing else is ever called.
NETS = (ENAT, NAT, ContextReuse, KeyValueReuse, AllTokensReuse, LayerToLayerReuse, ReuseWithoutProjection)
TOKENIZERS = (PixelTokenizer, VQGAN, DiffusersTokenizer, TamingTokenizer, ConvTokenizer)
QUANTIZERS = (FSQ, LFQ, AveragedCodebook, Codebook)
CLASSES = (*NETS, SeparateBlock, Sampler, *TOKENIZERS, *QUANTIZERS)
KERNELS = (kernels.sdpa, kernels.auto, kernels.xformers)
SCHEDULES = (
    *(schedules.arccos, schedules.constant, schedules.cosine, schedules.exponential, schedules.falling),
    *(schedules.interval, schedules.plateau, schedules.power_cosine, schedules.rising, schedules.square),
    *(schedules.square_root, schedules.PerStep),
)
ORDERS = (Confidence, Entropy, EntropyBound, Fixed, Halton, Moment, Random)
CORRECTIONS = (Remasking, ConfidenceRemasking, LeastConfident, no_correction)
BUILDABLE: dict[str, Any] = {kind.__name__: kind for kind in (*CLASSES, *KERNELS, *SCHEDULES, *ORDERS, *CORRECTIONS)}

# No settings of this project come near to these limits.
MAX_ITEMS = 10_000  # of a list, such as a position for each token
MAX_ITEMS_OF_OPTION = {"multipliers": 64, "levels": 64}
MAX_NUMBER = 2**24
MAX_OF_OPTION = {"num_steps": 10_000, "num_blocks": 64}
MAX_CODES = 2**20  # of a quantiser without weights, which lists its codes
MAX_WEIGHTS = 2**30  # of a tokenizer whose sizes can't be compared with those of a file
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def build_from_settings(node: Any) -> Any:
    """Builds what settings name, if it is one of `BUILDABLE`; what is no node of settings is returned as it is.

    Raises:
        InputError: for another name, and for options that are unknown, missing, of another type or out of range.
    """
    if isinstance(node, list):
        return [build_from_settings(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    name = str(node.get("_target_")).rpartition(".")[2]
    if name not in BUILDABLE:
        raise InputError(f"_target_={node.get('_target_')}: expected one of {', '.join(BUILDABLE)}.")
    options = {key: build_from_settings(value) for key, value in node.items() if not key.startswith("_")}
    called = BUILDABLE[name]
    is_partial = bool(node.get("_partial_"))
    signature = inspect.signature(called)
    try:
        (signature.bind_partial if is_partial else signature.bind)(**options)
        for option, value in options.items():
            _check_option(name, option, value, named(node[option]))
        return partial(called, **options) if is_partial else called(**options)
    except InputError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"{name}: its options are wrong: {str(error).partition(chr(10))[0]}.") from error


def find_part(settings: Any, name: str, path: Any) -> Mapping[str, Any]:
    """Returns one part of the settings of a checkpoint, such as `module.net`.

    Raises:
        InputError: if there is no such part.
    """
    node = settings
    for key in name.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        raise InputError(f"{path}: its settings are damaged: {name} is {node}.")
    return node


def named(value: Any) -> Any:
    """Returns a part of settings as the name of its class or function, with its options if it has any."""
    if not isinstance(value, Mapping):
        return value
    name = str(value.get("_target_")).rpartition(".")[2]
    options = {option: named(own) for option, own in value.items() if not option.startswith("_")}
    return {name: options} if options else name


def to_python(value: Any) -> Any:
    """Returns nested options with the numbers and arrays of NumPy and torch as those of Python."""
    if isinstance(value, Mapping):
        return {name: to_python(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [to_python(own) for own in value]
    return value.tolist() if hasattr(value, "tolist") else value


def refuse_huge(node: Any, path: Any, place: str = "settings") -> None:
    """Refuses settings with numbers or lists that are larger than any of this project.

    Raises:
        InputError: naming the option.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            refuse_huge(value, path, f"{place}.{key}")
    elif isinstance(node, list):
        most = MAX_ITEMS_OF_OPTION.get(place.rpartition(".")[2], MAX_ITEMS)
        if len(node) > most:
            raise InputError(f"{path}: {place} has {len(node)} items; expected at most {most}.")
        for value in node:
            refuse_huge(value, path, place)
    elif isinstance(node, int):
        limit = MAX_OF_OPTION.get(place.rpartition(".")[2], MAX_NUMBER)
        if abs(node) > limit:
            raise InputError(f"{path}: {place} is beyond {limit:,}, the most that is read from a file.")


def check_parts(settings: Mapping[str, Any], state: Mapping[str, Tensor], path: Any, with_tokenizer: bool) -> None:
    """Checks that the settings of a file fit the weights in it, before memory of the sizes in the settings is taken.

    Args:
        settings: of the file; its tokenizer names the file of its own weights, if it has any.
        state: the weights of the network, in our names.
        path: of the file, for errors.
        with_tokenizer: whether the tokenizer is checked, too. That of a folder is; that of a checkpoint is a file of
            the user's own choice.

    Raises:
        InputError: naming what does not fit.
    """
    net, sampler, tokenizer = (find_part(settings, name, path) for name in ("module.net", "sampler", "tokenizer"))
    refuse_huge(net, path, "module.net")
    refuse_huge(sampler, path, "sampler")
    check_net(net, state, path)
    if with_tokenizer:
        refuse_huge(tokenizer, path, "tokenizer")
        if tokenizer.get("weights") is not None:
            file = tokenizer["weights"]
            check_tokenizer(tokenizer, state_of_file(read_file(file), file)[0], path)


def check_net(settings: Mapping[str, Any], state: Mapping[str, Tensor], path: Any) -> None:
    """Checks that the settings of a network fit its weights, before memory of the sizes in the settings is taken.

    Args:
        settings: of the network.
        state: its weights, in our names.
        path: of the file, for errors.

    Raises:
        InputError: naming what does not fit.
    """
    name = str(settings.get("_target_")).rpartition(".")[2]
    if name in BUILDABLE and name not in {kind.__name__ for kind in NETS}:
        raise InputError(f"{path}: the checkpoint of a tokenizer; expected that of a network.")
    sizes = infer_sizes(state, path)
    given = dict(settings)
    if isinstance(given.get("encoder_depth"), int) and isinstance(given.get("decoder_depth"), int):
        given["depth"] = given["encoder_depth"] + given["decoder_depth"]
    for name, size in sizes.items():
        if given.get(name) != size:
            raise InputError(f"{path}: its settings have {name} {given.get(name)}, and its weights {size}.")
    with torch.device("meta"):
        net = build_from_settings(settings)
    if not isinstance(net, ENAT):
        raise InputError(f"{path}: its settings are damaged: module.net is {type(net).__name__}.")
    refuse_other_shapes(net.state_dict(), split_blocks(state, net.encoder_depth), path)


def check_tokenizer(settings: Mapping[str, Any], state: Mapping[str, Tensor], path: Any) -> None:
    """Checks that the settings of a tokenizer fit its weights, before memory of the sizes in the settings is taken.

    A `TamingTokenizer` takes its sizes from the weights, and compares them by itself.

    Raises:
        InputError: naming what does not fit.
    """
    parts = dict(settings)
    quantizer = parts.get("quantizer")
    if isinstance(quantizer, Mapping):
        _refuse_large_quantizer(quantizer, sum(tensor.numel() for tensor in state.values()), path)
        parts["quantizer"] = build_from_settings(quantizer)  # those of the library can't be made on the device meta
    if str(parts.get("_target_")).endswith(("VQGAN", "ConvTokenizer")):
        with torch.device("meta"):
            tokenizer = build_from_settings({**parts, "weights": None})
        refuse_other_shapes(tokenizer.state_dict(), state, path)


def check_unread_tokenizer(settings: Mapping[str, Any], path: Any) -> None:
    """Checks the sizes of a tokenizer that has no weights, or whose weights are read later, before memory is taken.

    Classes that this module does not know are the user's own, and are not checked.

    Raises:
        InputError: for sizes that are larger than any of this project.
    """
    parts = dict(settings)
    if str(parts.get("_target_")).rpartition(".")[2] not in {kind.__name__ for kind in TOKENIZERS}:
        return
    refuse_huge(parts, path, "tokenizer_settings")
    quantizer = parts.get("quantizer")
    if isinstance(quantizer, Mapping):
        _refuse_large_quantizer(quantizer, MAX_WEIGHTS // 4, path)
        parts["quantizer"] = build_from_settings(quantizer)  # those of the library can't be made on the device meta
    if str(parts.get("_target_")).endswith(("VQGAN", "ConvTokenizer")):
        with torch.device("meta"):
            tokenizer = build_from_settings({**parts, "_partial_": False, "weights": None})
        if (count := sum(tensor.numel() for tensor in tokenizer.state_dict().values())) > MAX_WEIGHTS:
            raise InputError(f"{path}: tokenizer_settings ask for {count:,} weights; expected at most {MAX_WEIGHTS:,}.")


def _refuse_large_quantizer(quantizer: Mapping[str, Any], num_weights: int, path: Any) -> None:
    """Refuses a quantiser with more codes than its file or its list can have; other types are refused later."""
    levels = quantizer.get("levels")
    sizes = [quantizer.get(name) for name in ("codebook_size", "code_width")]
    if isinstance(levels, list) and all(isinstance(level, int) for level in levels) and math.prod(levels) > MAX_CODES:
        raise InputError(f"{path}: settings.tokenizer.quantizer.levels={levels}: more than {MAX_CODES:,} codes.")
    if all(isinstance(size, int) for size in sizes) and math.prod(sizes) > num_weights:  # type: ignore[arg-type]
        raise InputError(f"{path}: settings.tokenizer.quantizer: a codebook of {sizes[0]} x {sizes[1]} is not in it.")


def _check_option(name: str, option: str, value: Any, given: Any) -> None:
    """Checks an option against the type hint of the class or function, and of its base classes.

    Raises:
        InputError: for a value of another type, or out of range.
    """
    hint = _hints(BUILDABLE[name]).get(option)
    if hint is None:
        return
    try:
        TypeAdapter(hint, config=STRICT).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        hint = _how_to_name(value, first["type"]) if isinstance(value, str) else ""
        raise InputError(f"{name}: {option}={given}: {first['msg']}{hint}.") from error


def _how_to_name(text: str, kind: str) -> str:
    """Says what to write in place of a text where a class or a function is expected, by the kind of the error."""
    examples = {"is_instance_of": Halton, "callable_type": schedules.cosine}
    if kind not in examples:
        return ""
    by_name = {name.lower(): part for name, part in BUILDABLE.items()}
    part = by_name.get(text.lower(), examples[kind])
    is_called = inspect.isclass(part) or part in CORRECTIONS
    node = {"_target_": f"{part.__module__}.{part.__name__}", **({} if is_called else {"_partial_": True})}
    return f"; expected settings such as {node}"


@functools.cache
def _hints(called: Any) -> dict[str, Any]:
    """Returns the type hints of the options of a class, those of its base classes among them, or of a function."""
    if not inspect.isclass(called):
        return typing.get_type_hints(called, include_extras=True)
    hints: dict[str, Any] = {}
    for kind in reversed(called.__mro__[:-1]):
        if "__init__" in vars(kind) and kind.__module__.startswith("enat."):
            hints |= typing.get_type_hints(vars(kind)["__init__"], include_extras=True)
    for name in ("sizes", "options", "return"):  # `**sizes` stands for the options of the base class
        hints.pop(name, None)
    return hints
