"""Reads and writes folders of weights that can be passed on: settings, network, tokenizer and a model card.

A folder has `config.json`, `model.safetensors`, `tokenizer.safetensors` if the tokenizer has weights, and `README.md`.
Other files in it are never read. `config.json` has the sha256 of the files with weights (docs/python.md, The folder).
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,  # of typing, pydantic needs that of Python 3.12
)

from pydantic import ConfigDict
from typing_extensions import TypedDict

from enat.checkpoints.description import PlainText, Sha256, check_description, parse_json
from enat.errors import InputError
from enat.files import MODEL, exists, read_record, sha256_of, write_atomically

CONFIG = "config.json"
TOKENIZER = "tokenizer.safetensors"
CARD = "README.md"
FILES = (CONFIG, MODEL, TOKENIZER, CARD)
FORMAT_VERSION = 1
MAX_CONFIG_BYTES = 4_000_000  # class names are the most of it; those of ImageNet take 30,000


class FolderConfig(TypedDict):
    """The content of `config.json`; the settings are checked where they are used."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]

    format: Literal["enat"]
    format_version: int
    settings: dict[str, Any]
    net_sizes: dict[str, int]
    class_names: list[PlainText] | None
    weights_kind: Literal["EMA", "official", "raw"]
    files: dict[Literal["model.safetensors", "tokenizer.safetensors"], Sha256 | None]
    tokenizer_sha256: NotRequired[str]
    codes_sha256: NotRequired[str]
    licence: NotRequired[PlainText | None]
    recipe: NotRequired[dict[str, Any]]
    scores: NotRequired[dict[str, Any]]
    provenance: NotRequired[dict[str, Any]]


def config_of(path: str | Path) -> Path | None:
    """Returns the `config.json` of a folder of weights or of the `model.safetensors` in one; None for another file."""
    path = Path(path)
    if path.is_dir():
        return path / CONFIG
    config = path.parent / CONFIG
    return config if path.name == MODEL and config.exists() else None


def read_config(path: Path) -> dict[str, Any]:
    """Reads a `config.json`, and checks that the weights beside it are those that it was written for.

    Returns:
        What `enat.checkpoints.weights.read_file` returns beside the weights.

    Raises:
        InputError: if it is missing or damaged, if it names other files, or if the weights are missing or others.
    """
    if not path.is_file():
        raise InputError(
            f"weights={path.parent}: there is no {CONFIG} in this folder; expected a folder that task=export or "
            "Pipeline.save wrote, or a file with weights."
        )
    _refuse_links_out(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes, which no {CONFIG} of this project is.")
    config = parse_json(path.read_bytes(), path)
    if isinstance(config, dict) and config.get("format") == "enat" and config.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format_version {config.get('format_version')}; expected {FORMAT_VERSION}, the one that this "
            "version of enat reads."
        )
    check_description(config, FolderConfig, f"{path}: it is damaged, or of another program.")
    config = {name: config[name] for name in FolderConfig.__annotations__ if name in config}
    hashes = config.pop("files")
    if hashes.get(MODEL) is None:
        raise InputError(f"{path}: files.{MODEL}: expected a sha256.")
    _check_file(path.parent / MODEL, hashes[MODEL])
    settings = config["settings"]
    if isinstance(settings.get("tokenizer"), dict):
        for name in ("weights", "folder"):
            if settings["tokenizer"].get(name) is not None:
                raise InputError(
                    f"{path}: settings.tokenizer.{name}={settings['tokenizer'][name]}: expected null, since the "
                    f"tokenizer's weights are {TOKENIZER} beside it."
                )
    if TOKENIZER in hashes:
        config["tokenizer_file"] = {"name": TOKENIZER, "sha256": hashes[TOKENIZER]}
    return {**config, "model_sha256": hashes[MODEL]}


def with_found_tokenizer(content: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns a file's content with the path of the tokenizer that task=export wrote beside the file, if it did.

    The tokenizer of experiment=from_images is found too, if the folder of both was moved.

    Raises:
        InputError: if the tokenizer was left out, has gone, or is another one.
    """
    written = content.get("tokenizer_file")
    if written is None:
        return _with_moved_tokenizer(content, Path(path))
    if written["sha256"] is None:
        raise InputError(
            f"weights={path}: its tokenizer was left out; expected tokenizer.weights=FILE on the command line, or "
            "tokenizer=FILE in Python."
        )
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    file = folder / written["name"]
    _refuse_links_out(file)
    if not file.is_file() or _known_sha256(file) != written["sha256"]:
        raise InputError(
            f"weights={path}: expected {written['name']} beside it, as task=export has written it; copy the whole "
            "folder."
        )
    settings = content.get("settings") or {}
    if not isinstance(settings.get("tokenizer"), dict):
        raise InputError(f"weights={path}: its settings are damaged: tokenizer is {settings.get('tokenizer')}.")
    return {**content, "settings": {**settings, "tokenizer": {**settings["tokenizer"], "weights": str(file)}}}


def _with_moved_tokenizer(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the content of DIR/network/checkpoints/FILE with the path of DIR/tokenizer/checkpoints/last.ckpt."""
    settings = content.get("settings")
    tokenizer = settings.get("tokenizer") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or not isinstance(tokenizer, dict) or len(path.absolute().parents) < 3:
        return content
    found = found_beside(tokenizer, path.absolute().parents[2])
    return {**content, "settings": {**settings, "tokenizer": found}}


def found_beside(tokenizer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a tokenizer's settings with the path of its weights, if the folder of experiment=from_images was moved.

    Args:
        tokenizer: the settings. Weights that are where they say stay as they are.
        folder: DIR, which has the weights in DIR/tokenizer/checkpoints/last.ckpt if it is of experiment=from_images.
    """
    named = tokenizer.get("weights")
    moved = folder / "tokenizer" / "checkpoints" / "last.ckpt"
    if not isinstance(named, str) or exists(named) or not moved.is_file():
        return tokenizer
    return {**tokenizer, "weights": str(moved)} if Path(named).parts[-3:] == moved.parts[-3:] else tokenizer


def _check_file(path: Path, sha256: str) -> None:
    """Checks that a file with weights is the one that `config.json` was written for.

    Raises:
        InputError: if it is missing, a link out of the folder, or has another sha256.
    """
    _refuse_links_out(path)
    if not path.is_file():
        raise InputError(f"weights={path}: there is no such file; copy the whole folder.")
    if _known_sha256(path) != sha256:
        raise InputError(
            f"weights={path}: its sha256 is not the one in {CONFIG}, so that it is damaged or of another network; copy "
            "the whole folder again."
        )


def _refuse_links_out(path: Path) -> None:
    """Refuses a link that leads out of its folder, but for those of the cache of the Hugging Face Hub.

    Raises:
        InputError: for a link to a file elsewhere.
    """
    if not path.is_symlink():
        return
    folder, target = path.parent.resolve(), path.resolve()
    is_cached = folder.parent.name == "snapshots" and target.parent == folder.parent.parent / "blobs"
    if target.parent != folder and not is_cached:
        raise InputError(f"{path}: a link to a file in another folder; expected the file itself.")


def _known_sha256(path: Path) -> str:
    """Returns the sha256 of a file, which is computed again only after the file has changed."""
    status = path.stat()
    return _sha256_at(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=16)
def _sha256_at(path: Path, *_: int) -> str:
    return sha256_of(path)


def config_text(config: Mapping[str, Any], folder: Path) -> bytes:
    """Returns the text of a `config.json` that can be read again.

    Raises:
        InputError: naming what in it could not be read.
    """
    what = f"{folder}: can't be saved, since it could not be read again:"
    try:
        text = json.dumps(config, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} {error}; expected plain values, such as numbers and texts.") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise InputError(f"{what} {CONFIG} would have more than {MAX_CONFIG_BYTES:,} bytes.")
    check_description(parse_json(text, folder), FolderConfig, what)
    return text


def refuse_other_folder(folder: Path, names: Sequence[str] = (CONFIG, MODEL, TOKENIZER)) -> None:
    """Refuses to replace files that are not of a folder of weights.

    Args:
        folder: which there may not be.
        names: of the files that would be replaced.

    Raises:
        InputError: if there are such files, and no `config.json` of this program beside them.
    """
    config = folder / CONFIG
    try:
        found = [name for name in names if os.path.lexists(folder / name)]
        if not found or (config.is_file() and read_record(config, MAX_CONFIG_BYTES).get("format") == "enat"):
            return
    except InputError:
        found = [CONFIG]
    raise InputError(
        f"{folder}: {', '.join(found)} would be replaced, and may be of another program, since there is no {CONFIG} of "
        "this one; expected another folder."
    )


def write_folder(folder: Path, config: bytes, files: Mapping[str, bytes], card: str | None) -> None:
    """Writes a folder of weights; a reader finds the earlier content, the new one, or is told that they don't fit.

    The files are written into a folder beside it first.

    Args:
        folder: is made if there is none.
        config: the content of `config.json`, see `config_text`.
        files: the content of each file with weights, by name; of a tokenizer that is left out, nothing.
        card: the content of `README.md`; None for the one that is there.

    Raises:
        InputError: if the files can't be written, or would replace those of another program.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: this is a file; expected the name of a folder.")
    refuse_other_folder(folder)
    staged = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        staged.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(staged / name, content)
        write_atomically(staged / CONFIG, config)
        if card is not None:
            write_atomically(staged / CARD, card.encode())
        if not folder.exists():
            staged.rename(folder)
            return
        if TOKENIZER not in files:
            (folder / TOKENIZER).unlink(missing_ok=True)  # of an earlier network
        for path in sorted(staged.iterdir(), key=lambda path: path.name == CONFIG):  # config.json comes last
            path.replace(folder / path.name)
    except OSError as error:
        raise InputError(f"{folder}: can't be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
