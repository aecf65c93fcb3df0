"""task=page: a page in the browser that draws and edits images (docs/page.md)."""

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Interval
from hydra.core.hydra_config import HydraConfig

from enat.checkpoints.hub import find_weights
from enat.checkpoints.saving import describe
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.pipeline import Pipeline
from enat.sampler import Sampler
from experiments.runtime.checkpoint import Checkpoint
from experiments.web.launching import serve

OWN = ("task=", "port=", "host=", "output=", "resume=", "debug=")  # options of the page, and not of its images


def page(
    checkpoint: Checkpoint,
    sampler: Sampler,
    weights: str | None,
    host: str,
    port: Annotated[int, Interval(ge=0, le=65535)],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Shows the page until Ctrl+C.

    Args:
        checkpoint, sampler: draw the images.
        weights: the file of the checkpoint.
        host: the address of the page; 127.0.0.1 is this machine alone.
        port: of the page; 0 for any that is free.
        settings: the whole configuration.

    Returns:
        `address` of the page, and what is known of the weights.

    Raises:
        InputError: without gradio, for several processes, for a precision that the page can't draw in, and for a port
            that can't be used.
    """
    if checkpoint.processes.size > 1:
        raise InputError("task=page: expected a single process; start it with python, and not with torchrun or srun.")
    if not str(checkpoint.facts["network_precision"]).endswith("-true"):
        raise InputError(
            f"fabric.precision={checkpoint.facts['network_precision']}: the page casts the weights once; expected "
            "32-true, bf16-true or 16-true."
        )
    path = find_weights(str(weights))
    described = describe(read_file(path), path) | {"settings": dict(settings)}
    parts = (checkpoint.net, sampler, checkpoint.tokenizer)
    model = Pipeline(*parts, checkpoint.class_names, described)
    given = [option for option in HydraConfig.get().overrides.task if not option.startswith(OWN)]
    return {"address": serve(model, shlex.join(given), host, port), **checkpoint.facts}
