"""Runs `run.py` in this process and sends the process a signal at a given call of a function.

Usage: `python tests/kill_at_call.py MODULE:NAME CALL SIGNAL ARGUMENTS...`; tests use it through the fixture `killed`.
The signal comes at the start of the call with the number CALL, counted from 1, so that the moment depends on no clock.
NAME is looked up in MODULE and may be that of a method, as in `enat.module:MaskedTokenModule.training_step`. For a
function that another module has imported by `from ... import`, MODULE is the module that calls it.
"""

import functools
import importlib
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def send_at_call(target: str, call: int, number: signal.Signals) -> None:
    """Replaces a function by one that signals this process's group at a call, or, for SIGKILL, this process alone."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    original = getattr(owner, name)
    calls = 0

    @functools.wraps(original)
    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and number == signal.SIGKILL:
            os.kill(os.getpid(), number)
        elif calls == call:
            os.killpg(0, number)  # as a terminal and as SLURM do it: data workers get it too
        return original(*arguments, **options)

    setattr(owner, name, counted)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    send_at_call(sys.argv[1], int(sys.argv[2]), signal.Signals[sys.argv[3]])
    sys.argv = ["run.py", *sys.argv[4:]]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
