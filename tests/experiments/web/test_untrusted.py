"""Nothing that a browser sends is trusted: requests, settings in files, and uploads that are made up get a sentence."""

import asyncio
import io
import weakref
from types import SimpleNamespace

import pytest
from page_requests import drawn, png_with, request
from PIL import Image

from enat.errors import InputError
from experiments.web import editing, pictures, uploads
from experiments.web.launching import with_plain_names
from experiments.web.requests import allowed_hosts

WRONG = {
    "no class": ({"classes": []}, "classes: expected from 1 to 16"),
    "many classes": ({"classes": list(range(10**5))}, "classes: expected from 1 to 16"),
    "a class that is not there": ({"classes": [6]}, "a class id: 6; expected a whole number from 0 to 5"),
    "a name": ({"classes": ["bee"]}, "a class id: 'bee'"),
    "a nested list": ({"classes": [[1]]}, "a class id: list"),
    "a class twice": ({"classes": [1, 1]}, "one is named twice"),
    "many images": ({"images_per_class": 17}, "images per class: 17; expected a whole number from 1 to 16."),
    "many of several": ({"classes": [0, 1, 2], "images_per_class": 6}, "3 classes with 6 images each"),
    "no images": ({"images_per_class": 0}, "images per class: 0"),
    "half an image": ({"images_per_class": 1.5}, "images per class: 1.5"),
    "true": ({"images_per_class": True}, "images per class: True"),
    "a huge seed": ({"seed": 10**4000}, "seed: 1000000000000000000000000000000000000000..."),
    "a negative seed": ({"seed": -1}, "seed: -1; expected a whole number from 0 to 4,294,967,295."),
    "steps": ({"num_steps": 10**6}, "steps: 1000000; expected a whole number from 1 to 64."),
    "no steps": ({"num_steps": None}, "steps: None"),
    "nan": ({"guidance_scale": float("nan")}, "guidance: nan"),
    "infinite": ({"gumbel_temperature": float("inf")}, "Gumbel temperature: inf"),
    "a text": ({"sampling_temperature": "1"}, "sampling temperature: '1'"),
    "an order": ({"order": "enat.orders.Halton"}, "order: 'enat.orders.Halton'; expected one of confidence, random"),
    "a part": ({"correction": {"_target_": "os.system"}}, "correction: dict; expected one of none, remasking"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_crafted_requests_get_a_sentence(choices, kind):
    changed, sentence = WRONG[kind]
    with pytest.raises(InputError) as raised:
        request(choices, **changed)
    assert sentence in str(raised.value)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"class": "wasp"}, "class: 'wasp'; expected one of"),
        ({"class": ["bee"]}, "class: list"),
        ({"number": 10**9}, "number of the image: 1000000000"),
        ({"seed": "0"}, "seed: '0'"),
        ({"sampler": None}, "steps: None"),
        ({"sampler": {"num_steps": 10**5}}, "steps: 100000"),
        (None, "has no settings inside"),
    ],
)
def test_crafted_files_get_a_sentence(choices, change, sentence):
    _, facts = drawn(choices, request(choices))
    content = b"no image" if change is None else png_with({**facts[0], **change})
    with pytest.raises(InputError, match=sentence):
        uploads.settings_of(choices, content)
    for text in ("[" * 10**5, "[]", '{"sampler": 3}'):
        with pytest.raises(InputError):
            uploads.settings_of(choices, png_with(text))


def test_other_schedules_are_told(choices):
    _, facts = drawn(choices, request(choices))
    facts[0]["sampler"]["mask_schedule"] = "arccos"
    assert "but for schedules" in uploads.settings_of(choices, png_with(facts[0]))[1]


def test_uploads_are_of_few_formats_and_sizes():
    def file(image, kind):
        content = io.BytesIO()
        image.save(content, format=kind)
        return content.getvalue()

    small = Image.new("RGB", (3, 2), (10, 20, 30))
    assert uploads.read_image(file(small, "PNG")).convert("RGB").tobytes() == small.tobytes()
    for wrong in (file(small, "EPS"), file(small, "TIFF"), b"", b"\x89PNG\r\n\x1a\n"):
        with pytest.raises(InputError, match="the image can't be read"):
            uploads.read_image(wrong)
    with pytest.raises(InputError, match="5000 x 5000 pixels"):
        uploads.read_image(file(Image.new("1", (5000, 5000)), "PNG"))
    with pytest.raises(InputError, match="more than 8 bits a channel"):
        uploads.read_image(file(Image.new("I;16", (2, 2), 40000), "PNG"))
    clear = file(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "PNG")
    assert uploads.on_white(uploads.read_image(clear)).getpixel((0, 0)) == (255, 255, 255)


def test_an_upload_is_turned_as_the_browser_shows_it():
    """What is painted on it has that shape, too."""
    shown = Image.effect_noise((3, 2), 50).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO(), io.BytesIO()]
    shown.transpose(Image.Transpose.ROTATE_90).save(files[0], format="PNG", exif=exif)
    Image.new("RGBA", shown.size, "white").save(files[1], format="PNG")
    payload = SimpleNamespace(id=None, background=files[0].getvalue(), layers=[files[1].getvalue()])
    image, painted = uploads.read_editor({}, payload)
    assert image.tobytes() == shown.tobytes()
    assert painted.size == shown.size


def test_layers_are_bounded_together():
    """A small file may have millions of pixels, and a request many layers."""
    content = io.BytesIO()
    Image.new("L", (1500, 1500), 7).save(content, format="PNG")
    payload = SimpleNamespace(id=None, background=content.getvalue(), layers=[None, content.getvalue()])
    image, painted = uploads.read_editor({}, payload)
    assert (image.getpixel((0, 0)), painted.getextrema()) == ((7, 7, 7), (255, 255))
    payload.layers = [content.getvalue()] * 8
    with pytest.raises(InputError, match="what is painted has more than 16 million pixels in all layers"):
        uploads.read_editor({}, payload)


def test_one_layer_is_in_memory_at_a_time(monkeypatch):
    images = []
    alive = []

    def read(source):
        image = Image.new("RGBA", (4, 4))
        images.append(weakref.ref(image))
        alive.append(sum(one() is not None for one in images))
        return image

    monkeypatch.setattr(uploads, "read_image", read)
    uploads.read_editor({}, SimpleNamespace(id=None, background=b"x", layers=[b"x"] * uploads.MAX_LAYERS))
    assert len(alive) == uploads.MAX_LAYERS + 1
    assert max(alive) == 1


def test_nothing_is_fetched_from_an_address():
    moved = []

    async def move(source):
        moved.append(source)
        return source

    refusing = uploads.refusing_addresses(move)
    assert asyncio.run(refusing("/tmp/gradio/x.png")) == "/tmp/gradio/x.png"
    for address in ("http://127.0.0.1/x", "https://example.com/x.png", "file:///etc/passwd"):
        with pytest.raises(InputError, match="expected an upload"):
            asyncio.run(refusing(address))
    assert moved == ["/tmp/gradio/x.png"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"given": None}, "there is no image"),
        ({"region": "all"}, "what is drawn anew: 'all'"),
        ({"region": editing.PAINTED}, "nothing is painted"),
        ({"box": [0.5, 0, 0.5, 1]}, r"box=\[0.5, 0.0, 0.5, 1.0\]: expected left, top, right"),
        ({"box": [0, 0, 2, 1]}, "right: 2; expected a number from 0 to 1"),
        ({"class_id": 6}, "class: 6"),
        ({"keep": 1.5}, "share to keep: 1.5"),
        ({"results": 1000}, "results: 1000; expected a whole number from 1 to 16"),
        ({"seed": None}, "seed: None"),
    ],
)
def test_crafted_edits_get_a_sentence(choices, change, sentence):
    given = (Image.new("RGB", (8, 8)), Image.new("L", (8, 8)))
    values = {"given": given, "region": editing.BOX, "box": [0, 0, 1, 1], "class_id": 1, "keep": 0}
    with pytest.raises(InputError, match=sentence):
        editing.edit(choices, **{**values, "results": 1, "seed": 0, "is_blended": True, **change})


def test_names_of_classes_are_escaped():
    facts = [{"class": '<b onload="x">', "number": 0, "seed": 0}]
    html = pictures.downloads([Image.new("RGB", (2, 2))], facts)
    assert "<b " not in html
    assert '"x"' not in html
    assert 'download="_b_onload_x_' in html


def empty():
    return SimpleNamespace(background=None, layers=[], composite=None)


def test_few_uploads_are_kept(monkeypatch):
    blobs = {}
    for place in range(uploads.MAX_KEPT + 5):
        uploads.keep_part(blobs, empty(), {"type": "background", "id": f"{place}", "index": "null"}, b"x")
    assert list(blobs) == [f"{place}" for place in range(5, uploads.MAX_KEPT + 5)]
    uploads.keep_part(blobs, empty(), {"type": "layer", "id": "7", "index": "1"}, b"layer")
    assert (blobs["7"].background, blobs["7"].layers) == (b"x", [None, b"layer"])
    monkeypatch.setattr(uploads, "MAX_KEPT_BYTES", 100)
    uploads.keep_part(blobs, empty(), {"type": "composite", "id": "8", "index": None}, bytes(90))
    assert list(blobs)[-2:] == ["7", "8"]
    assert sum(map(uploads._bytes_of, blobs.values())) <= 100


@pytest.mark.parametrize(
    ("change", "content", "sentence"),
    [
        ({"index": "150000000"}, b"x", "number of the layer: '150000000'"),
        ({"index": "16"}, b"x", "number of the layer: 16; expected a whole number from 0 to 15"),
        ({"index": "-1"}, b"x", "number of the layer: '-1'"),
        ({"id": "x" * 1000}, b"x", "expected at most 100 characters"),
        ({"id": None}, b"x", "the id of the picture: None"),
        ({}, bytes(uploads.MAX_BYTES + 1), "expected at most 10,485,760"),
    ],
)
def test_uploads_that_take_too_much(change, content, sentence):
    blobs = {}
    with pytest.raises(InputError, match=sentence):
        uploads.keep_part(blobs, empty(), {"type": "layer", "id": "a", "index": "0", **change}, content)
    assert blobs == {}


def test_the_names_of_a_page():
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert allowed_hosts(host) == ["localhost", "127.0.0.1", "[::1]", host]
    for host in ("0.0.0.0", "::", "192.168.1.7", "machine.example"):
        assert allowed_hosts(host) == ["*"]


def test_names_that_are_no_text(choices):
    model = choices.model
    assert with_plain_names(model) is model
    model.class_names = [b"caf\xe9".decode(errors="surrogateescape"), *model.class_names[1:]]
    assert with_plain_names(model).class_names == ["caf\ufffd", *model.class_names[1:]]
    assert model.class_names[0] == "caf\udce9"
