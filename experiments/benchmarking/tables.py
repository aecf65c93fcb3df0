"""Tables and plots of a benchmark."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from enat.files import write_atomically

XLABELS = {"batch": "batch", "num_steps": "steps", "resolution": "resolution, times the experiment's"}


def print_tables(by_precision: Mapping[str, Mapping[str, Any]], data: float) -> None:
    """Prints a row for each precision and kind of work, and one for the data in samples/s."""
    table = Table("", "precision", "per second", "TFLOP an image", "share of the peak", "")
    for precision, results in by_precision.items():
        for kind in [kind for kind in ("sampling", "decode", "generation", "encode", "train") if kind in results]:
            row = results[kind]
            rate = row.get("images_per_second", row.get("samples_per_second"))
            more = {"sampling": "latency_s", "train": "step_s"}.get(kind)
            flops = f"{row['tflop_per_image']:.3f}" if "tflop_per_image" in row else ""
            rest = f"{more.removesuffix('_s')} {1e3 * row[more]:.1f} ms" if more else ""
            table.add_row(kind, precision, f"{rate:,.2f}", flops, f"{row['utilization']:.1%}", rest)
        table.add_row("matrix product", precision, "", "", f"{results['peak_tflops']:.3f} TFLOP/s", "")
    table.add_row("data, one worker", "", f"{data:,.0f}", "", "", "")
    Console(width=max(Console().width, 100)).print(table)


def plot(by_precision: Mapping[str, Mapping[str, Any]], steps: Sequence[Mapping[str, float]], path: Path) -> None:
    """Plots seconds and memory over batch, steps and resolution, with lines of linear cost; and each step's tokens."""
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    rows = figure.subplots(2, 4)
    for name, results in by_precision.items():
        curves = {"batch": results["sampling"]["by_batch"], **results["curves"]}
        for column, (x, points) in enumerate(curves.items()):
            if not points:
                continue
            places = [point[x] for point in points]
            size = [place**2 for place in places] if x == "resolution" else places  # cost is linear in tokens
            speed, memory = rows[0][column], rows[1][column]
            (line,) = speed.plot(places, [point["seconds"] for point in points], "o-", label=name)
            linear = [points[0]["seconds"] * value / size[0] for value in size]
            speed.plot(places, linear, ":", color=line.get_color(), lw=1, label="linear" if not column else None)
            memory.plot(places, [point["memory_gb"] or float("nan") for point in points], "o-")
            for axes in (speed, memory):
                axes.set_xscale("log", base=2)
                axes.set_xticks(places, [f"{place:g}" for place in places])
                axes.minorticks_off()
                axes.grid(alpha=0.3)
            speed.set(yscale="log", title=f"Sampling over {x.replace('num_', '')}", ylabel="seconds")
            memory.set(xlabel=XLABELS[x], ylabel="memory (GB)")
    rows[0][0].legend(fontsize=8)
    tokens, cost = rows[0][3], rows[1][3]
    bottom = [0.0] * len(steps)
    for name in ("encoded", "reused", "decoded"):
        heights = [row[name] for row in steps]
        tokens.bar([row["step"] for row in steps], heights, bottom=bottom, label=name)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    tokens.set(ylabel="tokens", title="What a step computes")
    tokens.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    cost.plot([row["step"] for row in steps], [row["gflop"] for row in steps], "ko-")
    cost.set(xlabel="step", ylabel="GFLOP per image")
    for axes in rows[1]:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    write_atomically(Path(path), partial(figure.savefig, format="png", dpi=90))
