"""Kills runs at chosen moments and starts them again: `python tests/manual/kill_and_resume.py`, in about ten minutes.

Each of 20 kills is by a signal (KILL, TERM, USR1, INT), to one rank or all, of a run on one or two ranks, while it
loads data, trains, saves a checkpoint or validates. It prints a table, and fails if a run hangs, a file is broken, or
the final weights differ in a bit from those of the uninterrupted run.
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

from enat.checkpoints.weights import read_file, select_state

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "run.py", "experiment=debug", "trainer.max_steps=90", "trainer.val_check_interval=30"]
COMMAND += ["callbacks.checkpoint.every_n_steps=9", "data.num_workers=1", "metrics.evaluation.num_images=60"]
COMMAND += ["callbacks.generation_metrics.num_images=60"]
RANKS = {1: [], 2: ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]}
PATIENCE_S = 90


def processes(session: int) -> list[int]:
    """The living processes of a session, the oldest first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session and fields[0] != "Z":
            found.append((int(fields[19]), int(path.parent.name)))
    return [pid for _, pid in sorted(found)]


def ranks(session: int) -> list[int]:
    """Those of the processes that run the command itself: workers and others do not count."""
    mains = []
    for pid in processes(session):
        try:
            parts = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue  # it has ended
        is_second = b"LOCAL_RANK=1" in environment.split(b"\0")
        if b"run.py" in b" ".join(parts) and (parent == os.getpid() or (is_second and parent == session)):
            mains.append(pid)
    return mains


def wait_for(moment: str, folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> bool:
    """Waits until a run is in the midst of something; False if it ended before."""

    def pictures() -> int:
        return len(list((folder / "samples").glob("*.png")))

    def number_of(file: Path) -> int:
        return int(file.stem.removeprefix("step_"))

    before = pictures()
    start = max(map(number_of, (folder / "checkpoints").glob("step_*.ckpt")), default=0)
    while process.poll() is None:
        files = list((folder / "checkpoints").glob("step_*.ckpt"))
        new = any(number_of(file) > start for file in files)
        if moment == "checkpointing" and any((folder / "checkpoints").glob("*.partial")):
            return True
        if moment == "validation" and pictures() > before:
            return True
        if moment == "data loading" and len(processes(process.pid)) > len(ranks(process.pid)) > 0:
            return True
        if moment == "training" and new:
            time.sleep(rng.uniform(0, 0.3))
            return process.poll() is None
        time.sleep(0.001)
    return False


def run(folder: Path, number: int) -> subprocess.Popen[bytes]:
    """Starts a run in a session of its own."""
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(
        [*COMMAND, *RANKS[number], f"output={folder}"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
    )


def end_of(session: int, process: subprocess.Popen[bytes]) -> int | None:
    """The exit status once all processes have ended; None if they hang."""
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        if process.poll() is not None and not ranks(session) and not processes(session):
            return process.returncode
        time.sleep(0.05)
    os.killpg(session, signal.SIGKILL)
    process.wait()
    return None


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    """Raw and averaged weights, and the optimiser's state."""
    content = read_file(folder / "checkpoints" / "last.ckpt")
    moments = content["optimizer_states"][0]["state"]
    return {
        **content["state_dict"],
        **{f"ema.{name}": tensor for name, tensor in select_state(content)[0].items()},
        **{f"{i}.{name}": torch.as_tensor(value) for i, state in moments.items() for name, value in state.items()},
    }


def main() -> None:
    """Runs all kills."""
    rng = random.Random(0)
    moments = ["data loading", "training", "checkpointing", "validation", "training"]
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
    table = Table("ranks", "signal", "to", "during", "status", "seconds to end", "")
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number in RANKS:
            whole = Path(temporary) / f"whole_{number}"
            assert run(whole, number).wait() == 0
            expected = learnt(whole)
            for turn in range(2):
                folder = Path(temporary) / f"killed_{number}_{turn}"
                rows = []
                for i, moment in enumerate(moments):
                    kind = signals[(i + turn * 2 + number) % 4]
                    process = run(folder, number)
                    if not wait_for(moment, folder, process, rng):
                        rows.append([str(number), kind.name, "", moment, "ended before", "", "[red]NOT KILLED"])
                        continue
                    targets = ranks(process.pid)
                    to = "all" if number == 1 or (i + turn) % 2 else f"rank {i % 2}"
                    begun = time.monotonic()
                    if to == "all":
                        os.killpg(process.pid, kind)
                    else:
                        os.kill(targets[min(i % 2, len(targets) - 1)], kind)
                    status = end_of(process.pid, process)
                    seconds = time.monotonic() - begun
                    rows.append(
                        [
                            str(number),
                            kind.name,
                            to,
                            moment,
                            str(status),
                            f"{seconds:.1f}",
                            "[red]HANGS" if status is None else "",
                        ]
                    )
                ended = run(folder, number).wait()
                found = learnt(folder) if ended == 0 else {}
                same = found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
                for row in rows:
                    failures += bool(row[-1]) or not same
                    table.add_row(*row[:-1], row[-1] or ("same weights" if same else "[red]OTHER WEIGHTS"))
    Console(width=110).print(table)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
