"""Draws the images of a request, and shows them step by step.

Shapes: `n` images, `L` tokens of an image.
"""

import json
import re
import shlex
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from enat.generation import sample_images
from enat.images import reveal, to_pil
from enat.pipeline import Pipeline
from experiments.web.choices import NUMBERS, Choices, Drawing

SLOW = 0.3  # seconds that a frame takes to decode from which on the page shows only the newest step


class Frame(NamedTuple):
    """The images of a request at the start of a step, whose masked tokens are covered; or the final ones."""

    step: int
    images: list[Image.Image]
    is_final: bool


class Stopped(Exception):  # noqa: N818
    """Ends a sampler whose images nobody waits for any more."""


class _Steps(list[Tensor]):
    """Hands over the token ids that each step starts from, as the `record` of a sampler."""

    def __init__(self, found: "SimpleQueue[Any]", stopped: threading.Event):
        super().__init__()
        self.found = found
        self.stopped = stopped

    def append(self, token_ids: Tensor) -> None:
        if self.stopped.is_set():
            raise Stopped
        self.found.put(token_ids)


def draw(model: Pipeline, drawing: Drawing) -> Iterator[Frame]:
    """Draws images in a thread of its own, and yields them as they are revealed.

    Args:
        model: with the sampler that is asked for.
        drawing: says which images.

    Raises:
        InputError: if the network computes NaN.
    """
    found: SimpleQueue[Any] = (
        SimpleQueue()
    )  # of token ids (n, L), and in the end images (n, channels, H, W) or an error
    stopped = threading.Event()

    def work() -> None:
        try:
            record = None if model.sampler.is_adaptive else _Steps(found, stopped)
            found.put(sample_images(model.net, model.sampler, model.tokenizer, drawing.pictures, drawing.seed, record))
        except BaseException as error:
            found.put(error)

    threading.Thread(target=work, name="drawing", daemon=True).start()
    step = -1
    seconds = 0.0
    try:
        while True:
            item = found.get()
            step += 1
            while seconds > SLOW and not found.empty() and not _is_last(item):
                item = found.get()
                step += 1
            if isinstance(item, BaseException):
                raise item
            if _is_last(item):
                yield Frame(model.sampler.num_steps, to_pil(item), True)
                return
            begun = time.perf_counter()
            images = covered(model, item)
            seconds = time.perf_counter() - begun
            yield Frame(step, images, False)
    finally:
        stopped.set()


def _is_last(item: Any) -> bool:
    """Says whether what the thread hands over is the images or an error, and no step."""
    return isinstance(item, BaseException) or item.ndim == 4


@torch.no_grad()
def covered(model: Pipeline, token_ids: Tensor) -> list[Image.Image]:
    """Decodes token ids (n, L), and covers what is masked."""
    mask_token_id = model.net.mask_token_id
    images = model.tokenizer.decode(token_ids.masked_fill(token_ids == mask_token_id, 0)).float()
    return to_pil(reveal(images, [token_ids], mask_token_id)[:, 0])


def facts_of(choices: Choices, model: Pipeline, drawing: Drawing) -> list[dict[str, Any]]:
    """Returns what is written into the file of each image, the same as `enat sample` writes."""
    facts = {"seed": drawing.seed, **model.facts()}
    return [{**facts, "class": choices.names[class_id], "number": place} for class_id, place in drawing.pictures]


def command_line(choices: Choices, drawing: Drawing, given: str) -> str:
    """Returns the command that draws the same images.

    Args:
        choices: of the model.
        drawing: the request.
        given: the options that choose the weights, quoted for a shell.
    """
    classes = ",".join(_class_word(choices, class_id) for class_id in drawing.class_ids)
    words = [f"classes=[{classes}]", f"images_per_class={drawing.images_per_class}", f"seed={drawing.seed}"]
    words += [f"sampler.{name}={drawing.options[name]}" for name in NUMBERS if name in drawing.options]
    words += [f"order@sampler.order={drawing.order}"] if "order" in drawing.options else []
    words += [f"correction@sampler.correction={drawing.correction}"] if "correction" in drawing.options else []
    return " ".join(["python run.py task=sample", given, *map(shlex.quote, words)])


def _class_word(choices: Choices, class_id: int) -> str:
    """Returns a class as it is written on a command line: its name if that is plain, or else its id."""
    names = choices.model.class_names
    name = choices.names[class_id]
    if choices.names.count(name) == 1 and re.fullmatch(r"[a-zA-Z]\w*", name) and name not in ("null", "true", "false"):
        return name
    is_clear = str(class_id) not in names or names.index(str(class_id)) == class_id
    return str(class_id) if is_clear else json.dumps(name, ensure_ascii=False)
