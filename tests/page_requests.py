"""Requests as the page makes them, and files as it writes them."""

import io
import json

from PIL import Image, PngImagePlugin

from experiments.web import drawing


def request(choices, classes=(1,), images_per_class=1, seed=0, order=None, correction=None, **numbers):
    numbers = {**choices.own, **numbers}
    order, correction = order or choices.own_order, correction or choices.own_correction
    return choices.drawing(list(classes), images_per_class, seed, numbers, order, correction)


def drawn(choices, asked):
    """All frames of a request, and the facts of its images."""
    model = choices.model_for(asked)
    return list(drawing.draw(model, asked)), drawing.facts_of(choices, model, asked)


def png_with(facts):
    text = PngImagePlugin.PngInfo()
    text.add_text("enat", facts if isinstance(facts, str) else json.dumps(facts))
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, format="PNG", pnginfo=text)
    return file.getvalue()
