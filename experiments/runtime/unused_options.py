"""Refuses options of the reference, the protocols and the scores on a command line that uses none of them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from enat.errors import InputError
from enat.files import part_of
from experiments.runtime.options import CONF, choices_of
from experiments.runtime.places import FOLDERS, names_reached

# Parts of the configuration to which some choices refer and others do not, by the beginning of an option.
PARTS = {
    "reference": "reference",
    "protocol": "protocols",
    "protocols": "protocols",
    "score": "scores",
    "scores": "scores",
}
OWN = "metrics.evaluation.reference"
DECIDE = ("task", "experiment", "metrics", "features")  # groups that say which of these parts are used
FEATURES = "features@metrics.evaluation.features"


def refuse_unused_options(
    config: DictConfig, overrides: Iterable[str], choices: Mapping[str, str], varied: Collection[str] = ()
) -> None:
    """Refuses an option of the command line which sets a part of the configuration that its task does not use.

    An option that all jobs of a multirun have may be for the jobs of another choice.

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
        beginning = override.key_or_group.partition(".")[0]
        part = PARTS.get(beginning)
        if part is None or override.is_delete() or any(f"{name}.".startswith(f"{part}.") for name in reached):
            continue
        cause, reason, expected = _explain(content, part, reached, choices)
        raise InputError(f"{override.input_line}: with {cause}, this changes nothing, since {reason}; {expected}.")


def _explain(content: Any, part: str, reached: set[str], choices: Mapping[str, str]) -> tuple[str, str, str]:
    """Returns the choice because of which a part of the configuration is not used, why, and what to do.

    Args:
        content: the whole configuration, with its references.
        part: its name.
        reached: the names of all parts that are used.
        choices: of all groups.
    """
    without = "the command without it"
    if part == "protocols" and "features" in reached:  # of task=statistics
        features = f"features={choices['features']}"
        return features, "its network has no protocols to choose from", f"expected features=inception or {without}"
    if "metrics.evaluation" not in reached:
        return f"task={choices['task']}", "this task does not use it", f"expected {without}"
    name = choices["metrics"]
    cause = f"metrics={name}" if name in choices_of(CONF / "metrics") else "the metrics of the checkpoint"
    other = f"expected metrics=inception beside it, or {without}"
    if part_of(content, "metrics.evaluation.scores") is None:
        return cause, "there are no scores", other
    if part == "protocols":
        other = other if name != "inception" else f"expected {FEATURES}=inception beside it, or {without}"
        return cause, "the feature network has no protocols to choose from", other
    folders = [name for name in names_reached(content, OWN, set()) if name.rpartition(".")[2] in FOLDERS]
    own = [name for name in folders if not isinstance(part_of(content, name), dict)]
    if own:
        other = f"expected {own[0]}=DIR for other images, or metrics=inception beside it"
    return cause, "these compare with images of their own", other
