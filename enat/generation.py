"""Images from classes: what a network, a sampler and a tokenizer make together. Shapes: `b` images of a block."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from enat.errors import InputError
from enat.images import Block
from enat.net import ENAT
from enat.randomness import generator_for
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer


class GeneratedImages:
    """The images that a network generates, in balanced classes: image `i` has class `i` modulo their number.

    Each block of images has a seed of its own, so that the batch size and the number of processes decide who draws a
    block and not what is in it. (A matrix product may round differently in another batch. Where two tokens are equally
    likely but for that, another one of them may be drawn.)

    Args:
        net: the network, in evaluation mode.
        sampler: draws token ids from the network.
        tokenizer: makes images from token ids.
        num_images: how many images there are.
        seed: the seed of the noise.
        block_size: images that share the noise of one seed.
        batch_size: images that are generated at a time, a multiple of `block_size`.
        context: is entered for generation and decoding, such as autocast.
    """

    def __init__(
        self,
        net: ENAT,
        sampler: Sampler,
        tokenizer: Tokenizer,
        num_images: int,
        seed: int,
        block_size: int,
        batch_size: int,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        self.net = net
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.context = context
        self.num_images = num_images
        self.seed = seed
        self.block_size = block_size
        self.read_together = batch_size // block_size
        self.identity: Mapping[str, Any] = {"kind": "generated", "seed": seed, "block_size": block_size}

    def token_ids(self, places: Sequence[range]) -> list[Tensor]:
        """Generates the token ids (b, L) of blocks in one batch; only the last block of the set may be shorter."""
        device = self.net.head_bias.device
        firsts = torch.tensor([place.start for place in places], device=device)
        numbers = (firsts.unsqueeze(1) + torch.arange(self.block_size, device=device)).flatten()
        generators = [
            generator_for(device, "block of images", self.seed, place.start // self.block_size) for place in places
        ]
        drawn = self.sampler(self.net, numbers % self.net.num_classes, generators).split(self.block_size)
        return [token_ids[: len(place)] for token_ids, place in zip(drawn, places, strict=True)]

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """Reads blocks, see `enat.images.Images`."""
        self.tokenizer.to(device)
        for start in range(0, len(places), self.read_together):
            together = places[start : start + self.read_together]
            with self.context():
                drawn = self.token_ids(together)
            for place, token_ids in zip(together, drawn, strict=True):
                with self.context():
                    images = self.tokenizer.decode(token_ids).float()
                numbers = torch.tensor(place)
                yield Block(numbers, images, (numbers % self.net.num_classes).to(device))


def find_class_ids(classes: Sequence[int | str], class_names: Sequence[str]) -> list[int]:
    """Returns the ids of classes that are given by id or by name.

    Raises:
        InputError: for a class that there is not.
    """
    ids = []
    for wanted in classes:
        if wanted in class_names:  # a name may be a number: the digit "3"
            ids.append(class_names.index(str(wanted)))
        elif isinstance(wanted, int) and 0 <= wanted < len(class_names):
            ids.append(wanted)
        else:
            near = difflib.get_close_matches(wanted, class_names, 3) if isinstance(wanted, str) else []
            names = f"did you mean {' or '.join(near)}?" if near else f"names such as {', '.join(class_names[:3])}."
            raise InputError(
                f"classes={wanted}: expected class ids from 0 to {len(class_names) - 1}, or names; {names}"
            )
    return ids


@torch.no_grad()
def sample_classes(
    net: ENAT, sampler: Sampler, tokenizer: Tokenizer, class_ids: list[int], images_per_class: int, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """Draws images class by class, each class with a seed of its own: its images do not depend on the other classes.

    Returns:
        Images (classes * images_per_class, channels, h, w), and, for the first image of each class, the token ids
        (classes, L) that each of the T steps starts from.
    """
    device = net.head_bias.device
    tokenizer.to(device)
    images, first = [], []
    for class_id in class_ids:
        steps: list[Tensor] = []
        labels = torch.full((images_per_class,), class_id, device=device)
        token_ids = sampler(net, labels, generator_for(device, "class of a grid", seed, class_id), steps)
        images.append(tokenizer.decode(token_ids).float())
        first.append(torch.stack([ids[0] for ids in steps]))  # (T, L)
    return torch.cat(images), list(torch.stack(first, dim=1))
