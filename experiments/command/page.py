"""`enat page`: opens a page in the browser that draws and edits images."""

import argparse
import shlex

import enat
from experiments.command.arguments import OF_WEIGHTS, device, port
from experiments.web.launching import serve

FLAGS = {**OF_WEIGHTS, "port": "--port"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this command."""
    add = parser.add_argument
    add("weights", metavar="FOLDER", help="a folder of weights, a checkpoint, or OWNER/NAME on the hub")
    add("--port", type=port, default=7860, help="of the page on this machine (default: 7860)")
    add("--host", default="127.0.0.1", help="address of the page; 0.0.0.0 lets others in (default: 127.0.0.1)")
    add("--tokenizer", metavar="FILE", help="the tokenizer, where the weights come without it")
    add("--device", type=device, default="cpu", help="where images are drawn, such as cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> None:
    """Shows the page until Ctrl+C.

    Raises:
        InputError: for weights that can't be read, without gradio, and for a port that can't be used.
    """
    model = enat.load(arguments.weights, arguments.tokenizer, arguments.device)
    options = [f"weights={arguments.weights}"]
    if model.description["weights_kind"] == "official":  # such a file does not say its experiment to run.py
        size, side = "l" if model.net.encoder_depth == 22 else "b", 512 if model.net.num_tokens == 1024 else 256
        options.insert(0, f"experiment=enat_{size}_{side}")
    if arguments.tokenizer is not None:
        options.append(f"tokenizer.weights={arguments.tokenizer}")
    serve(model, shlex.join(options), arguments.host, arguments.port)
