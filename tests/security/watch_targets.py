"""Builds configurations that name what is not allowed, and prints what Python's audit hook has seen meanwhile.

A process of its own runs this, since an audit hook stays. It reads a list of names from standard input.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from omegaconf import OmegaConf

from enat.errors import InputError
from experiments.runtime.building import build, plan
from experiments.runtime.targets import TARGETS, import_target

EVENTS = ("import", "open", "exec", "os.", "subprocess.", "socket.", "shutil.", "pickle.", "ctypes.")
seen: list[tuple[str, str]] = []
is_watching = False


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """Notes an event of the interpreter that a refused name must not cause."""
    if is_watching and event.startswith(EVENTS):
        seen.append((event, str(arguments[0]) if arguments else ""))


def try_name(name: str) -> None:
    """Plans and builds nodes that name it; it should be refused each time."""
    for node in (
        {"_target_": name},
        {"_target_": name, "_args_": ["x"], "_partial_": True},
        {"a.b": [{"_target_": name}]},
        {"a": "${hidden}"},
    ):
        config = OmegaConf.create({"module": node, "hidden": {"_target_": name}})
        with suppress(InputError):
            build(plan(config, "module"))
            seen.append(("built", name))


for target in TARGETS:  # what is allowed may be imported, and need not be seen
    import_target("module.net", target)
import_target("module.optimizer", "torch.optim.lr_scheduler.LinearLR")
import_target("score", "torchmetrics.image.TotalVariation")
sys.addaudithook(watch)
try_name("os.system")  # packages import further modules when they are first used
is_watching = True
for name in json.load(sys.stdin):
    try_name(name)
is_watching = False
print(json.dumps(seen))
