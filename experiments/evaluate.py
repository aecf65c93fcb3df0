"""task=evaluate: generate images with a checkpoint and score them."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from enat.metrics.evaluation import Evaluation
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from enat.weights import load_weights
from experiments.device import device_for


def score(
    net: ENAT,
    sampler: Sampler,
    tokenizer: Tokenizer,
    evaluation: Evaluation,
    title: str,
    rank: int = 0,
    world_size: int = 1,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, float]:
    """Scores a network with a progress bar; all ranks have to call it. See `Evaluation.score_network`."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, disable=rank > 0) as progress:
        bar = progress.add_task(title, total=evaluation.num_images)
        return evaluation.score_network(
            net.eval(),
            sampler,
            tokenizer,
            rank=rank,
            world_size=world_size,
            on_images=lambda count: progress.advance(bar, count * world_size),
            context=context,
        )


def print_scores(rows: dict[str, dict[str, float]]) -> None:
    """Prints a table with a row per name and a column per score."""
    columns = list(next(iter(rows.values())))
    table = Table("", *[name.removeprefix("num_").replace("_", " ") for name in columns])
    for name, scores in rows.items():
        table.add_row(name, *[f"{scores[column]:,.4g}" for column in columns])
    Console().print(table)


def evaluate(
    net: ENAT, sampler: Sampler, tokenizer: Tokenizer, evaluation: Evaluation, weights: str | None, accelerator: str
) -> dict[str, Any]:
    """Scores a checkpoint's images; returns the scores and where the weights come from."""
    tokenizer.check_sizes(net.codebook_size, net.num_tokens)
    source = load_weights(net, weights)
    net.to(device_for(accelerator))
    with torch.inference_mode():
        scores = score(net, sampler, tokenizer, evaluation, "generating")
    print_scores({f"{source['kind']} weights": scores})
    return {**scores, **source}
