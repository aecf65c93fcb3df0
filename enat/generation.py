"""Images from classes: what a network, a sampler and a tokenizer make together. Shapes: `b` images of a block."""

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from enat.errors import InputError
from enat.images import Block
from enat.net import ENAT
from enat.precision import not_finite
from enat.randomness import generator_for
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.unicode import composed, finder

UNCONDITIONAL = "unconditional"  # stands for the null class, where classes are given by name
BATCH_SIZE = 16  # images that `sample_batches` draws at a time


class GeneratedImages:
    """The images that a network generates: image `i` has class `i` modulo their number, or as `class_counts` say.

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
        class_counts: how often each class occurs elsewhere; the images have the classes in the same proportions, the
            first so many of them as well as possible. None for each class as often.
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
        class_counts: Sequence[int] | None = None,
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
        numbers = torch.arange(num_images + block_size)  # a last block that is shorter is generated as a whole
        self.class_ids = balanced_classes(net, numbers)
        if class_counts is not None and net.num_classes:
            self.class_ids = classes_in_proportion(class_counts, len(numbers))
            self.identity = {**self.identity, "class_counts": list(class_counts)}

    def token_ids(self, places: Sequence[range]) -> list[Tensor]:
        """Generates the token ids (b, L) of blocks in one batch; only the last block of the set may be shorter."""
        device = self.net.head_bias.device
        firsts = torch.tensor([place.start for place in places], device=device)
        numbers = (firsts.unsqueeze(1) + torch.arange(self.block_size, device=device)).flatten()
        generators = [
            generator_for(device, "block of images", self.seed, place.start // self.block_size) for place in places
        ]
        class_ids = self.class_ids.to(device)[numbers]
        drawn = without_masks(self.net, self.sampler(self.net, class_ids, generators)).split(self.block_size)
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
                class_ids = self.class_ids[numbers].to(device) if self.net.num_classes else None
                yield Block(numbers, images, class_ids)


def balanced_classes(net: ENAT, numbers: Tensor) -> Tensor:
    """Returns the class ids of images by their numbers, each class as often; without classes, the null class."""
    return numbers % max(net.num_classes, 1)


def classes_in_proportion(counts: Sequence[int], num_images: int) -> Tensor:
    """Returns the class ids (n,) of images so that the first few, too, have the classes nearly in these proportions.

    Each next image has the class that is the furthest behind (Sainte-Laguë's method). With equal counts, image `i` has
    class `i` modulo their number.
    """
    total = sum(counts)
    most = [math.ceil(num_images * count / total) + 1 if count else 0 for count in counts]
    turns = sorted(
        (Fraction(2 * turn + 1, count), one) for one, count in enumerate(counts) for turn in range(most[one])
    )
    return torch.tensor([one for _, one in turns[:num_images]])


def check_class_names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Returns the names of the classes, one for each id; the ids themselves where a file has no names.

    Raises:
        InputError: for another number of names than of classes.
    """
    if names and len(names) != num_classes:
        raise InputError(f"class_names: {len(names)} names for the {num_classes} classes of the network.")
    return list(names or map(str, range(num_classes)))


def _plain(value: Any) -> Any:
    """Turns integers and arrays of NumPy, and tensors, into integers and lists of Python; other values stay."""
    return value.tolist() if hasattr(value, "tolist") else value


def find_class_ids(classes: Sequence[int | str] | int | str | None, class_names: Sequence[str]) -> list[int]:
    """Returns the ids of classes that are given by id or by name; `unconditional` is the null class.

    Names are compared in Unicode's composed form, see `enat.unicode`.

    Args:
        classes: ids or names, or a single one; None for all.
        class_names: one for each class id. A network without classes has none, and all its images are unconditional.

    Raises:
        InputError: for a class that there is not, and for no class at all.
    """
    if classes is None:
        return list(range(max(len(class_names), 1)))
    plain = _plain(classes)
    chosen = [_plain(one) for one in plain] if isinstance(plain, Iterable) and not isinstance(plain, str) else [plain]
    if not chosen:
        raise InputError("classes=[]: expected at least one class.")
    if not class_names and any(wanted != UNCONDITIONAL for wanted in chosen):
        raise InputError(f"classes={chosen[0]}: the network has no classes; expected classes={UNCONDITIONAL}.")
    ids = []
    find = finder(class_names)
    for wanted in chosen:
        is_id = isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < len(class_names)
        if is_id and str(wanted) in class_names and class_names.index(str(wanted)) != wanted:
            raise InputError(
                f"classes={wanted}: this is the id of the class {class_names[int(wanted)]} and the name of another; "
                f"expected names in quotes, such as 'classes=[\"{wanted}\"]'."
            )
        if is_id:
            ids.append(int(wanted))
        elif wanted == UNCONDITIONAL:  # even where a file of somebody else has a class of this name
            ids.append(len(class_names))
        elif (place := find(str(wanted))) is not None:  # a name may be a number, such as 20240101
            ids.append(place)
        elif isinstance(wanted, str) and wanted.isdecimal() and str(int(wanted)) in class_names:  # "007" is 7
            ids.append(class_names.index(str(int(wanted))))
        else:
            known = [composed(name) for name in class_names]
            near = difflib.get_close_matches(composed(wanted), known, 3) if isinstance(wanted, str) else []
            names = f"did you mean {' or '.join(near)}?" if near else f"names such as {', '.join(class_names[:3])}."
            raise InputError(
                f"classes={wanted}: expected class ids from 0 to {len(class_names) - 1}, or names; {names}"
            )
    return ids


def without_masks(net: ENAT, token_ids: Tensor) -> Tensor:
    """Returns drawn token ids as they are.

    Raises:
        InputError: if some are still masked, since the network has computed NaN there.
    """
    if (token_ids == net.mask_token_id).any():
        otherwise = "an earlier checkpoint, or a training with a lower module.optimizer.lr"
        raise not_finite("the network", net.head_bias, otherwise)
    return token_ids


@torch.no_grad()
def sample_images(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    wanted: Sequence[tuple[int, int]],
    seed: int,
    steps: list[Tensor] | None = None,
) -> Tensor:
    """Draws images in one batch. What is drawn with an image does not change it.

    Args:
        net: the network, in evaluation mode.
        sampler: draws token ids from the network.
        tokenizer: makes images from token ids.
        wanted: for each image, its class id and its number in the class. With the seed, they decide its noise.
        seed: of the noise.
        steps: a list to which each step adds the token ids (B, L) that it starts from.

    Returns:
        Images (B, channels, h, w), in [0, 1].
    """
    device = net.head_bias.device
    tokenizer.to(device)
    class_ids = torch.tensor([class_id for class_id, _ in wanted], device=device)
    generators = [generator_for(device, "image of a class", seed, class_id, number) for class_id, number in wanted]
    return decode_alone(tokenizer, without_masks(net, sampler(net, class_ids, generators, steps)))


def decode_alone(tokenizer: Tokenizer, token_ids: Tensor) -> Tensor:
    """Makes images (B, channels, H, W), in [0, 1], from token ids (B, L), so that none depends on the others.

    On a CPU, they are made one at a time: the order of sums, and so the rounding, depends on the size of a batch.
    """
    sizes = 1 if token_ids.device.type == "cpu" else len(token_ids)
    return torch.cat([tokenizer.decode(part).float() for part in token_ids.split(sizes)])


class _WatchedSteps(list[Tensor]):
    """Collects the token ids that each step starts from, and calls a function at the start of each but the first."""

    def __init__(self, on_step: Callable[[int], None]):
        super().__init__()
        self.on_step = on_step

    def append(self, token_ids: Tensor) -> None:
        if self:
            self.on_step(len(self))
        super().append(token_ids)


def batches_of(class_ids: Sequence[int], images_per_class: int) -> list[list[tuple[int, int]]]:
    """Returns the class id and the number in the class of the first images of classes, in batches to draw at a time."""
    wanted = [(class_id, number) for class_id in class_ids for number in range(images_per_class)]
    return [wanted[start : start + BATCH_SIZE] for start in range(0, len(wanted), BATCH_SIZE)]


def sample_batches(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    batches: Sequence[Sequence[tuple[int, int]]],
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Draws batches of images, and yields each when it is drawn, as `sample_images` returns it, with its steps.

    Args:
        net, sampler, tokenizer, seed: see `sample_images`.
        batches: of `batches_of`.
        on_progress: is called at the start of each step, and in the end, with the number of steps that are done and
            the number of all. With an order that draws images one at a time, it is called once a batch.
    """
    total = len(batches) * sampler.num_steps
    for place, wanted in enumerate(batches):
        before = place * sampler.num_steps
        on_progress(before, total)
        starts = _WatchedSteps(lambda done, before=before: on_progress(before + done, total))  # type: ignore[misc]
        yield sample_images(net, sampler, tokenizer, wanted, seed, starts), starts
    on_progress(total, total)


def sample_classes(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    class_ids: Sequence[int],
    images_per_class: int,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Tensor, list[Tensor]]:
    """Draws the first images of each class, all of which are kept in memory.

    Args:
        net, sampler, tokenizer, seed: see `sample_images`.
        class_ids: the classes.
        images_per_class: the number of images of each class.
        on_progress: see `sample_batches`.

    Returns:
        Images (classes * images_per_class, channels, h, w), class by class, and, for the first image of each class,
        the token ids (classes, L) that each of the T steps starts from.
    """
    batches = batches_of(class_ids, images_per_class)
    drawn = list(sample_batches(net, sampler, tokenizer, batches, seed, on_progress))
    steps = torch.cat([torch.stack(starts) for _, starts in drawn], dim=1)  # (T, classes * images_per_class, L)
    return torch.cat([images for images, _ in drawn]), list(steps[:, ::images_per_class])
