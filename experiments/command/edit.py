"""`enat edit`: draws a part of an image anew, as PNG files that say how they were drawn."""

import argparse
from pathlib import Path

import enat
from data.images import load_upright
from enat.errors import counted
from enat.generation import UNCONDITIONAL, find_class_ids
from enat.images import cut_word, file_name, pixels_sha256
from experiments.command.arguments import OF_WEIGHTS, as_typed, border, device, path, positive, seed, share
from experiments.command.files import prepare, refuse_too_many, write_images

FLAGS = {
    **OF_WEIGHTS,
    "classes": "--classes",
    "box": "--box",
    "region": "--mask",
    "scale": "--scale",
    "keep": "--keep",
    "seed": "--seed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("weights", metavar="FOLDER", help="a folder of weights, a checkpoint, or OWNER/NAME on the hub")
    add("image", type=path, metavar="IMAGE", help="an image file, which is cropped to a square")
    add("--classes", nargs="+", default=[UNCONDITIONAL], metavar="CLASS", help="ids or names (default: unconditional)")
    region = parser.add_mutually_exclusive_group()
    corners = ("LEFT", "TOP", "RIGHT", "BOTTOM")
    region.add_argument("--box", nargs=4, type=share, metavar=corners, help="what is drawn, as shares of the sides")
    region.add_argument("--mask", type=path, metavar="FILE", help="an image, white where it is drawn (default: all)")
    region.add_argument("--scale", type=share, default=1.0, help="shrinks the image, and draws what is around it")
    add("--keep", type=share, default=0.0, metavar="SHARE", help="of the region's tokens that stay (default: 0)")
    add("--results", type=positive, default=1, metavar="N", help="results for each class (default: 1)")
    add("--seed", type=seed, default=0, help="of the noise (default: 0)")
    add("--soft-blend", type=border, metavar="N", help="other pixels are the image's own, with a border of N pixels")
    add("--output", type=path, default="edited", metavar="DIR", help="folder of the results (default: edited)")
    add("--tokenizer", metavar="FILE", help="the tokenizer, where the weights come without it")
    add("--device", type=device, default="cpu", help="where images are drawn, such as cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> None:
    """Draws the results and writes them.

    Raises:
        InputError: for files that can't be read, an unknown class, options that do not fit together, or a folder with
            other images.
    """
    model = enat.load(arguments.weights, arguments.tokenizer, arguments.device)
    image = load_upright(Path(arguments.image))
    mask = None if arguments.mask is None else load_upright(Path(arguments.mask), "RGBA")
    typed = as_typed(arguments.classes, model.class_names)
    class_ids = list(dict.fromkeys(find_class_ids(typed, model.class_names)))
    refuse_too_many(len(class_ids), arguments.results, "--results")
    names = [*model.class_names, UNCONDITIONAL]
    options = {"scale": arguments.scale, "keep": arguments.keep, "soft_blend": arguments.soft_blend}
    edited = {"image_sha256": pixels_sha256(image), "box": arguments.box, **options, "mask_sha256": pixels_sha256(mask)}
    facts = {"seed": arguments.seed, **model.facts()}
    folder = Path(arguments.output)
    stem = cut_word(Path(arguments.image).stem)
    region = mask if mask is not None else arguments.box
    by_class = {
        class_id: [
            (
                folder / f"{stem}_{file_name((class_id, number), names, arguments.seed)}",
                {**facts, "class": names[class_id], "number": number, "edit": edited},
            )
            for number in range(arguments.results)
        ]
        for class_id in class_ids
    }
    missing = prepare(folder, dict(file for files in by_class.values() for file in files))
    for class_id, files in by_class.items():
        if any(path in missing for path, _ in files):
            one = UNCONDITIONAL if class_id == len(model.class_names) else class_id
            drawn = model.edit(image, one, region, results_per_class=len(files), seed=arguments.seed, **options)
            write_images(files, drawn)
    print(f"{counted(len(class_ids) * arguments.results, 'image')} in {folder}")
