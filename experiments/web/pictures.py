"""Pictures and tables of the page as HTML. Pictures are inside of it, so that the page needs no file of the server."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from enat.images import png_bytes


def labels_of(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a label for each image, such as `face 2`."""
    return [f"{one['class']} {one['number'] + 1}" for one in facts]


def pictures(images: Sequence[Image.Image], labels: Sequence[str]) -> str:
    """Returns a list of pictures that are not finished."""
    return _listed([_picture(_png(image), label) for image, label in zip(images, labels, strict=True)])


def downloads(images: Sequence[Image.Image], facts: Sequence[Mapping[str, Any]]) -> str:
    """Returns a list of finished pictures, each with a link that downloads it with its settings inside."""
    items = []
    for image, one, label in zip(images, facts, labels_of(facts), strict=True):
        content = png_bytes(image, one)
        word = re.sub(r"[^\w-]+", "_", str(one["class"]))[:60]
        name = f"{'edited_' if 'edit' in one else ''}{word}_seed_{one['seed']}_{one['number']:04d}.png"
        link = (
            f'<a download="{escape(name)}" href="{_address(content)}" aria-label="Download {escape(label)} as PNG">'
            "Download PNG</a>"
        )
        items.append(_picture(content, label) + link)
    return _listed(items)


def status(text: str) -> str:
    """Returns a line that screen readers read out when it changes."""
    return f'<p role="status" class="enat-status">{escape(text)}</p>'


def steps_table(rows: Sequence[Mapping[str, float]] | None) -> str:
    """Returns a table of what each step computes, see `enat.flops.sampling_steps`; None for a sampler without one."""
    if rows is None:
        return "<p>How many tokens a step computes depends on the image, with this order.</p>"
    names = ("encoded", "reused", "decoded")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("step", *names, "GFLOP"))
    body = "".join(
        f'<tr><th scope="row">{int(row["step"]) + 1}</th>'
        + "".join(f"<td>{int(row[name])}</td>" for name in names)
        + f"<td>{row['gflop']:.3g}</td></tr>"
        for row in rows
    )
    sums = "".join(f"<td>{sum(int(row[name]) for row in rows)}</td>" for name in names)
    total = f'<tr><th scope="row">all</th>{sums}<td>{sum(row["gflop"] for row in rows):.3g}</td></tr>'
    caption = "Tokens of an image that each step encodes, whose features it reuses, and that it decodes"
    return (
        f'<div class="enat-table"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody><tfoot>{total}</tfoot></table></div>"
    )


def _listed(items: Sequence[str]) -> str:
    return f'<ul class="enat-pictures">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def _picture(content: bytes, label: str) -> str:
    return f'<img src="{_address(content)}" alt="{escape(label)}"><span aria-hidden="true">{escape(label)}</span>'


def _address(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()
