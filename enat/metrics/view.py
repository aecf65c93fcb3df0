"""Puts a metric of torchmetrics on one view of the images that a feature network looks at."""

import inspect
from collections.abc import Mapping
from typing import Any, cast

from torch import nn
from torchmetrics import Metric, MetricCollection

from enat.errors import InputError
from enat.features.network import Views


def _is_shared() -> bool:
    """Says no to torchmetrics: every process sees every block of images, so metrics have nothing to synchronise."""
    return False


class OnView(Metric):
    """Puts a metric on one view of the images.

    The metric's `update` gets the view and, of the following, what it names: `real`, `class_ids` (B,), `image_numbers`
    (B,) and `num_images`. A metric that does not name `real` sees generated images only.

    Args:
        view: a view of the feature network ("pool", "spatial" or "logits"), or "images".
        metric: any metric of torchmetrics; if it has a feature extractor of its own, give it `AsTheyAre`.
    """

    full_state_update = False

    def __init__(self, view: str, metric: Metric):
        super().__init__(distributed_available_fn=_is_shared)
        for part in metric.modules():
            if isinstance(part, Metric):
                part.distributed_available_fn = _is_shared
                part.persistent(True)  # or its state dict would be empty
        self.view = view
        self.metric = metric
        self.names = set(inspect.signature(metric.update).parameters)
        self.wants_real = "real" in self.names  # images; no longer so where statistics have taken their place

    def sees(self, has_class_ids: bool) -> bool:
        """Returns whether the metric sees images with, or without, classes."""
        return has_class_ids or "class_ids" not in self.names

    def update(self, views: Views, context: Mapping[str, Any]) -> None:
        """Updates the metric with a block of images.

        Raises:
            InputError: if the metric refuses it.
        """
        if not self.sees("class_ids" in context) or (context["real"] and not self.wants_real):
            return
        try:
            self.metric.update(views[self.view], **{name: context[name] for name in self.names & set(context)})
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"scores: {type(self.metric).__name__} on view={self.view}: {error}") from error

    def compute(self) -> Any:
        """Returns what the metric returns."""
        return self.metric.compute()

    def numbers(self, name: str) -> dict[str, float]:
        """Computes the metric, whose score is called `name`, and returns its numbers by name.

        A metric may give a number, a dictionary of numbers, or a mean and a standard deviation (as stock KID does).

        Raises:
            InputError: if the metric refuses, or gives something else.
        """
        try:
            value = self.metric.compute()
            if isinstance(value, tuple | list) and len(value) == 2:
                value = {name: value[0], f"{name}_std": value[1]}
            elif not isinstance(value, Mapping):
                value = {name: value}
            return {key: float(number) for key, number in value.items()}
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"scores.{name}: {type(self.metric).__name__}: {error}") from error


def scores_in(collection: MetricCollection) -> dict[str, OnView]:
    """Returns the scores of a collection by name, for type checkers: it holds nothing else."""
    return cast(dict[str, OnView], dict(collection.items()))


class AsTheyAre(nn.Identity):
    """Returns features unchanged: the feature extractor for a metric of torchmetrics that gets features.

    Args:
        num_features: their width, for which torchmetrics' FID asks.
    """

    def __init__(self, num_features: int = 2048):
        super().__init__()
        self.num_features = num_features
