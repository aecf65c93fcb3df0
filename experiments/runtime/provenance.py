"""Records where a score comes from: the command, versions of packages, the commit, the device and settings."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data.credentials import without_credentials
from enat.building import named
from experiments.runtime.ranks import is_of_torchrun, launched

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "scipy", "numpy", "pillow")


def commit() -> str | None:
    """Returns the git commit of this code, with a mark if files were changed since; None without git."""
    folder = Path(__file__).parent
    try:
        options = {"cwd": folder, "capture_output": True, "text": True, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **options).stdout  # type: ignore[call-overload]
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{' with changes' if changed else ''}"


def hardware(device: torch.device, processes: int) -> dict[str, Any]:
    """Describes the hardware in plain values, for `results.json`.

    Args:
        device: that computes.
        processes: how many share the work.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}"
    return {"processes": processes, "device": name}


def provenance() -> dict[str, Any]:
    """Describes the command and the code in plain values, for the `results.json` of every task."""
    program = ["python", Path(sys.argv[0]).name]
    if (started := launched()) and is_of_torchrun():
        program = ["torchrun", "--nproc-per-node", str(started.per_machine), "--nnodes", str(started.machines)]
        program.append(Path(sys.argv[0]).name)
    return {
        "command": without_credentials(shlex.join([*program, *sys.argv[1:]])),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "commit": commit(),
    }


def sampler_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampler's options in a configuration, its parts by their names and with their own options."""
    return {name: named(value) for name, value in settings["sampler"].items() if not name.startswith("_")}
