"""Prints the tasks, and the options of a task, as their YAML files describe them."""

import re
from collections.abc import Sequence

from enat.errors import InputError
from experiments.runtime.option_errors import ALL, explain_choice
from experiments.runtime.options import CONF


def help_on(arguments: Sequence[str]) -> str | None:
    """Returns what `task=NAME --help` prints: what the task does, and its own options with a line each.

    `--help` alone lists the tasks. None if the command line does not ask for help.

    Raises:
        InputError: if there is no such task.
    """
    tasks = [argument.removeprefix("task=") for argument in arguments if argument.startswith("task=")]
    if not {"--help", "-h", "help=true"} & set(arguments):
        return None
    if not tasks:
        titles = {path.stem: path.read_text().split("\n")[1][2:] for path in sorted((CONF / "task").glob("*.yaml"))}
        rows_of_tasks = [f"  {name:15} {title}" for name, title in titles.items()]
        heading = "python run.py task=NAME OPTION=VALUE ... (`task=NAME --help` prints the options of a task)"
        return "\n".join([heading, "", *rows_of_tasks, "", f"{ALL}; --hydra-help is on Hydra itself."])
    path = CONF / "task" / f"{tasks[-1]}.yaml"
    if not path.is_file():
        raise InputError(explain_choice(f"task/{tasks[-1]}"))
    lines = path.read_text().split("\n")
    title = [line[2:] for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    rows: list[tuple[str, str]] = []
    for line in lines:
        option = re.match(r"(\w+):\s*([^#]*?)\s*(?:#\s*(.*))?$", line)
        if option and option[1] not in ("defaults", "task") and (option[2] or option[3]):
            value = "..." if "${" in option[2] else option[2]  # that follows from other options
            rows.append((f"{option[1]}={value}", option[3] or ""))
        elif rows and re.match(r"\s+#", line):
            rows.append(("", line.strip("# ")))
    width = max((len(name) for name, _ in rows), default=0)
    options = [f"  {name:{width}}  {meaning}".rstrip() for name, meaning in rows]
    heading = "Its options:" if options else "It has no options of its own."
    return "\n".join([*title, "", heading, *options, "", f"{ALL}, also those of network and data."])
