"""Kills training at chosen moments and restarts it: `python tests/manual/kill_and_resume.py`, in about ten minutes.

Each of 20 kills sends a signal (KILL, TERM, USR1 or INT) from outside, to one rank or to all, while a run on one or two
ranks loads data, trains, saves a checkpoint or validates. The moments are not exact, unlike in the tests, which use
`tests/separate_processes.py`: this script looks for moments that nobody has thought of. It prints a table, and fails if
a run hangs or if the final weights differ in a bit from the weights of an uninterrupted run.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import read_file

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "run.py", "experiment=debug", "trainer.max_steps=90", "trainer.val_check_interval=30"]
COMMAND += ["callbacks.checkpoint.every_n_steps=9", "data.num_workers=1", "metrics.evaluation.num_images=60"]
COMMAND += ["callbacks.generation_metrics.num_images=60"]
OPTIONS_OF_RANKS = {
    1: [],
    2: ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"],
}
MOMENTS = ["data loading", "training", "checkpointing", "validation", "training"]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
SECONDS_UNTIL_IT_HANGS = 90


def living_processes(session: int) -> list[int]:
    """Returns the ids of the living processes of a session, the oldest first."""
    started_and_id = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session and fields[0] != "Z":
            started_and_id.append((int(fields[19]), int(path.parent.name)))
    return [process_id for _, process_id in sorted(started_and_id)]


def living_ranks(session: int) -> list[int]:
    """Returns the ids of the processes of a session that are ranks, not data workers and the like."""
    ranks = []
    for process_id in living_processes(session):
        folder = Path(f"/proc/{process_id}")
        try:
            command_line = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        is_second_rank = b"LOCAL_RANK=1" in environment and parent == session
        if b"run.py" in command_line and (parent == os.getpid() or is_second_rank):
            ranks.append(process_id)
    return ranks


def wait_for(moment: str, folder: Path, process: subprocess.Popen[bytes]) -> bool:
    """Waits until a run does what `moment` says; returns False if the run has ended before."""

    def count_pictures() -> int:
        return len(list((folder / "samples").glob("*.png")))

    def newest_step() -> int:
        names = (path.stem for path in (folder / "checkpoints").glob("step_*.ckpt"))
        return max((int(name.removeprefix("step_")) for name in names), default=0)

    pictures_before = count_pictures()
    step_before = newest_step()
    while process.poll() is None:
        if moment == "checkpointing" and any((folder / "checkpoints").glob("*.partial")):
            return True
        if moment == "validation" and count_pictures() > pictures_before:
            return True
        if moment == "data loading" and len(living_processes(process.pid)) > len(living_ranks(process.pid)) > 0:
            return True
        if moment == "training" and newest_step() > step_before:
            time.sleep(random.uniform(0, 0.3))
            return process.poll() is None
        time.sleep(0.001)
    return False


def start(folder: Path, num_ranks: int) -> subprocess.Popen[bytes]:
    """Starts a run in a session of its own; its output goes to a file beside its folder."""
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(
        [*COMMAND, *OPTIONS_OF_RANKS[num_ranks], f"output={folder}"],
        cwd=ROOT,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def wait_for_end(process: subprocess.Popen[bytes]) -> int | None:
    """Waits until all processes of a run have ended; returns the exit status, or None if they hang."""
    limit = time.monotonic() + SECONDS_UNTIL_IT_HANGS
    while time.monotonic() < limit:
        if process.poll() is not None and not living_processes(process.pid):
            return process.returncode
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


def trained_state(folder: Path) -> dict[str, torch.Tensor]:
    """Reads the weights, the averaged weights and the optimiser's state of a run's last checkpoint."""
    content = read_file(folder / "checkpoints" / "last.ckpt")
    moments = content["optimizer_states"][0]["state"]
    return {
        **content["state_dict"],
        **{f"ema.{name}": tensor for name, tensor in select_state(content)[0].items()},
        **{f"{i}.{name}": torch.as_tensor(value) for i, state in moments.items() for name, value in state.items()},
    }


def kill_once(folder: Path, num_ranks: int, moment: str, number: signal.Signals, to_all: bool, rank: int) -> list[str]:
    """Starts a run, kills it at a moment, and returns a row of the table, with what went wrong at its end."""
    process = start(folder, num_ranks)
    if not wait_for(moment, folder, process):
        return [str(num_ranks), number.name, "", moment, "ended before", "", "NOT KILLED"]
    ranks = living_ranks(process.pid)
    killed_at = time.monotonic()
    if to_all:
        os.killpg(process.pid, number)
    else:
        os.kill(ranks[min(rank, len(ranks) - 1)], number)
    status = wait_for_end(process)
    seconds = f"{time.monotonic() - killed_at:.1f}"
    target = "all" if to_all else f"rank {rank}"
    return [str(num_ranks), number.name, target, moment, str(status), seconds, "HANGS" if status is None else ""]


def kill_and_finish(folder: Path, num_ranks: int, turn: int, expected: dict[str, torch.Tensor]) -> list[list[str]]:
    """Kills a run five times and lets it finish; returns a row of the table for each kill."""
    rows = []
    for i, moment in enumerate(MOMENTS):
        number = SIGNALS[(i + turn * 2 + num_ranks) % len(SIGNALS)]
        to_all = num_ranks == 1 or (i + turn) % 2 == 1
        rows.append(kill_once(folder, num_ranks, moment, number, to_all, rank=i % 2))
    status = start(folder, num_ranks).wait()
    actual = trained_state(folder) if status == 0 else {}
    is_same = actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)
    return [[*row[:-1], row[-1] or ("same weights" if is_same else "OTHER WEIGHTS")] for row in rows]


def main() -> None:
    """Does all kills, prints the table, and exits with status 1 if anything went wrong."""
    table = Table("ranks", "signal", "to", "during", "status", "seconds to end", "")
    rows = []
    random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        for num_ranks in OPTIONS_OF_RANKS:
            whole = Path(temporary) / f"whole_{num_ranks}"
            assert start(whole, num_ranks).wait() == 0
            expected = trained_state(whole)
            for turn in range(2):
                rows += kill_and_finish(Path(temporary) / f"killed_{num_ranks}_{turn}", num_ranks, turn, expected)
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
    sys.exit(any(row[-1] != "same weights" for row in rows))


if __name__ == "__main__":
    main()
