"""`enat sample`: draws images of classes as PNG files that say how they were drawn."""

import argparse
import sys
from pathlib import Path

import enat
from enat.building import MAX_OF_OPTION
from enat.errors import counted
from enat.generation import UNCONDITIONAL, batches_of, find_class_ids, sample_batches
from enat.images import file_name, to_pil
from experiments.command.arguments import OF_WEIGHTS, as_typed, device, path, positive, seed, whole
from experiments.command.files import prepare, refuse_too_many, write_images

FLAGS = {**OF_WEIGHTS, "classes": "--classes", "num_steps": "--steps", "guidance_scale": "--guidance"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("weights", metavar="FOLDER", help="a folder of weights, a checkpoint, or OWNER/NAME on the hub")
    add("--classes", nargs="+", metavar="CLASS", help="ids or names, or unconditional (default: all)")
    add("--images-per-class", type=positive, default=1, metavar="N", help="images of each class (default: 1)")
    add("--seed", type=seed, default=0, help="of the noise (default: 0)")
    add("--output", type=path, default="samples", metavar="DIR", help="folder of the images (default: samples)")
    add(
        "--steps",
        type=whole(1, MAX_OF_OPTION["num_steps"]),
        metavar="N",
        help="steps of the sampler (default: those of the folder)",
    )
    add("--guidance", type=float, metavar="SCALE", help="guidance scale (default: that of the folder)")
    add("--tokenizer", metavar="FILE", help="the tokenizer, where the weights come without it")
    add("--device", type=device, default="cpu", help="where images are drawn, such as cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> None:
    """Draws the images that are not there yet, and writes each batch when it is drawn.

    Raises:
        InputError: for weights that can't be read, an unknown class, or a folder with other images.
    """
    model = enat.load(arguments.weights, arguments.tokenizer, arguments.device)
    options = {"num_steps": arguments.steps, "guidance_scale": arguments.guidance}
    if given := {name: value for name, value in options.items() if value is not None}:
        model = model.with_sampler(**given)
    class_ids = list(dict.fromkeys(find_class_ids(as_typed(arguments.classes, model.class_names), model.class_names)))
    names = [*model.class_names, UNCONDITIONAL]
    refuse_too_many(len(class_ids), arguments.images_per_class, "--images-per-class")
    batches = batches_of(class_ids, arguments.images_per_class)
    folder = Path(arguments.output)
    facts = {"seed": arguments.seed, **model.facts()}
    files = {
        one: (folder / file_name(one, names, arguments.seed), {**facts, "class": names[one[0]], "number": one[1]})
        for batch in batches
        for one in batch
    }
    missing = prepare(folder, dict(files.values()))
    # Whole batches are drawn again, for sums may be rounded otherwise in a smaller one.
    rest = [batch for batch in batches if any(files[one][0] in missing for one in batch)]
    parts = (model.net, model.sampler, model.tokenizer)
    for batch, (images, _) in zip(rest, sample_batches(*parts, rest, arguments.seed, _show_progress), strict=True):
        write_images([files[one] for one in batch], to_pil(images))
    print(f"{counted(len(files), 'image')} in {folder}")


def _show_progress(done: int, total: int) -> None:
    """Shows on a terminal how many steps are done."""
    if sys.stderr.isatty():
        print(f"\rstep {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
