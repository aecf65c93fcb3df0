"""task=download: fetches the public files that the documentation names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from data.download import download_file
from enat.errors import InputError
from enat.files import sha256_of


class PublicFile(TypedDict):
    """Where a file is, the name that it gets, and its sha256 or the first digits of it, where it is known."""

    url: str
    file: str
    sha256: NotRequired[str | None]


def check_entry(name: str, public: Any) -> None:
    """Raises InputError for an entry of the public files that lacks the address of the file or its name."""
    for key, what in {"url": "the address of the file", "file": "the name that the file gets"}.items():
        value = public.get(key) if isinstance(public, Mapping) else None
        if not isinstance(value, str) or not value:
            raise InputError(f"public_files.{name}: expected public_files.{name}.{key}, {what}.")


def download(files: list[str] | str | None, public_files: Mapping[str, PublicFile], folder: str) -> dict[str, Any]:
    """Downloads files into a folder; those that are there already are not fetched again.

    Args:
        files: names of the files to fetch, or a single one; None lists the names.
        public_files: all files that are known, by name.
        folder: where they go.

    Returns:
        `files`: path and sha256 of each, by name.

    Raises:
        InputError: for a name that is not known, and for a file that can't be fetched.
    """
    names = ", ".join(public_files)
    if not files:
        raise InputError(f"files=null: expected names of files to fetch, such as files=[vqgan]; there are {names}.")
    files = [files] if isinstance(files, str) else files
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"folder={folder}: this is a file; expected a folder.")
    for name in files:
        if name not in public_files:
            raise InputError(f"files={name}: there is no such file; there are {names}.")
        check_entry(name, public_files[name])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    fetched = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name in files:
            public = public_files[name]
            path = Path(folder) / public["file"]
            sha256 = public.get("sha256")
            expected = None if sha256 is None else str(sha256).lower()
            bar = progress.add_task(public["file"], total=None)
            if path.exists() and not path.is_file():
                raise InputError(f"{path}: this is no file; expected it to be removed, or another folder=DIR.")
            if path.exists() and path.stat().st_size:
                progress.console.print(f"{path} is there already.", soft_wrap=True)
                digest = sha256_of(path)
                if expected and not digest.startswith(expected):
                    raise InputError(f"{path}: its sha256 is {digest}; expected {expected}. Remove it first.")
            else:
                if path.exists():
                    progress.console.print(f"{path} is empty; it is fetched again.", soft_wrap=True)
                update = lambda done, total, bar=bar: progress.update(bar, completed=done, total=total)  # noqa: E731
                digest = download_file(public["url"], path, expected, update)
            fetched[name] = {"path": str(path), "sha256": digest}
    return {"files": fetched}
