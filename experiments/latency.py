"""task=latency: seconds from class ids to images, of several networks by the number of steps, as the paper plots it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib as mpl
import pandas as pd
import torch
from annotated_types import Ge, Gt, MinLen
from lightning.fabric import Fabric
from matplotlib.figure import Figure

from enat.errors import InputError, counted
from enat.files import write_atomically
from enat.flops import sampling_flops
from enat.net import ENAT
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from experiments.benchmark import DTYPES
from experiments.benchmarking.workload import Clock, Generation
from experiments.reporting.figures import STYLE, save
from experiments.runtime.progress import tell
from experiments.runtime.provenance import hardware


def latency(
    networks: dict[str, ENAT],
    sampler: Callable[..., Sampler],
    decoder: Tokenizer,
    num_steps: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)],
    batch_size: Annotated[int, Ge(1)],
    precision: Literal["float32", "bfloat16", "float16"],
    seconds: Annotated[float, Gt(0)],
    fabric: Fabric,
    output: str,
) -> dict[str, Any]:
    """Measures sampling and decoding of a batch with random weights, for each network and each number of steps.

    Args:
        networks: by name.
        sampler: is called with each number of steps.
        decoder: decodes the tokens of all networks.
        num_steps: numbers of steps.
        batch_size: images at a time.
        precision: of the weights.
        seconds: how long each measurement is repeated, at least three times.
        fabric: one device.
        output: folder of `latency.csv` and `latency.png`.

    Raises:
        InputError: if the decoder does not fit the tokens of a network.
    """
    if not networks:
        raise InputError("networks={}: expected at least one, such as +net@networks.mine=enat_b.")
    device, dtype = fabric.device, DTYPES[precision]
    clock = Clock(device, dtype, seconds, with_peak=False)
    decoder.to(device, dtype).eval()
    samplers = {steps: sampler(num_steps=steps) for steps in num_steps}
    for net in networks.values():
        decoder.check_sizes(net.codebook_size, net.num_tokens)
    operations = {  # before anything is measured, for some orders have no fixed cost and are refused
        name: {steps: sampling_flops(net, by) / 1e9 for steps, by in samplers.items()} for name, net in networks.items()
    }
    rows = []
    for name, net in networks.items():
        tell(f"{name}: {', '.join(map(str, num_steps))} steps")
        net.to(device, dtype).eval()
        generations = {steps: Generation(net, by, batch_size, device) for steps, by in samplers.items()}
        works = {str(steps): _images_of(generation, decoder) for steps, generation in generations.items()}
        measured = clock.compare(works)
        rows += [
            _row(name, steps, measured[str(steps)], batch_size, gflop) for steps, gflop in operations[name].items()
        ]
        net.to("meta")  # frees the memory for the next one
    table = pd.DataFrame(rows)
    title = f"Seconds for {counted(batch_size, 'image')}, with the decoder, in {precision}"
    by_steps = table.pivot(index="network", columns="num_steps", values="seconds").loc[list(networks)]
    print(f"{title}, by the number of steps:\n{by_steps.to_string(float_format='{:.3f}'.format)}")
    csv = Path(output) / "latency.csv"
    write_atomically(csv, table.to_csv(index=False).encode())
    save(plot_latency(by_steps, title), csv.with_suffix(".png"))
    facts = {"batch_size": batch_size, "precision": precision, "threads": torch.get_num_threads()}
    files = {"table": str(csv), "plot": str(csv.with_suffix(".png"))}
    return {"latency": rows, **facts, **files, **hardware(device, 1)}


def _row(network: str, num_steps: int, seconds: float, batch_size: int, gflop: float) -> dict[str, Any]:
    """Returns a row of the table: a network with a number of steps, the seconds of a batch, the GFLOP of an image."""
    of_time = {"seconds": seconds, "images_per_second": batch_size / seconds}
    return {"network": network, "num_steps": num_steps, **of_time, "gflop_per_image_without_decoder": gflop}


def _images_of(generation: Generation, decoder: Tokenizer) -> Callable[[], object]:
    """Returns work that samples a batch and decodes it."""

    @torch.no_grad()
    def work() -> object:
        return decoder.decode(generation())

    return work


@mpl.rc_context(STYLE)
def plot_latency(by_steps: pd.DataFrame, title: str) -> Figure:
    """Draws seconds over steps, a line for each network; rows of the table are networks, and columns steps."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, line in by_steps.iterrows():
        axes.plot(line, "o-", label=name)
    axes.set(xlabel="number of steps", ylabel="seconds", title=title)
    axes.set_ylim(0)
    axes.set_xticks(list(by_steps.columns))
    return figure
