"""task=export: writes the weights of a checkpoint, without the state of training, as a folder to pass on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from enat.building import build_from_settings
from enat.checkpoints.folder import CONFIG, TOKENIZER, refuse_other_folder, with_found_tokenizer
from enat.checkpoints.official import to_official
from enat.checkpoints.saving import describe, save_folder, stored
from enat.checkpoints.weights import load_weights, read_file
from enat.errors import InputError
from enat.files import MODEL, read_record, sha256_of, write_atomically
from enat.layers import Block
from enat.net import ENAT
from enat.tokenizers.base import Tokenizer
from experiments.runtime.provenance import commit

OFFICIAL = "nnet_ema.pth"
REPLACED = (CONFIG, MODEL, TOKENIZER, OFFICIAL, "results.json", "config.yaml")  # in the folder
SCORED = ("scores", "seed", "versions")  # of the results of a run, what a model card has of them


def export(
    net: ENAT,
    weights: str | None,
    with_tokenizer: bool,
    half: bool,
    licence: str | None,
    official: bool,
    output: str,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the EMA weights of a checkpoint as a folder that can be passed on, and as an official file.

    `enat.load` and every task that takes `weights=` read the folder. A variant of ENAT has no official file.

    Args:
        net: a network of the checkpoint's sizes.
        weights: a checkpoint of this project, or an official one.
        with_tokenizer: whether the tokenizer is written too, so that the folder is all that is needed to draw images.
        half: whether the weights are stored in float16, which halves the files.
        licence: of the weights, for the model card.
        official: whether the official file is written, where there can be one.
        output: the folder.
        settings: the whole configuration, which says the tokenizer and the sampler.

    Returns:
        The files, the sha256 of each, and where the weights come from.

    Raises:
        InputError: for a weight beyond float16, an unreadable tokenizer, or files of others that would be replaced.
    """
    folder = Path(output)
    refuse_other_folder(folder, REPLACED)
    source = load_weights(net, weights)
    content = read_file(str(weights))
    if with_tokenizer and settings["tokenizer"].get("weights") is None:
        content = with_found_tokenizer(content, str(weights))  # or says that it was left out
    description = describe(content, str(weights)) | {"weights_kind": source["kind"]}
    parts = {name: settings[name] for name in ("sampler", "tokenizer")}
    description["settings"] = {**(description.get("settings") or settings), **parts}
    description |= {name: value for name, value in {"licence": licence}.items() if value}
    description.setdefault("scores", _known_scores(Path(str(weights)), source["sha256"]))
    description["provenance"] = {"commit": commit(), **description["provenance"]}
    tokenizer = _tokenizer_of(settings["tokenizer"], with_tokenizer)
    if tokenizer is not None and tokenizer.has_other_codes(content):
        print(f"Note: {weights} was trained on the tokens of another tokenizer than the one that is written.")
    (folder / "results.json").unlink(missing_ok=True)  # of an earlier export, whose files are replaced now
    hashes = save_folder(folder, net, tokenizer, content.get("class_names"), description, half)
    results = {"folder": output, "config": str(folder / CONFIG), "safetensors": str(folder / MODEL)}
    results["safetensors_sha256"] = hashes[MODEL]
    if TOKENIZER in hashes:
        results |= {"tokenizer": str(folder / TOKENIZER), "tokenizer_file_sha256": hashes[TOKENIZER]}
    results |= source
    if not official:
        return results
    if type(net) is not ENAT or any(type(block) is not Block for block in net.blocks):
        print("This is a variant of ENAT, for which there is no official file format.")
        return results
    path = folder / OFFICIAL
    write_atomically(path, lambda file: torch.save(to_official(stored(net.state_dict(), half)), file))
    return {**results, "official": str(path), "official_sha256": sha256_of(path)}


def _tokenizer_of(settings: Mapping[str, Any], is_wanted: bool) -> Tokenizer | None:
    """Builds the tokenizer that is written; returns None for one that is left out.

    A tokenizer without weights, such as pixels, is in the settings as a whole.

    Raises:
        InputError: if its weights can't be read.
    """
    if not is_wanted and ("weights" in settings or "folder" in settings):
        return None
    if is_wanted and settings.get("folder") is not None:
        raise InputError(
            f"with_tokenizer=true: {settings['folder']} is a folder of diffusers, which is not copied; expected "
            "with_tokenizer=false, and tokenizer.folder=DIR beside the weights later."
        )
    tokenizer: Tokenizer = build_from_settings(settings)
    return tokenizer


def _known_scores(weights: Path, sha256: str) -> dict[str, Any]:
    """Returns the scores of the run that wrote a checkpoint, if its results are of the weights in that file."""
    results = weights.parent.parent / "results.json"
    if weights.parent.name != "checkpoints" or not results.is_file():
        return {}
    try:
        found = read_record(results)
        checkpoint = Path(found["checkpoint"])
        is_same = checkpoint.is_file() and sha256_of(checkpoint) == sha256
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: found[name] for name in SCORED if name in found} if is_same else {}
