"""Refuses options on a command line whose task does not use them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError
from enat.files import part_of
from experiments.runtime.options import CONF, choices_of
from experiments.runtime.places import FOLDERS, names_reached

# Parts of the configuration whose groups have other names, by the name of the group.
PARTS = {"protocol": "protocols", "score": "scores"}
OF_SCORES = ("reference", "protocols", "scores")
PRECISION = "trainer.precision"
# What is refused beside weights. Other options may come from the command of the training, and do no harm.
WITH_WEIGHTS = (*OF_SCORES, "logger", PRECISION)
OWN = "metrics.evaluation.reference"
DECIDE = ("task", "experiment", "metrics", "features")  # groups that decide which parts are used
FEATURES = "features@metrics.evaluation.features"


def refuse_unused_options(
    config: DictConfig, overrides: Iterable[str], choices: Mapping[str, str], varied: Collection[str] = ()
) -> None:
    """Refuses an option of the command line which sets a part of the configuration that its task does not use.

    An option that all jobs of a multirun have may be for the jobs of another choice. Beside weights, options of their
    training are taken, except those that a user would expect to change this task.

    Args:
        config: the whole configuration.
        overrides: the options on the command line, such as `reference=images`.
        choices: of all groups.
        varied: the options that differ between the jobs of a multirun.

    Raises:
        InputError: naming the option, the choice because of which it changes nothing, and what does.
    """
    content: Any = OmegaConf.to_container(config, resolve=False)
    reached = set(names_reached(content, "task", set()))
    is_of_all = any(name.partition("@")[0] in DECIDE for name in varied)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if is_of_all and override.get_key_element().lstrip("+") not in varied:
            continue
        place = override.package or override.key_or_group.replace("/", ".")
        place = PARTS.get(place, place)
        root = place.partition(".")[0]
        is_of_training = content.get("weights") is not None and not {root, place}.intersection(WITH_WEIGHTS)
        if override.is_delete() or root == "hydra":
            continue
        # `experiment=NAME` is no part of the configuration but sets many; options at the top are those of the task.
        is_part = isinstance(part_of(content, root), dict)
        is_used = any(f"{name}.".startswith(f"{place}.") or f"{place}.".startswith(f"{name}.") for name in reached)
        if (is_used or is_of_training or not is_part) and not _is_idle(content, choices["task"], place):
            continue
        cause, reason, expected = _explain(content, str(override.input_line), place, reached, choices)
        raise InputError(
            f"{override.input_line}: with {cause}, this changes nothing, since {reason}; expected {expected}."
        )


def _is_idle(content: Any, task: str, place: str) -> bool:
    """Says whether an option that a task takes has no effect beside its other options."""
    is_cache = str(content.get("images")).endswith(".npy")
    return (task, place) in {
        ("score", "metrics.evaluation.num_images"),
        *([("edit", "weight")] if content.get("other") is None else []),
        ("tokenize", "views" if is_cache else "num_classes"),
    }


def _explain(
    content: Any, option: str, place: str, reached: set[str], choices: Mapping[str, str]
) -> tuple[str, str, str]:
    """Returns the choice because of which an option is not used, why, and what is expected.

    Args:
        content: the whole configuration, with its references.
        option: as it was typed.
        place: the part of the configuration that it sets.
        reached: the names of all parts that are used.
        choices: of all groups.
    """
    part = place.partition(".")[0]
    without = "the command without it"
    if part == "protocols" and "features" in reached:  # of task=statistics
        features = f"features={choices['features']}"
        return features, "its network has no protocols to choose from", f"features=inception or {without}"
    if part not in OF_SCORES or "metrics.evaluation" not in reached:
        return _explain_task(content, option, place, reached, choices["task"])
    name = choices["metrics"]
    cause = f"metrics={name}" if name in choices_of(CONF / "metrics") else "the metrics of the checkpoint"
    other = f"metrics=inception beside it, or {without}"
    if part_of(content, "metrics.evaluation.scores") is None:
        return cause, "there are no scores", other
    if part == "protocols":
        other = other if name != "inception" else f"{FEATURES}=inception beside it, or {without}"
        return cause, "the feature network has no protocols to choose from", other
    folders = [name for name in names_reached(content, OWN, set()) if name.rpartition(".")[2] in FOLDERS]
    own = [name for name in folders if not isinstance(part_of(content, name), dict)]
    if own:
        other = f"{own[0]}=DIR for other images, or metrics=inception beside it"
    return cause, "these compare with images of their own", other


def _explain_task(content: Any, option: str, place: str, reached: set[str], task: str) -> tuple[str, str, str]:
    """Does the same as `_explain` for an option that is not used because of the task."""
    without = "the command without it"
    reasons = {
        "metrics.evaluation.num_images": ("it scores all images that there are", without),
        "weight": ("other=null, so that no tokens are mixed in", f"other=FILE beside it, or {without}"),
        "views": ("a token cache has its views", without),
        "num_classes": ("it is for a train.npy, and images have the classes of their folders or labels", without),
    }
    reason, expected = reasons.get(place, ("this task does not use it", without))
    if task == "stages":
        stage = next(iter(content["stages"]), "STAGE")
        reason = f"it runs other commands ({', '.join(content['stages'])}), each with options of its own"
        expected = f"an option of one of them, such as '+more.{stage}=\"{option}\"'"
    if place == PRECISION and "fabric.precision" in reached:
        expected = f"fabric.precision={option.partition('=')[2]}"
    return f"task={task}", reason, expected
