"""Scores sets of images under several protocols, in one pass over them."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from enat.errors import InputError
from enat.metrics.images import GeneratedImages, Images
from enat.metrics.processes import Processes
from enat.metrics.reference import DecodedShards, StatisticsFile
from enat.metrics.scores import kernel_distance, precision_recall
from enat.metrics.statistics import frechet_distance
from enat.metrics.summary import Watcher, summarize
from enat.metrics.tally import Plan, Summary
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer

Scores = dict[str, dict[str, float]]  # by protocol and score


class Evaluation:
    """FID, Inception Score, sFID, KID, precision and recall by protocol, and further scores of images and classes.

    Args:
        features: feature network, an `enat.metrics.features.FeatureNetwork`.
        reference: what is compared with: statistics of a file, images, or shards decoded by the tokenizer.
        num_images: how many images a network has to generate.
        block_size: images with noise of their own (see `GeneratedImages`), whose features are computed together.
        batch_size: images that are generated at a time, a multiple of `block_size`; it does not change them.
        seed: of the generated images.
        splits: parts of the Inception Score.
        kid_subsets, kid_subset_size: KID is the mean over random subsets of that size, or of all images if fewer.
        neighbours: of precision and recall.
        reference_features: of so many reference images, spread evenly, features are kept for KID, precision and recall
            (10,000 in ADM's suite).
        extra: further scores by name, means over images of a function of images and class ids.

    Raises:
        InputError: for counts out of range.
    """

    def __init__(
        self,
        features: nn.Module,
        reference: StatisticsFile | DecodedShards | Images,
        num_images: int,
        block_size: int,
        batch_size: int,
        seed: int = 0,
        splits: int = 10,
        kid_subsets: int = 100,
        kid_subset_size: int = 1000,
        neighbours: int = 3,
        reference_features: int = 10_000,
        extra: Mapping[str, Callable[[Tensor, Tensor], Tensor]] | None = None,
    ):
        if splits < 1 or num_images < max(splits, 2):
            raise InputError(
                f"num_images={num_images}, splits={splits}: expected at least two images and one for each split."
            )
        if block_size < 1 or batch_size < 1 or batch_size % block_size:
            raise InputError(
                f"batch_size={batch_size}, block_size={block_size}: expected positive numbers, the first a multiple "
                "of the second."
            )
        if min(kid_subsets, neighbours) < 1 or min(kid_subset_size, reference_features) < 2:
            raise InputError(
                f"kid_subsets={kid_subsets}, kid_subset_size={kid_subset_size}, neighbours={neighbours}, "
                f"reference_features={reference_features}: expected at least 1, 2, 1 and 2."
            )
        network: Any = features.eval()
        self.features, self.reference = network, reference
        self.num_images, self.block_size, self.batch_size, self.seed = num_images, block_size, batch_size, seed
        self.splits, self.neighbours, self.extra = splits, neighbours, dict(extra or {})
        self.kid_subsets, self.kid_subset_size = kid_subsets, kid_subset_size
        self.reference_features = reference_features
        self.references: dict[bool, dict[str, Summary]] = {}
        self.real: dict[str, Summary] = {}
        self.reconstruction: dict[str, float] = {}
        self.protocols: list[str] = list(self.features.protocols)

    def generated(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        num_images: int | None = None,
        seed: int | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> GeneratedImages:
        """The images of a network; without a number or seed, those that the constructor was told."""
        count, seed = self.num_images if num_images is None else num_images, self.seed if seed is None else seed
        sizes = (count, seed, self.block_size, self.batch_size)
        return GeneratedImages(net, sampler, tokenizer, *sizes, context)

    def score(
        self,
        images: Images,
        device: torch.device,
        processes: Processes,
        full: bool = True,
        folder: Path | None = None,
        name: str = "images",
        watchers: tuple[Watcher, Watcher] | None = None,
    ) -> Scores:
        """Scores a set of images; all processes have to call, and all get the scores.

        Args:
            images: the set.
            device: where images and features are computed; generated ones are made where their network is.
            processes: share the work.
            full: False leaves out KID, precision and recall, which need every feature of both sides.
            folder: where unfinished work is kept; None to keep nothing.
            name: of the images there, beside the reference.
            watchers: of the reference's images and of the set's.

        Returns:
            By protocol: `num_images`, `fid`, `inception_score` and its deviation over the splits; if the reference
            has what they need, `sfid`, `kid`, `precision`, `recall`, `reconstruction_fid`; and the further scores.

        Raises:
            InputError: on all processes, for images or a reference that can't be scored.
        """
        self.features.to(device)
        of_reference, of_images = watchers or (Watcher(), Watcher())
        if images.num_images < max(self.splits, 2):
            raise InputError(f"{images.num_images} images: expected at least two, and one for each of the splits.")
        reference = self._reference(device, processes, full, folder, of_reference)
        plan = Plan(self.block_size, self.splits, images.num_images if full else 0)
        within = folder / name if folder else None
        summaries = summarize(images, self.features, plan, processes, device, self.extra, within, of_images)
        return processes.on_first(
            lambda: {name: self._compare(name, summaries[name], reference[name]) for name in self.protocols}
        )

    def identity(self) -> dict[str, Any]:
        """Plain values that scores depend on, beside the images."""
        return {
            "reference": dict(self.reference.identity),
            "features_sha256": self.features.sha256,
            "protocols": self.protocols,
            "num_images": self.num_images,
            "block_size": self.block_size,
            "splits": self.splits,
            "kid_subsets": self.kid_subsets,
            "kid_subset_size": self.kid_subset_size,
            "neighbours": self.neighbours,
            "reference_features": self.reference_features,
            "extra": sorted(self.extra),
        }

    def _reference(
        self, device: torch.device, processes: Processes, full: bool, folder: Path | None, watcher: Watcher
    ) -> dict[str, Summary]:
        """Summaries of the reference, on rank 0."""
        if full in self.references:
            return self.references[full]
        source = self.reference
        known: dict[str, Summary] = {}
        images: Images | None
        if isinstance(source, StatisticsFile):
            known, images = source.summaries(self.protocols, self.features), source.images
        elif isinstance(source, DecodedShards):
            images, self.real = source.images, {}
            if source.real is not None:
                self.real = source.real.summaries(self.protocols, self.features)
        else:
            images = source
        seen: dict[str, Summary] = {}
        lacking = [name for name in self.protocols if name not in known or (full and known[name].features is None)]
        if images is not None and lacking:
            plan = Plan(self.block_size, 0, self.reference_features if full else 0)
            within = folder / "reference" if folder else None
            seen = summarize(images, self.features, plan, processes, device, None, within, watcher)
        for name, summary in known.items():  # a file's statistics count for more than those of its images
            if name in seen:
                seen[name] = summary._replace(features=seen[name].features, size=seen[name].size)
        self.references[full] = {**known, **seen}
        return self.references[full]

    def _compare(self, protocol: str, images: Summary, reference: Summary) -> dict[str, float]:
        if None not in (images.size, reference.size) and images.size != reference.size:
            sizes = [f"{width}x{height}" for height, width in (images.size, reference.size)]  # type: ignore[misc]
            raise InputError(
                f"the images are {sizes[0]}, those of the reference {sizes[1]}; expected the same size, which "
                "the option resolution of a folder can make."
            )
        scores: dict[str, float] = {"num_images": images.pool.num_images or 0}
        scores |= {"fid": frechet_distance(images.pool, reference.pool)}
        if images.inception_score is not None:
            scores["inception_score"], scores["inception_score_std"] = images.inception_score
        if images.spatial is not None and reference.spatial is not None:
            scores["sfid"] = frechet_distance(images.spatial, reference.spatial)
        if images.features is not None and reference.features is not None:
            pair = (images.features, reference.features)
            if min(map(len, pair)) > max(self.neighbours, 1):
                scores["kid"], scores["kid_std"] = kernel_distance(*pair, self.kid_subsets, self.kid_subset_size)
                scores["precision"], scores["recall"] = precision_recall(*pair, self.neighbours)
        if protocol in self.real:
            if protocol not in self.reconstruction:
                self.reconstruction[protocol] = frechet_distance(reference.pool, self.real[protocol].pool)
            scores["reconstruction_fid"] = self.reconstruction[protocol]
        return scores | dict(images.extra or {})

    def facts(self) -> dict[str, Any]:
        """On rank 0, after scoring: what the reference was, by protocol."""
        reference = next(reversed(self.references.values()))
        return {
            name: {
                "num_images": found.pool.num_images,
                "images_sha256": found.sha256,
            }
            for name, found in reference.items()
        }

    def notes(self, scores: Scores) -> list[str]:
        """What a reader of scores has to be told."""
        width, found = self.features.num_features, []
        for count in {int(row["num_images"]) for row in scores.values()}:
            if count <= width:
                found.append(
                    f"FID of {count} images with {width} features: the covariance is singular and the FID too high; "
                    "compare it only with FIDs of as many images."
                )
        for reference in next(reversed(self.references.values()), {}).values():
            if reference.pool.num_images is not None and reference.pool.num_images <= width:
                found.append(f"The reference has {reference.pool.num_images} images, no more than {width} features.")
            if reference.features is not None and len(reference.features) <= self.neighbours:
                found.append(f"The reference has {len(reference.features)} features, too few for KID and recall.")
        return list(dict.fromkeys(found))
