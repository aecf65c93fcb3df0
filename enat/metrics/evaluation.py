"""Scores sets of images under several protocols, in one pass over them."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from annotated_types import Ge
from torch import nn
from torchmetrics import MetricCollection

from enat.errors import InputError, counted
from enat.features.network import IMAGES, FeatureNetwork, is_wide
from enat.images import Images
from enat.metrics.accumulation import Metrics, Progress, Record, accumulate, refuse_other_size
from enat.metrics.scores import FrechetDistance
from enat.metrics.view import OnView, scores_in
from enat.processes import Processes
from enat.unicode import composed

Scores = dict[str, dict[str, float]]  # by protocol and name
REFERENCE = "reference"  # the folder of its unfinished work


@runtime_checkable
class Reference(Protocol):
    """What generated images are compared with, if it is more than a set of images: `data.references.StatisticsFile`."""

    images: Images | None  # for the scores that `fill` has nothing for
    identity: Mapping[str, Any]  # plain values that tell one reference from another
    size: Sequence[int] | None  # height and width of the images in pixels, if that is known

    def fill(self, score: OnView, protocol: str, network: FeatureNetwork) -> bool:
        """Gives a score statistics in place of real images; returns False if it has none that the score can use."""

    def num_images(self, protocol: str) -> int | None:
        """Returns how many images the statistics are of, if that is known."""

    def own_scores(self, protocol: str, scores: Mapping[str, OnView], network: FeatureNetwork) -> dict[str, float]:
        """Returns scores of the reference itself, given scores that have seen it."""


class Result(NamedTuple):
    """What an evaluation says of a set of images."""

    scores: Scores
    skipped: list[str]  # why images could not be read, those of the reference too
    sha256: str  # of the images at 8 bits, block by block
    reference: dict[str, Any]  # number and hash of what they were compared with, by protocol
    left_out: list[str]  # scores that the reference has nothing for
    notes: Sequence[str] = ()  # what the metrics say of their scores


class Evaluation:
    """Computes FID, Inception Score and any other metric of torchmetrics, by protocol.

    Args:
        features: feature network, an `enat.features.network.FeatureNetwork`.
        reference: real images, or a `Reference`.
        scores: metrics on views of the images, by name; None leaves one out. Every protocol has a copy of each.
        num_images: how many images a network has to generate.
        block_size: images whose features are computed together, and that have noise of their own if generated.
        batch_size: images that are generated at a time, a multiple of `block_size`; it does not change them.
        seed: of generated images (see `enat.generation.GeneratedImages` for these three).
        class_shares: `equal` draws each class as often as the others, `reference` as often as it occurs there.

    Raises:
        InputError: for sizes or scores that do not fit together, and for a reference without classes.
    """

    def __init__(
        self,
        features: nn.Module,
        reference: Reference | Images,
        scores: Mapping[str, OnView | None],
        num_images: Annotated[int, Ge(2)],
        block_size: Annotated[int, Ge(1)],
        batch_size: Annotated[int, Ge(1)],
        seed: int = 0,
        class_shares: Literal["equal", "reference"] = "equal",
    ):
        network: Any = features.eval()
        self.names = [name for name, score in scores.items() if score is not None]
        chosen: dict[str, Any] = {name: score for name, score in scores.items() if score is not None}
        self.features = network
        self.reference = reference
        self.num_images = num_images
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.class_counts: list[int] | None = None
        if class_shares == "reference":
            self.class_counts = getattr(reference, "class_counts", None)
            if self.class_counts is None:
                raise InputError(
                    "class_shares=reference: the reference has no classes; expected "
                    "metrics.evaluation.class_shares=equal."
                )
        # Compute groups would merge metrics whose first states happen to be equal.
        collection = MetricCollection(chosen, compute_groups=False)
        self.metrics: Metrics = {protocol: collection.clone() for protocol in network.protocols}
        self.reference_record: Record | None = None  # None until the metrics have seen the reference
        self.left_out: set[str] = set()  # scores that the reference has nothing for
        self.splits = max([0, *(getattr(score.metric, "splits", 0) for score in chosen.values())])
        if batch_size % block_size:
            raise InputError(f"batch_size={batch_size}: expected a multiple of block_size={block_size}.")
        self.check_count(num_images)
        views = [*network.widths, IMAGES]
        for name, score in chosen.items():
            if score.view not in views:
                raise InputError(f"scores.{name}.view={score.view}: expected one of {', '.join(views)}.")

    def check_count(self, num_images: int, option: str = "") -> None:
        """Raises InputError, which names an option, if so many images are too few for the scores."""
        if num_images < max(2, self.splits):
            for_splits = f", and one for each of {self.splits} splits" if self.splits else ""
            found = f"{option}: {counted(num_images, 'image')}" if option else counted(num_images, "image")
            raise InputError(f"{found}: expected at least two{for_splits}.")

    def check_reference(self, resolution: int) -> None:
        """Checks, before images are made, that the reference can be compared with square images of this side.

        Raises:
            InputError: for a reference of another size, or without statistics of a protocol.
        """
        if isinstance(self.reference, Reference):
            for protocol, collection in self.metrics.items():
                for score in scores_in(collection).values():
                    if score.wants_real:
                        self.reference.fill(deepcopy(score), protocol, self.features)
            refuse_other_size((resolution, resolution), self.reference.size)
        elif side := getattr(self.reference, "resolution", None):
            refuse_other_size((resolution, resolution), (side, side))

    def check_classes(self, num_classes: int, class_names: Sequence[str] | None = None) -> None:
        """Checks, before images are made, that a network has the classes of the reference, where these count.

        Raises:
            InputError: for other classes, or the same in another order.
        """
        if not num_classes:
            return
        if self.class_counts is not None and len(self.class_counts) != num_classes:
            raise InputError(
                f"metrics.evaluation.class_shares=reference: the reference has {len(self.class_counts)} classes, and "
                f"the network {num_classes}; expected its images in as many class folders, or "
                "metrics.evaluation.class_shares=equal."
            )
        if self.class_counts is not None or "linear_probe" in self.names:
            self._refuse_other_names(class_names, "the network")

    def _refuse_other_names(self, class_names: Sequence[str] | None, whose: str) -> None:
        """Raises InputError for names of classes that are not those of the reference, where both are known."""
        theirs = getattr(self.reference, "class_names", None)
        if theirs and class_names and [*map(composed, theirs)] != [*map(composed, class_names)]:
            named = [", ".join(names[:3]) + ", ..." * (len(names) > 3) for names in (theirs, class_names)]
            raise InputError(
                f"the images of the reference: their classes are {named[0]}, those of {whose} {named[1]}; expected "
                "the same names in the same order, or metrics.evaluation.class_shares=equal without the score "
                "linear_probe."
            )

    def leave_out(self, names: Iterable[str]) -> None:
        """Removes scores by name; a name that is not there is no error, so that a list serves any choice of scores."""
        for collection in self.metrics.values():
            for name in set(names) & set(scores_in(collection)):
                del collection[name]

    def identity(self) -> dict[str, Any]:
        """Returns plain values that scores depend on, beside the images and the settings of the metrics."""
        scores = [item for collection in self.metrics.values() for item in scores_in(collection).items()]
        return {
            **{name: score.metric.identity for name, score in scores if hasattr(score.metric, "identity")},
            "reference": dict(self.reference.identity),
            "features_sha256": self.features.sha256,
            "protocols": list(self.features.protocols),
            "num_images": self.num_images,
            "block_size": self.block_size,
            **({} if self.class_counts is None else {"class_counts": self.class_counts}),
        }

    def score(
        self,
        images: Images,
        device: torch.device,
        processes: Processes,
        folder: Path | None = None,
        name: str = "images",
        progress: tuple[Progress, Progress] | None = None,
    ) -> Result:
        """Scores a set of images; every process has to call, and every one gets the result.

        Args:
            images: the set.
            device: where features are computed; images are generated where their network is.
            processes: share the work.
            folder: where the state of unfinished work is saved; None saves nothing.
            name: of the set's folder there, beside `reference`.
            progress: of the reference's images and of the set's.

        Raises:
            InputError: on every process, for images or a reference that can't be scored.
        """
        self.check_count(images.num_images)
        if "linear_probe" in self.names:
            self._refuse_other_names(getattr(images, "class_names", None), "the images")
        of_reference, of_images = progress or (Progress(), Progress())
        if self.reference_record is None:
            self.see_reference(device, processes, folder, of_reference)
        metrics = deepcopy(self.metrics)  # which have seen the reference, and serve the next set of images too
        within = folder / name if folder else None
        shared = (self.features, self.block_size, processes, device, within, of_images, self._reference_size())
        record = accumulate(metrics, images, False, *shared)
        return processes.on_first(lambda: self._result(metrics, record))

    def see_reference(
        self, device: torch.device, processes: Processes, folder: Path | None = None, progress: Progress | None = None
    ) -> Record:
        """Shows the reference to all scores that compare with it, by its statistics where it has any; see `score`.

        Raises:
            InputError: for a reference that has nothing for any of the scores, or that can't be read.
        """
        self.features.to(device)
        reference = self.reference if isinstance(self.reference, Reference) else None
        images: Any = self.reference if reference is None else reference.images
        for protocol, collection in self.metrics.items():
            for name, score in scores_in(collection).items():
                if score.wants_real and reference is not None:
                    score.wants_real = not reference.fill(score, protocol, self.features)
                # A covariance of many features is computed only where the reference has one, by `sfid=true`.
                is_large = isinstance(score.metric, FrechetDistance) and is_wide(score.view, self.features)
                if score.wants_real and (images is None or is_large):
                    self.left_out.add(name)
                    del collection[name]
        if self.left_out and not any(self.metrics.values()):
            what = "images or statistics" if images is None else "statistics"
            raise InputError(
                f"score=[{','.join(sorted(self.left_out))}]: the reference has no {what} for that; expected other "
                "scores, or a reference that has them, such as a file of task=statistics (for sFID, with sfid=true)."
            )
        record = Record()
        if any(score.wants_real for collection in self.metrics.values() for score in scores_in(collection).values()):
            within = folder / REFERENCE if folder else None
            shared = (self.features, self.block_size, processes, device, within, progress)
            record = accumulate(self.metrics, images, True, *shared)
            if record.num_images < 2:
                raise InputError(f"images: {record.num_images} readable ones to compare with; expected at least 2.")
            self._leave_out_without_classes(record)
        self.reference_record = record
        return record

    def _leave_out_without_classes(self, record: Record) -> None:
        """Removes the scores that compare with real images by their classes if these images have none."""
        for collection in self.metrics.values():
            for name, score in scores_in(collection).items():
                if score.wants_real and not score.sees(record.has_class_ids):
                    self.left_out.add(name)
                    del collection[name]

    def _reference_size(self) -> Sequence[int] | None:
        """Returns height and width of the images to compare with, once they are seen; None if that is not known."""
        assert self.reference_record is not None
        return self.reference_record.size or (self.reference.size if isinstance(self.reference, Reference) else None)

    def _result(self, metrics: Metrics, record: Record) -> Result:
        real = self.reference_record
        assert real is not None
        if record.num_images < 2:
            raise InputError(f"images: {record.num_images} readable ones; expected at least 2.")
        scores: Scores = {}
        reference: dict[str, Any] = {}
        notes: list[str] = []
        for protocol, collection in metrics.items():
            scores[protocol] = {"num_images": record.num_images}
            count = real.num_images or None
            chosen = scores_in(collection)
            for name in self.names:  # in the order that the user has chosen
                if name in chosen and not chosen[name].sees(record.has_class_ids):
                    notes.append(f"Without {name}: these images have no classes.")
                elif name in chosen:
                    numbers = chosen[name].numbers(name)
                    if numbers.keys() & scores[protocol].keys():  # two scores may be of one class
                        numbers = {f"{name}_{key}": value for key, value in numbers.items()}
                    scores[protocol] |= numbers
                    notes += getattr(chosen[name].metric, "notes", [])
            if isinstance(self.reference, Reference):
                scores[protocol] |= self.reference.own_scores(protocol, chosen, self.features)
                count = self.reference.num_images(protocol) or count
            reference[protocol] = {"num_images": count, "images_sha256": real.sha256 if real.num_images else None}
        return Result(scores, [*real.skipped, *record.skipped], record.sha256, reference, sorted(self.left_out), notes)


def no_evaluation(**options: Any) -> None:
    """Stands in place of an `Evaluation` where nothing is scored: accepts its options, ignores them, returns None."""
