"""task=evaluate: generate images with a checkpoint and score them."""

from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from enat.metrics.evaluation import Evaluation
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizer import Tokenizer
from experiments.weights import load_weights


def score(net: ENAT, sampler: Sampler, tokenizer: Tokenizer, evaluation: Evaluation, title: str) -> dict[str, float]:
    """Scores a network with a progress bar."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=evaluation.num_images)
        return evaluation.score_network(
            net.eval(), sampler, tokenizer, on_images=lambda count: progress.advance(bar, count)
        )


def print_scores(rows: dict[str, dict[str, float]]) -> None:
    """Prints a table with a row per name and a column per score."""
    columns = list(next(iter(rows.values())))
    table = Table("", *[name.replace("_", " ") for name in columns])
    for name, scores in rows.items():
        table.add_row(name, *[f"{scores[column]:.4g}" for column in columns])
    Console().print(table)


def evaluate(
    net: ENAT, sampler: Sampler, tokenizer: Tokenizer, evaluation: Evaluation, weights: str | None, accelerator: str
) -> dict[str, Any]:
    """Scores a checkpoint's images; returns the scores and where the weights come from."""
    source = load_weights(net, weights)
    net.to(L.Fabric(accelerator=accelerator, devices=1).device)
    with torch.inference_mode():
        scores = score(net, sampler, tokenizer, evaluation, "generating")
    print_scores({f"{source['kind']} weights": scores})
    return {**scores, "num_images": evaluation.num_images, **source}
