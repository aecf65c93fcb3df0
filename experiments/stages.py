"""task=stages: runs several tasks one after the other, each with a command of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from enat.errors import InputError
from enat.files import write_atomically
from experiments.runtime.ranks import processes

ENTRY = Path(__file__).parent.parent / "run.py"


def run_command(options: Sequence[str]) -> int:
    """Runs `python run.py` with options, passes on to it the signals of this process, and returns its exit status."""
    child = subprocess.Popen([sys.executable, os.path.relpath(ENTRY), *options])

    def pass_on(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1)  # a terminal sends SIGINT to the child itself
    earlier = {number: signal.signal(number, pass_on) for number in numbers}
    earlier[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return child.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stages(stages: Mapping[str, str], more: Mapping[str, str], output: str) -> dict[str, Any]:
    """Runs a command for each stage. Finished stages are passed over, unless one before them runs; others go on.

    Args:
        stages: the options of each command, by the stage's name; each stage has its own folder in `output`.
        more: further options, by the stage's name.
        output: the folder of the stages.

    Returns:
        The results of each stage, by its name.

    Raises:
        InputError: under torchrun or srun, whose processes would all run the commands.
        SystemExit: with the exit status of a stage that failed, or that a signal ended.
    """
    if processes()[1] > 1:
        raise InputError("task=stages: expected a single process; run the commands that it prints one by one.")
    if not stages:
        raise InputError("task=stages: expected an experiment that has stages, such as experiment=emoji.")
    if unknown := sorted(more.keys() - stages.keys()):
        raise InputError(f"more.{unknown[0]}: there is no such stage; expected one of {', '.join(stages)}.")
    results: dict[str, Any] = {}
    has_run = False  # then what comes after depends on new results
    for number, (name, options) in enumerate(stages.items(), 1):
        folder = Path(output) / name
        try:
            command = [*shlex.split(options), *shlex.split(more.get(name, "")), f"output={folder}"]
        except ValueError as error:
            given = f"{options} {more.get(name, '')}"
            raise InputError(f"stages.{name}: {error} in {given}; expected quotes in pairs, none in paths.") from error
        done = folder / "stage.json"  # the command that has finished
        results_file = folder / "results.json"
        print(f"\nStage {number} of {len(stages)}, {name}: python run.py {shlex.join(command)}", flush=True)
        is_done = done.exists() and results_file.exists() and json.loads(done.read_text()) == command
        if is_done and not has_run:
            print("It is done already.")
        else:
            has_run = True
            done.unlink(missing_ok=True)
            status = run_command(command)
            if status:
                raise SystemExit(status)
            write_atomically(done, json.dumps(command).encode())
        results[name] = json.loads(results_file.read_text())
    return results
