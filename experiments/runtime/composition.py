"""Composes a configuration from what the files that a command line names say of themselves.

A checkpoint (`weights=FILE`) has the settings of its run: the network, the tokenizer, the sampler, the metrics. Shards
(`data.shards=DIR`) have a manifest: the tokenizer and all sizes. The command line overrides both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from omegaconf import OmegaConf

from enat.errors import InputError
from enat.files import by_full_name, part_of
from experiments.runtime.options import CONF
from experiments.runtime.settings_of_files import (
    check_settings,
    refuse_other_sizes,
    refuse_other_tokenizers,
    settings_of_shards,
    settings_of_tokenizer,
)

PRIMARY = "config"
# The names of choices, in several groups.
OF_CHECKPOINT, OF_SHARDS, OF_TOKENIZER = "of_checkpoint", "of_shards", "of_tokenizer"
FINETUNE = "finetune"  # an experiment whose network is that of the checkpoint
COPIED = ("module", "tokenizer", "metrics", "reference")  # groups whose content is taken from a checkpoint as it is
SAMPLER_GROUPS = {"enat.schedules": "schedule", "enat.orders": "order", "enat.corrections": "correction"}
SAMPLER_PARTS = {"/order@order": "confidence", "/correction@correction": "none"}
GROUPS = {"net": "module.net", "score": "scores", "protocol": "protocols"}  # where the choices of these groups are
# Nodes of a configuration to which others refer, such as `${tokenizer}`.
REFERRED = {name: name for name in ("seed", "scores", "reference", "protocols", "tokenizer", "sampler")}
# What the images of a folder refer to, so that their split stays that of training, whatever `seed` is now.
OF_SPLIT = {"path": "metrics.images", "held_out": "metrics.held_out_share", "seed": "metrics.split_seed"}


def primary_config(arguments: Sequence[str]) -> str:
    """Returns the name of the configuration to compose for a command line, after the files that it names are read.

    Raises:
        InputError: for a checkpoint that can't be read, or does not say what it needs.
    """
    given = _given(arguments)
    primary = yaml.safe_load((CONF / f"{PRIMARY}.yaml").read_text())
    defaults = primary["defaults"]
    has_network = given.get("experiment", FINETUNE) != FINETUNE or "net" in given
    files = [] if has_network else [str(file) for file in _values_of(arguments, "weights") if file]
    shards = given.get("data.shards")
    trains = given.get("task", "train") == "train"
    if given.get("experiment") == FINETUNE and trains and not given.get("weights"):
        raise InputError("experiment=finetune: expected weights=FILE, the checkpoint that training starts from.")
    if files:
        settings = _settings_of(_existing(files[0], given, trains), given)
        for other in files[1:]:
            _refuse_other_settings(files[0], settings, other, given)
        choices = _store_checkpoint(settings)
        _replace(defaults, {name: choice for name, choice in choices.items() if name not in _chosen(given)})
    has_tokenizer = "tokenizer" in given or bool(files)
    if shards:
        has_tokenizer |= _store_shards(defaults, str(shards), given)
        for other in filter(None, _values_of(arguments, "data.shards")):
            refuse_other_sizes(str(shards), str(other), given)
    tokenizer = None if has_tokenizer else given.get("tokenizer.weights")
    has_settings = tokenizer is not None and _store_tokenizer(defaults, str(tokenizer))
    if tokenizer is not None:
        for other in filter(None, _values_of(arguments, "tokenizer.weights")):
            refuse_other_tokenizers(str(tokenizer), str(other), given)
    if not files and not shards and not has_settings:
        return PRIMARY
    ConfigStore.instance().store(f"{PRIMARY}_of_files", primary)
    return f"{PRIMARY}_of_files"


def _chosen(given: Mapping[str, Any]) -> set[str]:
    """Returns the groups that a command chooses itself. Metrics choose the scores that fit them, if it does not."""
    metrics = {"metrics", "score"} if "metrics" in given or given.get("experiment") == FINETUNE else set()
    return {*given, *metrics}


def _existing(weights: str, given: Mapping[str, Any], trains: bool) -> str:
    """Returns a file, or the newest checkpoint of the run that has started from it: a run goes on without its start."""
    name = given.get("name", yaml.safe_load((CONF / "experiment" / f"{FINETUNE}.yaml").read_text())["name"])
    own = Path(str(given.get("output", f"outputs/{name}"))) / "checkpoints" / "last.ckpt"
    return str(own) if trains and own.is_file() and not Path(weights).exists() else weights


def _overrides(arguments: Sequence[str]) -> list[Override]:
    """Returns the options on a command line, but for those that are deleted."""
    options = [text for text in arguments if "=" in text and not text.startswith("-")]
    return [one for one in OverridesParser.create().parse_overrides(options) if not one.is_delete()]


def _values(override: Override) -> list[Any]:
    """Returns the value of an option; of one that varies in a multirun, all that the command line says."""
    value = override.value()
    is_listed = override.is_sweep_override() and not isinstance(value, Glob | IntervalSweep)
    return list(override.sweep_iterator()) if is_listed else [value]


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the options on a command line with their values; of several values, for a multirun, the first."""
    return {override.key_or_group: _values(override)[0] for override in _overrides(arguments)}


def _values_of(arguments: Sequence[str], name: str) -> list[Any]:
    """Returns the values of an option on a command line; none where it is not given."""
    return [value for one in _overrides(arguments) if one.key_or_group == name for value in _values(one)]


def _replace(defaults: list[Any], choices: Mapping[str, Any]) -> None:
    """Replaces choices in a defaults list."""
    for entry in defaults:
        if isinstance(entry, dict):
            (group,) = entry
            entry[group] = choices.get(group, entry[group])


def _settings_of(weights: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the settings of a checkpoint, and finds its tokenizer unless the command line names one.

    Raises:
        InputError: for a file that can't be read, or has no settings.
    """
    from enat.building import check_parts  # here, since they import torch
    from enat.checkpoints.description import refuse_tokenizer
    from enat.checkpoints.folder import config_of, with_found_tokenizer
    from enat.checkpoints.selection import state_of_file
    from enat.checkpoints.weights import read_file

    content = read_file(weights)
    leaves_it_out = given.get("task") == "export" and str(given.get("with_tokenizer")).lower() == "false"
    if not leaves_it_out and not {"tokenizer", "tokenizer.weights", "tokenizer.folder"} & given.keys():
        content = with_found_tokenizer(content, weights)
    settings = content.get("settings")
    parts = {*COPIED, "sampler", "scores", "protocols", "trainer", "name"}
    refuse_tokenizer(settings, weights, f"tokenizer.weights={weights}")
    if not isinstance(settings, dict) or not parts <= settings.keys():
        raise InputError(
            f"weights={weights}: the file, which is an official one or of an older version, does not say its network; "
            "expected experiment=NAME beside it, such as experiment=enat_l_256 for ENAT-L."
        )
    for name in sorted(parts - {"name"}):
        if not isinstance(settings[name], dict):
            raise InputError(f"weights={weights}: its settings are damaged: {name} is {settings[name]}.")
    check_settings(weights, {name: settings[name] for name in (*COPIED, "sampler", "scores", "protocols", "name")})
    if config_of(weights) is not None:  # a folder, which may be a stranger's
        check_parts(settings, state_of_file(content, weights)[0], weights, with_tokenizer=True)
    return settings


def _refuse_other_settings(first: str, settings: Mapping[str, Any], other: str, given: Mapping[str, Any]) -> None:
    """Refuses a multirun over checkpoints that need other settings: all of its jobs have those of the first.

    Raises:
        InputError: naming an option in which they differ, unless the command line has it.
    """
    chosen = {GROUPS.get(name, name) for name in _chosen(given)}
    before, now = (by_full_name(_used(one)) for one in (settings, _settings_of(other, given)))
    for name in sorted(before.keys() | now.keys()):
        is_given = any(name == one or name.startswith(f"{one}.") for one in chosen)
        if before.get(name) != now.get(name) and not is_given:
            both = "" if name.startswith("module.") else f"{name}=VALUE for both, or "
            raise InputError(
                f"weights={first},{other}: {name} is {before.get(name)} in the one and {now.get(name)} in the other; "
                f"expected {both}a command for each. task=report runs=[DIR,DIR] compares them."
            )


def _used(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a checkpoint that a task uses; not the network's training, nor where `seed` stands."""
    linked = _link(dict(settings), settings)
    parts = {name: linked[name] for name in ("sampler", "tokenizer", "metrics", "reference", "scores", "protocols")}
    return {"module": {"net": linked["module"]["net"]}, **parts}


def _store_checkpoint(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stores the settings of a checkpoint as choices of groups; returns the choices by group."""
    store = ConfigStore.instance()
    linked = _link(settings, settings)
    # The schedule of the rate belongs to the steps of that training.
    module = {name: value for name, value in linked["module"].items() if name != "scheduler"}
    linked = {**linked, "module": {"defaults": [{"/scheduler@scheduler": "warmup"}, "_self_"], **module}}
    for group in COPIED:
        store.store(OF_CHECKPOINT, linked[group], group)
    store.store(OF_CHECKPOINT, _sampler_of(settings["sampler"]), "sampler")
    store.store(OF_CHECKPOINT, linked["scores"], "score", "scores")
    store.store(OF_CHECKPOINT, settings["protocols"], "protocol", "protocols")
    # The devices are this machine's: its GPUs, if it has any, and all of them if training used several.
    devices = 1 if settings["trainer"].get("devices") == 1 else "auto"
    store.store(OF_CHECKPOINT, {"defaults": ["cpu", "_self_"], "accelerator": "auto", "devices": devices}, "trainer")
    store.store(OF_CHECKPOINT, {"name": settings["name"]}, "experiment", "_global_")
    lists = {"score": [OF_CHECKPOINT], "protocol": [OF_CHECKPOINT]}
    return {**dict.fromkeys([*COPIED, "sampler", "trainer", "experiment"], OF_CHECKPOINT), **lists}


def _link(node: Any, settings: Mapping[str, Any], depth: int = 0) -> Any:
    """Puts back references such as `${seed}`, since settings are stored with each value in its place."""
    if not isinstance(node, dict):
        return node
    linked = {}
    referred = OF_SPLIT if {"held_out", "seed"} <= node.keys() else REFERRED
    for name, value in node.items():
        option = referred.get(name)
        is_reference = depth > 0 and option and value is not None and value == part_of(settings, option)
        linked[name] = f"${{{option}}}" if is_reference else _link(value, settings, depth + 1)
    return linked


def _sampler_of(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a sampler with its parts as choices of their groups, so that others can be chosen."""
    choices = dict(SAMPLER_PARTS)  # these and the options below are what an older checkpoint does not say
    plain: dict[str, Any] = {"top_k": None, "top_p": None, "refresh_every": None}
    for name, value in sampler.items():
        target = value.get("_target_") if isinstance(value, dict) else None
        group = SAMPLER_GROUPS.get(str(target).rpartition(".")[0])
        if group:
            choice = f"{OF_CHECKPOINT}_{name}"
            ConfigStore.instance().store(choice, dict(value), group)
            choices[f"/{group}@{name}"] = choice
        else:
            plain[name] = value
    return {"defaults": [*({part: choice} for part, choice in choices.items()), "_self_"], **plain}


def _store_tokenizer(defaults: list[Any], weights: str) -> bool:
    """Stores the settings of a tokenizer that was trained here as a choice, and adds it to a defaults list.

    Returns:
        Whether the file has such settings; others, such as the VQGAN of MAGE, have none.

    Raises:
        InputError: for a file that can't be read.
    """
    settings = settings_of_tokenizer(weights)
    if settings is not None:
        _put_in_front(defaults, {"tokenizer": settings}, OF_TOKENIZER)
    return settings is not None


def _put_in_front(defaults: list[Any], content: Mapping[str, Any], choice: str) -> None:
    """Adds settings of files to a defaults list, in front of those that an experiment chooses or changes.

    Args:
        defaults: of the primary configuration.
        content: the settings, of which a tokenizer is stored as a choice of its group as well.
        choice: the name under which they are stored.
    """
    store = ConfigStore.instance()
    if "tokenizer" in content:
        tokenizer = dict(content["tokenizer"])
        parts: list[Any] = ["_self_"]
        if isinstance(tokenizer.get("quantizer"), dict):  # so that the command line can choose another
            store.store(choice, tokenizer.pop("quantizer"), "quantizer")
            parts.insert(0, {"/quantizer@quantizer": choice})
        content = {**content, "tokenizer": tokenizer}
        store.store(choice, {"defaults": parts, **tokenizer}, "tokenizer")
        defaults.append({"override /tokenizer": choice})  # of this list, it comes before those of experiments
    store.store(f"settings_{choice}", OmegaConf.create(dict(content)), package="_global_")
    is_override = [isinstance(entry, dict) and next(iter(entry)).startswith("override") for entry in defaults]
    defaults.insert(is_override.index(True), f"settings_{choice}")  # after the experiment; overrides come last


def _store_shards(defaults: list[Any], shards: str, given: Mapping[str, Any]) -> bool:
    """Stores what a folder of shards says as choices; adds them to a defaults list.

    Args:
        defaults: of the primary configuration.
        shards: the folder.
        given: the options on the command line.

    Returns:
        Whether the shards say what their tokenizer is.

    Raises:
        InputError: for a folder without a manifest, or with one that can't be read.
    """
    if "experiment" not in given and given.get("task", "train") == "train":
        _replace(defaults, {"experiment": FINETUNE if "weights" in given else "own_images"})
    sizes, tokenizer = settings_of_shards(shards, given)
    content: dict[str, Any] = {"module": {"net": sizes}}
    if tokenizer and "tokenizer" not in given:
        content["tokenizer"] = tokenizer
    _put_in_front(defaults, content, OF_SHARDS)
    return tokenizer is not None
