"""The command `enat`: reads its arguments, and tells bad input in one sentence with the exit status 2.

A further command is a module beside this one with `add_arguments(parser)`, `run(arguments)` and `FLAGS`, the arguments
by the names of options in errors, and a line in `COMMANDS`. Modules are imported when their command is run: none of
them needs Hydra or Lightning.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Mapping, Sequence

from enat.errors import InputError, printable

COMMANDS = {
    "sample": "draw images of classes as PNG files",
    "edit": "draw a part of an image anew",
    "page": "open a page in the browser that draws and edits images",
    "score": "compare images with real ones: FID and other scores",
}


def make_parser(command: str | None) -> argparse.ArgumentParser:
    """Returns the parser of arguments, with the options of one command; None for no options."""
    parser = argparse.ArgumentParser(prog="enat", description="Draws images with a network of this project.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == command:
            importlib.import_module(f"experiments.command.{name}").add_arguments(sub)
            places = [str(action.metavar) for action in sub._actions if not action.option_strings]
            # As argparse would write it, with these in the end, an option that takes several words takes them, too.
            sub.usage = " ".join([sub.prog, *places, "[OPTION ...]"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command, and returns its exit status: 2 for bad input, 130 if it was interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = make_parser(given[0] if given else None).parse_args(given)
    command = importlib.import_module(f"experiments.command.{parsed.command}")
    try:
        command.run(parsed)
    except InputError as error:
        return _refuse(as_arguments(str(error), command.FLAGS))
    except RuntimeError as error:  # torch's of an operation that Apple GPUs lack is one
        if "MPS" not in str(error):
            raise
        reason = str(error).partition(".")[0]
        return _refuse(f"--device mps: {reason}; expected --device cpu, or PYTORCH_ENABLE_MPS_FALLBACK=1.")
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        print("enat: interrupted.", file=sys.stderr)
        return 130
    return 0


def as_arguments(sentence: str, flags: Mapping[str, str]) -> str:
    """Writes the names of options in an error as the arguments of a command: `--scale 2` instead of `scale=2`.

    Args:
        sentence: the error.
        flags: the argument of each option.
    """
    for name, flag in flags.items():
        option = rf"(?<![\w./-]){re.escape(name)}"
        sentence = re.sub(rf"{option}=", f"{flag} ", sentence)
        sentence = re.sub(rf"^{option}:", f"{flag}:", sentence)
    return sentence


def _refuse(sentence: str) -> int:
    """Prints what is wrong with the input, and returns the exit status."""
    print(f"enat: error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return 2
