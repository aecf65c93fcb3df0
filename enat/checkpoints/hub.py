"""Finds weights: a file or a folder here, or a folder on the Hugging Face Hub, of which only four files are fetched."""

import re
from pathlib import Path

from enat.checkpoints.folder import FILES
from enat.errors import InputError

HUB_NAME = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
OF_FILES = (".ckpt", ".pth", ".pt", ".bin", ".npz", ".safetensors")  # names that end so are of files


def find_weights(weights: str | Path) -> Path:
    """Returns the path of a file or a folder; fetches a folder by its name on the hub if there is nothing here.

    Args:
        weights: a path, or `OWNER/NAME` or `OWNER/NAME@REVISION`.

    Raises:
        InputError: if the hub has no such folder, can't be reached, or the package for it is missing.
    """
    path = Path(weights)
    match = None if path.exists() or isinstance(weights, Path) else HUB_NAME.fullmatch(weights)
    if match is None or match["name"].endswith(OF_FILES):
        return path
    return _fetch(match["name"], match["revision"], str(weights))


def _fetch(name: str, revision: str | None, weights: str) -> Path:
    """Fetches the files of a folder of weights into the cache of the hub's package, and returns where they are."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise InputError(
            f"weights={weights}: there is no such file or folder here, and a name on the Hugging Face Hub needs the "
            "package huggingface_hub: pip install -e '.[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split("\n\nPlease")[0].split("\nPlease")[0].split())
        raise InputError(
            f"weights={weights}: there is no such file or folder here, and the Hugging Face Hub has not sent it: "
            f"{reason or type(error).__name__}"
        ) from error
