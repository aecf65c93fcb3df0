"""`enat score`: compares a folder of images with real ones, by the scores of task=score."""

import argparse
import json
from pathlib import Path
from typing import Any

from data.references import ArchivedImages, StatisticsFile
from data.scored_images import FolderImages
from enat.errors import InputError
from enat.features import inception
from enat.features.lite0 import Lite0Features
from enat.images import Images
from enat.metrics.accumulation import RESOLUTIONS
from enat.metrics.evaluation import Evaluation
from enat.metrics.scores import FrechetDistance, InceptionScore, KernelDistance, PrecisionRecall
from enat.metrics.view import OnView
from enat.processes import Processes
from experiments.command.arguments import device, path, positive
from experiments.reporting.scores import notes_on, print_scores

WEIGHTS = "assets/weights-inception-2015-12-05-6726825d.pth"
PROTOCOLS = {"adm": inception.adm, "clean": inception.clean, "enat": inception.enat}
BLOCK_SIZE = 50  # as in conf/metrics/inception.yaml; the Inception Score and the hash of the images depend on it
FLAGS = {"reference.path": "--reference", "features.weights": "--weights", "features": "--features"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    parser.add_argument("images", type=path, metavar="DIR", help="a folder of images, or an .npz file with arr_0")
    parser.add_argument(
        "--reference", type=path, required=True, metavar="FILE_OR_DIR", help="real images, or statistics of them"
    )
    parser.add_argument("--features", default="inception", choices=["inception", "lite0"], help="default: inception")
    parser.add_argument("--weights", type=path, metavar="FILE", help=f"of Inception (default: {WEIGHTS})")
    parser.add_argument("--protocol", choices=sorted(PROTOCOLS), help="of Inception (default: enat)")
    parser.add_argument("--resolution", type=positive, metavar="SIDE", help="crops images in folders to this side")
    parser.add_argument("--device", type=device, default="cpu", help="where features are computed (default: cpu)")


def run(arguments: argparse.Namespace) -> None:
    """Scores the images, and prints a table and, as the last line, the same as JSON.

    Raises:
        InputError: for files that can't be read, and images that can't be compared.
    """
    images = _images(arguments.images, arguments.images, arguments.resolution)
    evaluation = Evaluation(
        features=_features(arguments),
        reference=_reference(arguments),
        scores=_scores(arguments.features),
        num_images=images.num_images,
        block_size=BLOCK_SIZE,
        batch_size=BLOCK_SIZE,
    )
    try:
        result = evaluation.score(images, arguments.device, Processes())
    except InputError as error:
        sentence = str(error).replace(RESOLUTIONS, "--resolution SIDE crops and scales images of folders")
        raise InputError(sentence.replace("or a resolution", "or --resolution SIDE")) from error
    notes = notes_on(result, evaluation.features.widths["pool"])
    print_scores({str(images.identity["kind"]): result.scores}, notes, result.skipped)
    about = {"images_sha256": result.sha256, "reference": result.reference, "features": evaluation.features.sha256}
    print(json.dumps({"scores": result.scores, **about, "notes": notes, "skipped": result.skipped}))


def _images(path: str, argument: str, resolution: int | None) -> Images:
    """Opens an `.npz` file of images or a folder of them; an error begins with the argument."""
    if path.endswith(".npz"):
        return ArchivedImages(path)
    if not Path(path).is_dir():
        raise InputError(f"{argument}: there is no such folder; expected one of images, or an .npz file of them.")
    try:
        return FolderImages(path, resolution, num_workers=0)
    except InputError as error:
        raise InputError(str(error).replace(f"{path}:", f"{argument}:", 1)) from error


def _reference(arguments: argparse.Namespace) -> Any:
    """Opens real images, or statistics of them."""
    path = arguments.reference
    if not Path(path).exists():
        raise InputError(f"--reference {path}: there is no such file or folder.")
    if Path(path).is_dir():
        return _images(path, f"--reference {path}", arguments.resolution)
    try:
        return StatisticsFile(path)
    except InputError as error:
        raise InputError(str(error).replace("path=", "--reference ", 1)) from error


def _features(arguments: argparse.Namespace) -> Any:
    """Makes the feature network, whose weights are read without running code in them."""
    if arguments.features == "lite0":
        for name in ("weights", "protocol"):
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} is for --features inception; expected lite0 without it.")
        return Lite0Features(weights=None, side=160)
    protocol = arguments.protocol or "enat"
    return inception.InceptionFeatures(arguments.weights or WEIGHTS, {protocol: PROTOCOLS[protocol]})


def _scores(features: str) -> dict[str, OnView]:
    """Makes the scores: those of conf/metrics/inception.yaml, or of conf/metrics/lite0.yaml, that need no classes."""
    scores = {"fid": OnView("pool", FrechetDistance())}
    if features == "inception":
        scores |= {
            "inception_score": OnView("logits", InceptionScore(splits=10)),
            "sfid": OnView("spatial", FrechetDistance()),
        }
    kernel = KernelDistance() if features == "inception" else KernelDistance(subset_size=100)
    return {**scores, "kid": OnView("pool", kernel), "precision_recall": OnView("pool", PrecisionRecall())}
