"""A hook of mkdocs that adds pages and pictures from outside of docs/ to the site.

In the repository, a link is relative to the file that contains it, so that it also works on GitHub. The hook rewrites
links between docs/ and other folders to the places that the files have on the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
MOVED = {"docs/": "", "experiments/results/": "results/"}  # from a folder of the repository to one of the site


def site_path(repository_path: str) -> str:
    """The path on the site of a file of the repository."""
    for folder, moved in MOVED.items():
        if repository_path.startswith(folder):
            return moved + repository_path.removeprefix(folder)
    return repository_path


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds CONTRIBUTING.md, the notebook, the page of the weights, and what lies in experiments/results."""
    examples = [ROOT / "examples" / name for name in ("quickstart.ipynb", "emoji/README.md", "emoji/samples.png")]
    for path in [ROOT / "CONTRIBUTING.md", *examples, *sorted((ROOT / "experiments/results").rglob("*"))]:
        if path.is_file():
            place = site_path(path.relative_to(ROOT).as_posix())
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites relative links from the places in the repository to those on the site."""
    assert page.file.abs_src_path is not None
    source = Path(page.file.abs_src_path).relative_to(ROOT).parent.as_posix()
    here = posixpath.dirname(page.file.src_uri) or "."

    def rewrite(link: re.Match[str]) -> str:
        target, anchor = link.group(1), link.group(2) or ""
        if ":" in target or not target:
            return link.group()
        moved = site_path(posixpath.normpath(posixpath.join(source, target)))
        return f"]({posixpath.relpath(moved, here)}{anchor})"

    return re.sub(r"\]\(([^)#\s]*)(#[^)\s]*)?\)", rewrite, markdown)
