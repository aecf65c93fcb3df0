"""The page as gradio's components, and the functions that its buttons call.

A request holds all that it needs, and its results go to the browser that asked: nothing is shared between visitors but
the network, which no request changes.
"""

import functools
from collections.abc import Callable, Iterator
from html import escape
from threading import Lock
from typing import Any

import gradio as gr
from gradio.components.base import server
from gradio.components.image_editor import AcceptBlobs, EditorDataBlobs
from PIL import Image
from starlette.exceptions import HTTPException

from enat.errors import InputError, counted
from enat.flops import sampling_steps
from experiments.web import drawing, editing, pictures, uploads
from experiments.web.choices import MAX_IMAGES, MAX_SEED, NUMBERS, Choices, number

EDITOR_SIDE = 384  # pixels to which a small image is enlarged for the brush
CSS = """
.enat-pictures {display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 1rem; padding: 0;
  margin: 0; list-style: none}
.enat-pictures li {display: flex; flex-direction: column; gap: .25rem; margin: 0; list-style: none}
.enat-pictures img {width: 100%; margin: 0; image-rendering: pixelated; border-radius: .25rem}
.enat-status {margin: 0; font-weight: 600}
.enat-table {overflow-x: auto}
.enat-pictures a {text-align: left}
.enat-table table {border: 0; border-collapse: collapse; width: 100%; font-size: .8rem;
  font-variant-numeric: tabular-nums}
.enat-table caption {text-align: left; padding-bottom: .5rem}
.enat-table table :is(th, td) {text-align: right; padding: .1rem .3rem; border: 0; border-bottom: 1px solid #8884}
@media (max-width: 500px) {.enat-table table {font-size: .7rem} .enat-table table :is(th, td) {padding: .1rem}}
:focus-visible {outline: 2px solid currentColor; outline-offset: 2px}
"""


class Page:
    """The functions of the page for a model.

    Args:
        choices: what the page offers for it.
        given: the options of `run.py` that choose the weights, quoted for a shell.
    """

    def __init__(self, choices: Choices, given: str):
        self.choices = choices
        self.given = given

    def draw(self, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Draws images; yields status, pictures, table, command and the images for the tab Edit."""
        classes, per_class, seed, *numbers, order, correction = values
        named = dict(zip(NUMBERS, numbers, strict=True))
        request = self.choices.drawing(classes, per_class, seed, named, order, correction)
        model = self.choices.model_for(request)
        facts = drawing.facts_of(self.choices, model, request)
        labels = pictures.labels_of(facts)
        rows = None if model.sampler.is_adaptive else sampling_steps(model.net, model.sampler)
        command = drawing.command_line(self.choices, request, self.given)
        total = model.sampler.num_steps
        for frame in drawing.draw(model, request):
            if frame.is_final:
                text = f"{counted(len(facts), 'image')} in {counted(total, 'step')}, seed {request.seed}"
                shown = pictures.downloads(frame.images, facts)
                yield pictures.status(text), shown, pictures.steps_table(rows), command, frame.images
            else:
                text = f"Step {frame.step + 1} of {total}"
                yield pictures.status(text), pictures.pictures(frame.images, labels), gr.skip(), command, gr.skip()

    def restore(self, content: bytes | None) -> list[Any]:
        """Returns a status and the values of the controls of the tab Draw, from a PNG file."""
        values, text = uploads.settings_of(self.choices, content)
        names = ("classes", "images_per_class", "seed", *NUMBERS, "order", "correction")
        return [pictures.status(text), *(values[name] for name in names)]

    def take(self, drawn: list[Image.Image], place: Any) -> Image.Image:
        """Returns one of the images that were drawn, enlarged for the brush."""
        if not drawn:
            raise InputError("no image was drawn yet; expected one from the tab Draw, or an upload.")
        place = number("number of the image", place, 1, len(drawn))
        image = drawn[place - 1].convert("RGB")
        times = max(1, EDITOR_SIDE // image.width)
        return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)

    def edit(self, given: Any, region: Any, *values: Any) -> tuple[str, str]:
        """Edits an image; returns status and pictures."""
        *box, class_id, keep, results, seed, is_blended = values
        images, facts = editing.edit(self.choices, given, region, box, class_id, keep, results, seed, is_blended)
        text = f"{counted(len(images), 'result')}, seed {facts[0]['seed']}"
        return pictures.status(text), pictures.downloads(images, facts)


def told(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a function tell bad input to the visitor in a sentence."""

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except InputError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    return call


def told_steps(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Makes a function that yields tell bad input to the visitor in a sentence."""

    @functools.wraps(function)
    def call(*values: Any) -> Iterator[Any]:
        try:
            yield from function(*values)
        except InputError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    return call


def raw(component: Any) -> Any:
    """Makes a component hand over what the browser sends; `Choices` checks it, in sentences."""
    vars(component)["preprocess"] = lambda value: value
    return component


def guarded(component: Any, read: Callable[[Any], Any] | None = None) -> Any:
    """Makes a component take uploads only, and read them by a function of ours."""
    vars(component)["async_move_resource_to_block_cache"] = uploads.refusing_addresses(
        component.async_move_resource_to_block_cache
    )
    if read is not None:
        vars(component)["preprocess"] = told(read)
    return component


def with_bounded_uploads(editor: Any) -> Any:
    """Makes an image editor keep few uploads of bounded size; gradio by itself keeps all of them forever."""
    lock = Lock()

    def accept_blobs(data: AcceptBlobs) -> None:
        empty = EditorDataBlobs(background=None, layers=[], composite=None)
        content = data.files[0][1] if data.files else b""
        try:
            with lock:
                uploads.keep_part(editor.blob_storage, empty, data.data, content)
        except InputError as error:
            raise HTTPException(422, str(error)) from error

    vars(editor)["accept_blobs"] = server(accept_blobs)
    return editor


def build(page: Page) -> gr.Blocks:
    """Builds the page."""
    with gr.Blocks(title="ENAT", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        name = str(page.choices.model.description.get("settings", {}).get("name", ""))
        gr.Markdown(f"# ENAT{': ' + plain(name) if name else ''}")
        drawn = gr.State([], time_to_live=3600)
        with gr.Tabs():
            with gr.Tab("Draw"):
                _draw_tab(page, drawn)
            with gr.Tab("Edit"):
                _edit_tab(page, drawn)
    blocks.queue(max_size=32, default_concurrency_limit=2, api_open=False)
    return blocks


def plain(text: str) -> str:
    """Returns a name without characters that Markdown and HTML understand."""
    return "".join(character for character in text if character.isalnum() or character in " ._-").replace("_", " ")


def _number(label: str, value: float, least: float, most: float, whole: bool = True) -> Any:
    step = 1 if whole else 0.1
    return raw(gr.Number(value, label=label, minimum=least, maximum=most, step=step, precision=0 if whole else None))


def _draw_tab(page: Page, drawn: gr.State) -> None:
    choices = page.choices
    first = [0]
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            classes = raw(gr.Dropdown(choices.classes, value=first, multiselect=True, label="Classes (type to search)"))
            with gr.Row():
                per_class = _number("Images per class", 4, 1, MAX_IMAGES)
                seed = _number("Seed", 0, 0, MAX_SEED)
            with gr.Row():
                numbers = [
                    _number(label[0].upper() + label[1:], choices.own[option], *choices.range_of(option), whole)
                    for option, (label, _, _, whole) in NUMBERS.items()
                ]
            with gr.Row():
                order = raw(gr.Dropdown(choices.orders, value=choices.own_order, label="Order of the tokens"))
                correction = raw(gr.Dropdown(choices.corrections, value=choices.own_correction, label="Correction"))
            with gr.Row():
                button = gr.Button("Draw", variant="primary")
                stop = gr.Button("Stop", min_width=80)
            file = guarded(
                gr.File(
                    type="binary",
                    file_types=[".png"],
                    label="Drop an image of this page to get its settings",
                    height=160,
                )
            )
        with gr.Column(scale=3, min_width=300):
            text = gr.HTML(pictures.status("Nothing drawn yet"))
            shown = gr.HTML(elem_id="drawn")
            # With gradio's button to copy, or not interactive, screen readers get no name and the keyboard no way in.
            command = gr.Textbox(label="The same images on the command line", lines=2, interactive=True)
            with gr.Accordion("What each step computes", open=False):
                table = gr.HTML("<p>Nothing drawn yet.</p>")
    controls = [classes, per_class, seed, *numbers, order, correction]
    event = button.click(
        told_steps(page.draw),
        controls,
        [text, shown, table, command, drawn],
        concurrency_id="network",
        concurrency_limit=1,
        show_progress="hidden",
        api_name="draw",
    )
    stop.click(None, cancels=[event])
    file.upload(told(page.restore), file, [text, *controls], show_progress="hidden", api_name="restore")


def _edit_tab(page: Page, drawn: gr.State) -> None:
    choices = page.choices
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                place = _number("Drawn image", 1, 1, MAX_IMAGES)
                take = gr.Button("Take this image", min_width=120)
            gr.Markdown("Paint over the part of the image that is to be drawn anew.")
            editor = gr.ImageEditor(
                label="Image to edit",
                sources=["upload", "clipboard"],
                transforms=[],
                layers=False,
                brush=gr.Brush(default_size=40, colors=["#d03030"], default_color="#d03030", color_mode="fixed"),
                format="png",
                canvas_size=(EDITOR_SIDE, EDITOR_SIDE),
                buttons=[],
            )
            guarded(with_bounded_uploads(editor), functools.partial(uploads.read_editor, editor.blob_storage))
            regions = [editing.PAINTED, editing.BOX, editing.EVERYTHING]
            region = raw(gr.Radio(regions, value=editing.PAINTED, label="What is drawn anew"))
            with gr.Accordion("The box, as shares of the sides", open=False), gr.Row():
                corners = zip(("Left", "Top", "Right", "Bottom"), (0.5, 0, 1, 1), strict=True)
                box = [_number(label, value, 0, 1, whole=False) for label, value in corners]
            class_id = raw(gr.Dropdown(choices.classes, value=0, label="Class of the new part (type to search)"))
            keep = raw(gr.Slider(0, 1, 0, step=0.05, label="Share of the region to keep (variations)", buttons=[]))
            with gr.Row():
                results = _number("Results", 4, 1, MAX_IMAGES)
                seed = _number("Seed", 0, 0, MAX_SEED)
            blended = raw(gr.Checkbox(True, label="Leave the pixels outside of the region as they are"))
            button = gr.Button("Edit", variant="primary")
        with gr.Column(scale=3, min_width=300):
            text = gr.HTML(pictures.status("Nothing edited yet"))
            shown = gr.HTML(elem_id="edited")
    take.click(told(page.take), [drawn, place], editor, show_progress="hidden", api_visibility="private")
    button.click(
        told(page.edit),
        [editor, region, *box, class_id, keep, results, seed, blended],
        [text, shown],
        concurrency_id="network",
        concurrency_limit=1,
        show_progress="minimal",
        api_name="edit",
    )
