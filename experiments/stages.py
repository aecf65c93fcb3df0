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

from data.images import ImageList
from enat.errors import InputError
from enat.files import exists, read_record, sha256_of, write_atomically
from experiments.runtime.job_data import sha256_at
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


def is_of_user(path: str, output: Path) -> bool:
    """Says whether a value names a file or a folder of the user, and not one that a stage makes in `output`."""
    return path != "" and exists(path) and not Path(path).resolve().is_relative_to(output.resolve())


def inputs_of(command: Sequence[str], output: Path, earlier: Mapping[str, Path]) -> dict[str, str]:
    """Returns hashes of what a stage reads: the results of the stages before it, and files and folders of the user.

    Args:
        command: the options of the stage.
        output: the folder of all stages.
        earlier: the files of the results of the stages before it, by name.
    """
    inputs = {name: sha256_of(file) for name, file in earlier.items()}
    for option in command:
        name, _, value = option.partition("=")
        if is_of_user(value, output) and (sha256 := sha256_at(Path(value))) is not None:
            inputs[name] = sha256
    return inputs


def check_images(command: Sequence[str], output: Path) -> None:
    """Raises InputError for a folder of the user that task=tokenize can't read, before a tokenizer is trained on it."""
    given = dict(option.partition("=")[::2] for option in command)
    images = given.get("images", "")
    if given.get("task") == "tokenize" and is_of_user(images, output) and Path(images).is_dir():
        ImageList.find(Path(given["images"]), *(Path(given[name]) for name in ("labels", "classes") if name in given))


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
    commands = {}
    for name, options in stages.items():
        try:
            words = [*shlex.split(options), *shlex.split(more.get(name, ""))]
        except ValueError as error:
            given = f"{options} {more.get(name, '')}"
            raise InputError(f"stages.{name}: {error} in {given}; expected quotes in pairs, none in paths.") from error
        commands[name] = [*words, f"output={Path(output) / name}"]
        check_images(words, Path(output))
    results: dict[str, Any] = {}
    finished: dict[str, Path] = {}
    has_run = False  # then what comes after depends on new results
    for number, (name, command) in enumerate(commands.items(), 1):
        folder = Path(output) / name
        done = folder / "stage.json"  # the command that has finished, and what it has read
        results_file = folder / "results.json"
        print(f"\nStage {number} of {len(stages)}, {name}: python run.py {shlex.join(command)}", flush=True)
        record = {"command": command, "inputs": inputs_of(command, Path(output), finished)}
        is_done = done.exists() and results_file.exists() and read_record(done) == record
        if is_done and not has_run:
            print("It is done already.")
        else:
            has_run = True
            done.unlink(missing_ok=True)
            status = run_command(command)
            if status:
                raise SystemExit(status)
            write_atomically(done, json.dumps(record).encode())
        finished[name] = results_file
        results[name] = read_record(results_file)
    return results
