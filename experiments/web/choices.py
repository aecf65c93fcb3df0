"""What a visitor of the page may ask for. Nothing that a browser sends is trusted: each value is checked here."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from enat.errors import InputError, counted
from enat.generation import UNCONDITIONAL
from enat.pipeline import Pipeline

MAX_IMAGES = 16  # that one request draws
MAX_SEED = 2**32 - 1
AS_WEIGHTS = "as the weights say"  # an order or a correction that the page does not offer by itself
ORDERS = MappingProxyType(
    {
        name: {"_target_": f"enat.orders.{name.title()}"}
        for name in ("confidence", "random", "halton", "entropy", "moment")
    }
)
REMASKING = MappingProxyType({"cap": 0.1, "rescale": 1.0, "start": 0.0, "end": 1.0, "recompute": True})  # as in conf/
CORRECTIONS = MappingProxyType(
    {
        "none": {"_target_": "enat.corrections.no_correction"},
        "remasking": {"_target_": "enat.corrections.Remasking", **REMASKING},
    }
)
NUMBERS = MappingProxyType(  # of the sampler: label, least, most, whether it is whole
    {
        "num_steps": ("steps", 1, 64, True),
        "guidance_scale": ("guidance", 0, 20, False),
        "sampling_temperature": ("sampling temperature", 0, 20, False),
        "gumbel_temperature": ("Gumbel temperature", 0, 50, False),
    }
)


def short(value: Any) -> str:
    """Returns a value as a text that fits into a sentence."""
    text = repr(value) if isinstance(value, str | int | float | bool | type(None)) else type(value).__name__
    return text if len(text) <= 40 else f"{text[:40]}..."


def number(label: str, value: Any, least: float, most: float, whole: bool = True) -> Any:
    """Checks a number that a browser has sent.

    Raises:
        InputError: unless it is a number in this range; a whole one if `whole`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not is_number or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{label}: {short(value)}; expected {kind} from {least:g} to {most:,}.")
    return int(value) if whole else float(value)


def one_of(label: str, value: Any, choices: list[str]) -> str:
    """Checks a choice that a browser has sent.

    Raises:
        InputError: unless it is one of the choices.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{label}: {short(value)}; expected one of {', '.join(choices)}.")
    return value


@dataclass(frozen=True)
class Drawing:
    """A request to draw images that has been checked."""

    class_ids: list[int]
    images_per_class: int
    seed: int
    options: dict[str, Any]  # of the sampler, where they differ from those of the weights
    order: str
    correction: str

    @property
    def pictures(self) -> list[tuple[int, int]]:
        """The class id of each image, and its number in the class."""
        return [(class_id, place) for class_id in self.class_ids for place in range(self.images_per_class)]


class Choices:
    """Knows what the page offers for a model, and checks what a browser asks for.

    Args:
        model: the network with its sampler and its tokenizer.
    """

    def __init__(self, model: Pipeline):
        self.model = model
        self.names = [*model.class_names, UNCONDITIONAL]  # the last has the id of the null class
        settings = model.sampler_settings
        self.own = {name: settings.get(name, getattr(model.sampler, name, 0)) for name in NUMBERS}
        self.own_order, self.own_correction = self.of_settings(settings)

    @staticmethod
    def of_settings(settings: Mapping[str, Any]) -> tuple[str, str]:
        """Returns the names of an order and a correction on the page, from options as `Pipeline.facts` gives them."""
        return _own_order(settings.get("order")), _own_correction(settings.get("correction"))

    @cached_property
    def classes(self) -> list[tuple[str, int]]:
        """The label and the id of each class; a name that occurs twice has its id beside it."""
        counts = Counter(self.names)
        return [(f"{name} ({one})" if counts[name] > 1 else name, one) for one, name in enumerate(self.names)]

    @property
    def orders(self) -> list[str]:
        """The orders to choose from."""
        return [*ORDERS, *([AS_WEIGHTS] if self.own_order == AS_WEIGHTS else [])]

    @property
    def corrections(self) -> list[str]:
        """The corrections to choose from."""
        return [*CORRECTIONS, *([AS_WEIGHTS] if self.own_correction == AS_WEIGHTS else [])]

    def range_of(self, name: str) -> tuple[float, float]:
        """Returns the least and the most of a number of the sampler; the weights' own value is always allowed."""
        _, least, most, _ = NUMBERS[name]
        return least, max(most, self.own[name])

    def class_ids(self, value: Any) -> list[int]:
        """Checks a list of class ids.

        Raises:
            InputError: for no class, too many, one that there is not, or one that is named twice.
        """
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_IMAGES:
            raise InputError(f"classes: expected from 1 to {MAX_IMAGES} of them.")
        ids = [number("a class id", one, 0, len(self.names) - 1) for one in value]
        if len(set(ids)) < len(ids):
            raise InputError("classes: one is named twice; expected more images per class for more of one class.")
        return ids

    def drawing(
        self, classes: Any, images_per_class: Any, seed: Any, numbers: Mapping[str, Any], order: Any, correction: Any
    ) -> Drawing:
        """Checks a request to draw images.

        Args:
            classes: ids.
            images_per_class, seed: see `Pipeline.generate`.
            numbers: of the sampler, by the names in `NUMBERS`.
            order, correction: names, see `orders` and `corrections`.

        Raises:
            InputError: naming the first value that is wrong.
        """
        ids = self.class_ids(classes)
        per_class = number("images per class", images_per_class, 1, MAX_IMAGES)
        if len(ids) * per_class > MAX_IMAGES:
            raise InputError(
                f"{counted(len(ids), 'class', 'classes')} with {counted(per_class, 'image')} each; expected at most "
                f"{MAX_IMAGES} images."
            )
        options = {}
        for name, (label, _, _, whole) in NUMBERS.items():
            value = number(label, numbers.get(name), *self.range_of(name), whole)
            if value != self.own[name]:  # which keeps 12 apart from 12.0
                options[name] = value
        order = one_of("order", order, self.orders)
        correction = one_of("correction", correction, self.corrections)
        options |= {"order": ORDERS[order]} if order != self.own_order else {}
        options |= {"correction": CORRECTIONS[correction]} if correction != self.own_correction else {}
        return Drawing(ids, per_class, number("seed", seed, 0, MAX_SEED), options, order, correction)

    def model_for(self, drawing: Drawing) -> Pipeline:
        """Returns the model with the sampler that a request asks for.

        Raises:
            InputError: for options that do not fit together.
        """
        return self.model.with_sampler(**drawing.options) if drawing.options else self.model


def _own_order(value: Any) -> str:
    """Returns the name of the order of the weights on the page; `value` is as in `Pipeline.sampler_settings`."""
    if value is None:
        return "confidence"
    for name in ORDERS:
        if value in (name.title(), {name.title(): {"height": None, "width": None}}):
            return name
    return AS_WEIGHTS


def _own_correction(value: Any) -> str:
    """Returns the name of the correction of the weights on the page."""
    if value in (None, "no_correction"):
        return "none"
    return "remasking" if value == {"Remasking": dict(REMASKING)} else AS_WEIGHTS
