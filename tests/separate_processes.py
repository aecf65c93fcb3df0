"""Runs `run.py` in processes of their own, as several ranks if asked for, and kills them at a given moment.

The processes are forked from one that has imported the packages already (Python's forkserver), since the imports would
take longer than most tests. Apart from that they are like those that a shell or torchrun starts.
"""

import atexit
import functools
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only

ROOT = Path(__file__).parent.parent
TIMEOUT = 400  # seconds; for tests that would hang

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["experiments.train", "experiments.evaluate", "experiments.tokenize", "data.toy.digits"])


class Kill(NamedTuple):
    """A signal that a process gets at the start of a call of a function, so that the moment depends on no clock.

    Args:
        at: the function, as MODULE:NAME; NAME may be that of a method, as in `enat.module:MaskedTokenModule.forward`.
            For a function that another module has imported by `from ... import`, MODULE is the module that calls it.
        number: of the call, counted from 1.
        sent: the signal. SIGKILL goes to this process alone; others go to its group, as a terminal and SLURM send them,
            so that data workers get them too.
    """

    at: str
    number: int
    sent: signal.Signals

    def prepare(self) -> None:
        """Replaces the function by one that sends the signal."""
        module, _, path = self.at.partition(":")
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, name)
        calls = 0

        @functools.wraps(original)
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.number and self.sent == signal.SIGKILL:
                os.kill(os.getpid(), self.sent)
            elif calls == self.number:
                os.killpg(0, self.sent)
            return original(*arguments, **options)

        setattr(owner, name, counted)


def _run(arguments: Sequence[str], environment: Mapping[str, str], output: str, kill: Kill | None) -> None:
    """Runs `run.py` in this process, with its output in the files OUTPUT.out and OUTPUT.err."""
    multiprocessing.set_start_method("fork", force=True)  # Linux's own in Python 3.11, as data workers have it
    os.setsid()
    os.chdir(ROOT)
    os.environ.update(environment)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT), stream)
    rank_zero_only.rank = int(environment.get("RANK", "0"))  # which Lightning reads when it is imported
    sys.path[0] = str(ROOT)
    sys.argv = ["run.py", *arguments]
    if kill is not None:
        kill.prepare()
    try:
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    finally:
        if executor := getattr(sys.modules.get("joblib.externals.loky.reusable_executor"), "_executor", None):
            executor.shutdown(wait=True)  # its idle workers would stay for five minutes, and the test with them
        atexit._run_exitfuncs()  # which a process of multiprocessing does not call


def _ranks(count: int) -> list[dict[str, str]]:
    """Returns the environment of each rank, as torchrun sets it; an empty one for a single process."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    sizes = {"WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}"}
    return [{**common, **sizes, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(count)]


def run(
    arguments: Sequence[str], environment: Mapping[str, str], count: int = 1, kill: Kill | None = None
) -> tuple[int, str, str]:
    """Runs `python run.py ARGUMENTS` as a number of ranks; when a rank fails, the others are ended, as torchrun does.

    Returns:
        The exit status (minus the number of the signal that ended it), the output of rank 0, and all ranks' errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_run, args=(arguments, {**ranks, **environment}, f"{folder}/{rank}", kill))
            for rank, ranks in enumerate(_ranks(count))
        ]
        for process in processes:
            process.start()
        status = 0
        running = {process.sentinel: process for process in processes}
        while running:
            ended = wait(list(running), TIMEOUT)
            codes = [running.pop(sentinel).exitcode for sentinel in ended]  # type: ignore[call-overload]
            if not ended or any(codes):
                status = status or next((code for code in codes if code), -signal.SIGALRM)
                for process in running.values():
                    process.kill()
        out = Path(f"{folder}/0.out").read_text()
        err = "".join(Path(f"{folder}/{rank}.err").read_text() for rank in range(count))
    return status, out, err
