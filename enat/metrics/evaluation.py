"""Scores a network by the images it generates, or images as they are.

Shapes: `B` images of a block, `C` classes.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from enat.errors import InputError
from enat.metrics.scores import FeatureFID, LogitInceptionScore
from enat.metrics.statistics import Statistics
from enat.net import ENAT
from enat.sampler import Sampler, generate
from enat.tokenizer import Tokenizer


class Evaluation:
    """FID and Inception Score, and any further scores of images and classes, in one pass over the images.

    Args:
        features: feature network; images (B, channels, h, w) in [0, 1] -> features (B, D) and logits (B, C'),
            with the attribute `num_features`.
        reference: what FID compares with: real images (n, channels, h, w), or their statistics.
        num_images: how many images a network has to generate, in balanced classes.
        block_size: images generated at a time. Each block has random numbers of its own, so that the images
            depend on this and the seed, not on the number of ranks.
        seed: of the generated images.
        splits: parts of the Inception Score.
        extra: further scores by name, updated with images and class ids.

    Raises:
        InputError: for counts out of range.
    """

    def __init__(
        self,
        features: nn.Module,
        reference: Tensor | Statistics,
        num_images: int,
        block_size: int,
        seed: int = 0,
        splits: int = 10,
        extra: Mapping[str, Metric] | None = None,
    ):
        if splits < 1 or num_images < max(splits, 2):
            raise InputError(
                f"num_images={num_images}, splits={splits}: expected at least two images and one for each split."
            )
        if block_size < 1:
            raise InputError(f"block_size={block_size}: expected at least 1.")
        if isinstance(reference, Statistics) and len(reference.mu) != features.num_features:
            raise InputError(f"reference: {len(reference.mu)} features; the network has {features.num_features}.")
        self.features, self.reference = features.eval(), reference
        self.num_images, self.block_size, self.seed, self.splits = num_images, block_size, seed, splits
        self.fid = FeatureFID(int(features.num_features))  # type: ignore[arg-type]
        self.inception_score = LogitInceptionScore(splits)
        self.extra = dict(extra or {})
        self.has_reference = False

    @torch.no_grad()
    def score_images(
        self, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, rank: int = 0, world_size: int = 1
    ) -> dict[str, float]:
        """Scores batches of images and class ids; each rank brings its own, all ranks get the scores of all.

        Returns:
            `num_images`, `fid`, `inception_score`, and the further scores by their names.
        """
        self.features.to(device)
        metrics: list[Metric] = [self.fid, self.inception_score, *self.extra.values()]
        for metric in metrics:
            metric.to(device)
            metric.reset()
        if not self.has_reference:
            if isinstance(self.reference, Statistics):
                self.fid.set_reference(self.reference, rank)
            else:
                for images in self.reference[rank::world_size].split(self.block_size):
                    self.fid.update(self.features(images.to(device))[0], real=True)
            self.has_reference = True
        count = torch.zeros((), dtype=torch.long, device=device)
        for images, class_ids in batches:
            features, logits = self.features(images)
            self.fid.update(features, real=False)
            self.inception_score.update(logits)
            count += len(images)
            for metric in self.extra.values():
                metric.update(images, class_ids)
        if world_size > 1:
            torch.distributed.all_reduce(count)
        scores = {"fid": self.fid, "inception_score": self.inception_score, **self.extra}
        return {"num_images": int(count)} | {name: float(metric.compute()) for name, metric in scores.items()}

    def score_network(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        num_images: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_images: Callable[[int], None] = lambda count: None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> dict[str, float]:
        """Scores images that a network in evaluation mode generates, block by block, shared by the ranks.

        Args:
            net, sampler, tokenizer: make the images.
            num_images: None for as many as the constructor was told.
            rank, world_size: which of how many; all of them have to call.
            on_images: hears of every block done on this rank, by its number of images.
            context: entered for generation and decoding, such as autocast; scores are always in full precision.

        Raises:
            InputError: if there are fewer blocks than ranks.
        """
        count = self.num_images if num_images is None else num_images
        if math.ceil(count / self.block_size) < world_size:
            raise InputError(
                f"metrics.evaluation.block_size={self.block_size}: expected at least a block of images for each "
                f"of the {world_size} ranks out of {count} images."
            )
        device = net.head_bias.device
        tokenizer.to(device)
        class_ids = torch.arange(count, device=device) % net.num_classes
        blocks = generate(net, sampler, class_ids, self.seed, self.block_size, rank, world_size)

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            while True:
                with context():
                    block, token_ids = next(blocks, (None, None))
                    if block is None or token_ids is None:
                        return
                    images = tokenizer.decode(token_ids).float()
                yield images, class_ids[block]
                on_images(len(token_ids))

        return self.score_images(batches(), device, rank, world_size)
