"""Checks what a file says of the weights in it. Nothing that it says is built or called here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # of typing, pydantic needs that of Python 3.12

from enat.errors import InputError, without_controls
from enat.files import values_of

# What a checkpoint says beside its weights.
DESCRIPTIONS = ("settings", "net_sizes", "class_names", "tokenizer_file", "tokenizer_sha256", "weights_kind")

PlainText = Annotated[str, AfterValidator(without_controls)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MAX_NAME = 255  # bytes of a file's name, on all common file systems
Options = dict[str, Any] | None


def _short(name: str) -> str:
    """Refuses a text that no file can have as its name."""
    if len(name.encode()) > MAX_NAME:
        raise ValueError(f"a file's name has at most {MAX_NAME} bytes")
    return name


FileName = Annotated[str, StringConstraints(pattern=r"^[\w-][\w.-]*$"), AfterValidator(_short)]


class TokenizerFile(TypedDict):
    """Names the tokenizer that belongs to a network, in the same folder; without a sha256, it was left out there."""

    name: FileName
    sha256: str | None


class Settings(TypedDict, total=False):
    """The parts of a run's settings that others read; what is in these is checked where it is used."""

    name: str
    task: Options
    module: Options
    tokenizer: Options
    sampler: Options
    data: Options
    metrics: Options
    reference: Options
    scores: Options
    protocols: Options
    callbacks: Options
    trainer: Options
    started_from: Options


BUILT = ("module", "tokenizer", "sampler", "metrics", "reference", "scores", "protocols")  # parts of the settings


class Description(TypedDict, total=False):
    """What a checkpoint may say beside its weights."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    settings: Settings
    net_sizes: dict[str, int]
    class_names: list[PlainText] | None
    tokenizer_file: TokenizerFile
    tokenizer_sha256: str
    codes_sha256: str
    weights_kind: Literal["EMA", "official", "raw"]


def check_description(content: Any, kind: Any, what: str) -> None:
    """Checks what a file says of itself against a type.

    Args:
        content: what it says.
        kind: the type, such as `Description`.
        what: begins the sentence about the first thing that is wrong.

    Raises:
        InputError: if something in it is of another type.
    """
    try:
        TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{what} {place}: {first['msg']}.") from error


def without_other_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of a file without `settings` that are of another program, and so have no parts of ours."""
    settings = content.get("settings")
    is_own = isinstance(settings, dict) and not {"module", "tokenizer"}.isdisjoint(settings)
    return content if is_own else {name: value for name, value in content.items() if name != "settings"}


def refuse_tokenizer(settings: Any, path: str | Path, expected: str) -> None:
    """Refuses the settings of a tokenizer where those of a network are needed.

    Args:
        settings: of the file.
        path: of the file.
        expected: says what the user can do.

    Raises:
        InputError: naming the file.
    """
    if not isinstance(settings, Mapping):
        return
    is_exported = settings.keys() == {"tokenizer"}
    if is_exported or str((settings.get("task") or {}).get("_target_")).endswith(".train_tokenizer"):
        raise InputError(f"weights={path}: the checkpoint of a tokenizer; expected {expected}.")


def check_names(part: Any, what: str) -> None:
    """Checks that the options in a part of settings have names.

    Args:
        part: of the settings.
        what: begins the sentence about the first thing that is wrong.

    Raises:
        InputError: for an option whose name is no text.
    """
    for node in [part, *values_of(part, what)]:
        for name in node if isinstance(node, Mapping) else ():
            if not isinstance(name, str):
                raise InputError(f"{what} settings: expected a text as the name of an option, and not {name!r}.")


def parse_json(text: str | bytes, path: str | Path) -> Any:
    """Returns what a JSON text says.

    Raises:
        InputError: for a text that is no JSON, has numbers that are none, or nests too deep.
    """

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        content = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: what it says of itself is damaged; expected JSON of a moderate depth.") from error
    values_of(content, path)
    return content
