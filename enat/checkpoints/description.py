"""Checks what a file says of the weights in it. Nothing that it says is built or called here."""

import json
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
FileName = Annotated[str, StringConstraints(pattern=r"^[\w-][\w.-]*$")]


class TokenizerFile(TypedDict):
    """Names the tokenizer that belongs to a network, in the same folder; without a sha256, it was left out there."""

    name: FileName
    sha256: str | None


class Description(TypedDict, total=False):
    """What a checkpoint may say beside its weights; the settings are checked where they are used."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    net_sizes: dict[str, int]
    class_names: list[PlainText] | None
    tokenizer_file: TokenizerFile
    tokenizer_sha256: str
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
