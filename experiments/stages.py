"""task=stages: runs several tasks one after the other, each with a command of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig

from data.images import ImageList
from data.manifest import Manifest
from enat.errors import InputError, printable
from enat.files import exists, make_before, read_record, sha256_of_bytes, write_atomically
from experiments.runtime.job_data import NAMES, sha256_at
from experiments.runtime.job_names import config_flags
from experiments.runtime.ranks import processes

ENTRY = Path(__file__).parent.parent / "run.py"
STAGE = "stage.json"  # in the folder of a stage: the command, its settings, what it reads, whether it has finished


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


def settings_of(options: Sequence[str]) -> str | None:
    """Returns the sha256 of all settings of `python run.py` with options; None if it refuses them.

    The same options have other settings if a YAML file has changed, or a file that settings are taken from.
    """
    composed = subprocess.run([sys.executable, os.path.relpath(ENTRY), *options, "--cfg", "job"], capture_output=True)
    return None if composed.returncode else sha256_of_bytes(composed.stdout)


def is_of_user(path: str, output: Path) -> bool:
    """Says whether a value names a file or a folder of the user, and not one that a stage makes in `output`."""
    return path != "" and exists(path) and not Path(path).resolve().is_relative_to(output.resolve())


def inputs_of(command: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Returns hashes of the files and folders that a stage reads, by the options that name them, as in `NAMES`.

    The last hash of each is the one of older versions. Of shards, the first leaves out where their tokenizer is and why
    images were skipped, which changes when the folder of all stages is moved.
    """
    inputs: dict[str, tuple[str, ...]] = {}
    for option in command:
        name, _, value = option.partition("=")
        if name.rpartition(".")[2] in NAMES and value and (sha256 := sha256_at(Path(value))) is not None:
            inputs[name] = (sha256,)
            with suppress(InputError):  # for all that are no shards
                shards = {**asdict(Manifest.load(Path(value))), "tokenizer_settings": None, "skipped": []}
                inputs[name] = (sha256_of_bytes(json.dumps(shards, sort_keys=True).encode()), sha256)
    return inputs


def _elsewhere(folder: Path) -> str:
    """Says how a stage begins anew, since `output` and `resume` can't be set for one stage."""
    return (
        "expected output=DIR beside the experiment, to run all stages in another folder, or move "
        f"{folder} away to run this one and those after it anew."
    )


def refuse_folders(stage: str, words: Sequence[str], output: Path) -> None:
    """Refuses options of a stage that would put its results where the stages after it do not look for them.

    Raises:
        InputError: naming the option.
    """
    for option in words:
        name = option.lstrip("+").partition("=")[0]
        if name in ("output", "resume"):
            raise InputError(f"more.{stage}: {name} can't be set for one stage; {_elsewhere(output / stage)}")


def check_images(command: Sequence[str], output: Path) -> None:
    """Raises InputError for a folder of the user that task=tokenize can't read, before a tokenizer is trained on it."""
    given = dict(option.partition("=")[::2] for option in command)
    images = given.get("images", "")
    if given.get("task") == "tokenize" and is_of_user(images, output) and Path(images).is_dir():
        ImageList.find(Path(given["images"]), *(Path(given[name]) for name in ("labels", "classes") if name in given))


def set_aside(folder: Path) -> None:
    """Moves a stage's folder, which was made from other inputs than there are now; nothing is deleted."""
    aside = folder.rename(make_before(folder.parent) / folder.name)
    print(f"{folder} was made from other inputs than there are now; it has been moved to {aside}.", flush=True)


def run_stage(command: Sequence[str], folder: Path, record: Mapping[str, Any]) -> None:
    """Runs the command of a stage in its folder, which keeps a record of it.

    Raises:
        SystemExit: with the exit status of a command that failed, or that a signal ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_begun = any(path.name != STAGE for path in folder.iterdir())
    write_atomically(folder / STAGE, json.dumps({**record, "finished": False}).encode())
    status = run_command(command)
    if status == 1 and is_begun:  # the command may advise what a stage does not take
        sentence = f"A stage takes neither another output=DIR nor resume=false; {_elsewhere(folder)}"
        print(printable(sentence), file=sys.stderr)
    if status:
        raise SystemExit(status)
    write_atomically(folder / STAGE, json.dumps(record).encode())


def stages(stages: Mapping[str, str], more: Mapping[str, str], output: str) -> dict[str, Any]:
    """Runs a command for each stage. Finished stages are passed over, and others go on.

    A stage begins anew, in an empty folder, if what it reads has changed, such as what a stage before it has made.

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
    flags = config_flags(HydraConfig.get())
    for name, options in stages.items():
        try:
            words = [*shlex.split(options), *shlex.split(more.get(name, ""))]
        except ValueError as error:
            given = f"{options} {more.get(name, '')}"
            raise InputError(f"stages.{name}: {error} in {given}; expected quotes in pairs, none in paths.") from error
        refuse_folders(name, words, Path(output))
        commands[name] = [*words, f"output={Path(output) / name}", *flags]
        check_images(words, Path(output))
    results: dict[str, Any] = {}
    for number, (name, command) in enumerate(commands.items(), 1):
        folder = Path(output) / name
        stage_file = folder / STAGE
        results_file = folder / "results.json"
        print(f"\nStage {number} of {len(stages)}, {name}: python run.py {shlex.join(command)}", flush=True)
        inputs = inputs_of(command)
        hashes = {name: own[0] for name, own in inputs.items()}
        record = {"command": command, "settings": settings_of(command), "inputs": hashes, "finished": True}
        # Records of older versions lack what is given first.
        earlier = (
            {"finished": True, "settings": record["settings"], **read_record(stage_file)} if stage_file.exists() else {}
        )
        if earlier == record and results_file.exists():
            print("It is done already.")
        else:
            read_before = earlier.get("inputs", {})
            if any(read_before.get(option, own[0]) not in own for option, own in inputs.items()):
                set_aside(folder)
            run_stage(command, folder, record)
        results[name] = read_record(results_file)
    return results
