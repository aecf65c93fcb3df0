"""What the page draws and edits is what the library and the commands do."""

import shlex
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page_requests import drawn, request
from PIL import Image

import enat
import experiments.page
from enat.errors import InputError
from enat.images import MASKED_COLOUR, center_crop, png_bytes
from experiments.command.main import main
from experiments.web import drawing, editing, uploads
from experiments.web.choices import NUMBERS, Choices

EMOJI = Path(__file__).parents[3] / "examples" / "emoji"


@pytest.mark.parametrize("changed", [{}, {"num_steps": 5, "guidance_scale": 0.5}, {"guidance_scale": 3}])
def test_files_have_the_bytes_of_the_command(folder, choices, tmp_path, changed):
    frames, facts = drawn(choices, request(choices, [4, 1], 2, 7, **changed))
    files = [png_bytes(image, one) for image, one in zip(frames[-1].images, facts, strict=True)]
    names = {"num_steps": "--steps", "guidance_scale": "--guidance"}
    options = [word for name, value in changed.items() for word in (names[name], str(value))]
    given = ["--classes", "emu", "bee", "--images-per-class", "2", "--seed", "7", "--output", str(tmp_path / "x")]
    assert main(["sample", str(folder), *given, *options]) == 0
    written = [path.read_bytes() for path in sorted((tmp_path / "x").iterdir())]
    assert files == written[2:] + written[:2]
    assert len(set(files)) == 4


def test_each_step_shows_what_is_revealed(choices):
    asked = request(choices, [1, 2], num_steps=6)
    frames, _ = drawn(choices, asked)
    model = choices.model_for(asked)
    assert [frame.is_final for frame in frames] == [False] * 6 + [True]
    colour = np.array([round(255 * part) for part in MASKED_COLOUR])
    for frame, step in zip(frames, model.sampler.plan(model.net), strict=False):
        for image in frame.images:
            covered = (np.abs(np.asarray(image) - colour) <= 1).all(axis=2)
            assert covered.sum() == step.masked * 4  # of 2 x 2 pixels each
    expected = model.generate(["bee", "cat"])
    assert [image.tobytes() for image in frames[-1].images] == [image.tobytes() for image in expected]


def test_slow_decoders_show_the_newest_step(choices, monkeypatch):
    monkeypatch.setattr(drawing, "SLOW", 0.0)
    found = threading.Event()
    original = drawing.covered

    def waits(model, token_ids):
        for thread in threading.enumerate():
            if thread.name == "drawing":
                thread.join()  # so that all further steps are there
        found.set()
        return original(model, token_ids)

    monkeypatch.setattr(drawing, "covered", waits)
    frames, _ = drawn(choices, request(choices, num_steps=6))
    assert found.is_set()
    assert len(frames) == 2
    assert frames[-1].is_final


def test_a_visitor_who_leaves_stops_the_sampler(choices):
    asked = request(choices, num_steps=50)
    model = choices.model_for(asked)
    calls, gate = [], threading.Event()

    def count(*_):
        calls.append(None)
        if len(calls) == 2:
            assert gate.wait(60)

    hook = model.net.register_forward_pre_hook(count)
    frames = drawing.draw(model, asked)
    next(frames)
    frames.close()
    (thread,) = [one for one in threading.enumerate() if one.name == "drawing"]
    gate.set()
    thread.join()
    hook.remove()
    assert len(calls) <= 3


def test_errors_of_the_sampler_are_told(choices):
    choices.model.net.head_bias.data.fill_(float("nan"))
    with pytest.raises(InputError, match="the network computes NaN"):
        drawn(choices, request(choices))


@pytest.mark.parametrize(
    "asked",
    [
        {"classes": [1, 3, 6], "images_per_class": 2, "seed": 3},
        {"order": "halton", "correction": "remasking", "num_steps": 5, "guidance_scale": 1.5},
        {"order": "moment", "sampling_temperature": 0.9, "gumbel_temperature": 3, "num_steps": 4},
    ],
)
def test_the_command_draws_the_same_images(command, tmp_path, asked):
    choices = Choices(enat.load(EMOJI))
    asked = request(choices, **asked)
    frames, _ = drawn(choices, asked)
    line = drawing.command_line(choices, asked, f"weights={shlex.quote(str(EMOJI))}")
    words = shlex.split(line)
    assert words[:3] == ["python", "run.py", "task=sample"]
    outcome = command(*words[2:], f"output={tmp_path / 'x'}")
    assert outcome.status == 0, outcome.err
    files = sorted((tmp_path / "x" / "images").iterdir())
    assert [Image.open(file).tobytes() for file in files] == [image.tobytes() for image in frames[-1].images]


def test_classes_are_written_so_that_the_command_finds_them(make_pipeline):
    model = make_pipeline()
    for names, expected in {
        ("ant", "a b", "null", "bee", "bee"): ["ant", "1", "2", "3", "4", "unconditional"],
        ("1", "0", "it's", "d", "e"): ['"1"', '"0"', "2", "d", "e", "unconditional"],
    }.items():
        model.class_names = list(names)
        choices = Choices(model)
        assert [drawing._class_word(choices, one) for one in range(6)] == expected


def test_settings_go_into_the_file_and_back(choices):
    given = {"num_steps": 4, "guidance_scale": 1.5, "sampling_temperature": 0.5, "gumbel_temperature": 2.0}
    asked = request(choices, [4], 3, 9, "halton", "remasking", **given)
    frames, facts = drawn(choices, asked)
    values, text = uploads.settings_of(choices, png_bytes(frames[-1].images[2], facts[2]))
    parts = {"order": "halton", "correction": "remasking"}
    assert values == {"classes": [4], "images_per_class": 3, "seed": 9, **given, **parts}
    assert text == "All settings are in the controls. Draw makes the same image again."
    again = choices.drawing(*(values[name] for name in ("classes", "images_per_class", "seed")), given, *parts.values())
    assert again == asked
    facts[2]["model_sha256"] = "0" * 64
    assert "of other weights" in uploads.settings_of(choices, png_bytes(frames[-1].images[2], facts[2]))[1]


def test_the_editor_gives_image_and_brush(tmp_path):
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "image.png")
    layer = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    layer.paste((200, 0, 0, 255), (0, 0, 4, 8))
    layer.save(tmp_path / "layer.png")
    paths = [SimpleNamespace(path=str(tmp_path / name)) for name in ("image.png", "layer.png")]
    payload = SimpleNamespace(id=None, background=paths[0], layers=[paths[1]])
    image, painted = uploads.read_editor({}, payload)
    assert image.getpixel((7, 7)) == (0, 0, 255)
    assert np.array_equal(np.asarray(painted)[0], [255] * 4 + [0] * 4)
    contents = [(tmp_path / name).read_bytes() for name in ("image.png", "layer.png")]
    blobs = {"id": SimpleNamespace(background=contents[0], layers=[contents[1], None])}
    again = uploads.read_editor(blobs, SimpleNamespace(id="id"))
    assert [one.tobytes() for one in again] == [image.tobytes(), painted.tobytes()]
    assert not blobs
    assert uploads.read_editor({}, SimpleNamespace(id="id")) is None
    assert uploads.read_editor({}, None) is None


def test_an_edit_is_that_of_the_library(choices):
    model = choices.model
    image = model.generate("bee", seed=3)[0]
    large = image.resize((64, 64), Image.Resampling.NEAREST)
    painted = Image.new("L", (64, 64))
    painted.paste(255, (0, 0, 32, 64))
    base = (choices, (large, painted))
    results, facts = editing.edit(*base, editing.PAINTED, [0, 0, 1, 1], 4, 0.25, 3, 5, True)
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 0, 4, 8))
    expected = model.edit(image, "emu", mask, keep=0.25, results_per_class=3, seed=5, soft_blend=0)
    assert [one.tobytes() for one in results] == [one.tobytes() for one in expected]
    assert all(np.array_equal(np.asarray(one)[:, 4:], np.asarray(image)[:, 4:]) for one in results)
    assert [(one["class"], one["number"], one["seed"]) for one in facts] == [("emu", place, 5) for place in range(3)]
    assert "The image was edited" in uploads.settings_of(choices, png_bytes(results[0], facts[0]))[1]
    by_box, _ = editing.edit(*base, editing.BOX, [0, 0, 0.5, 1], 4, 0.25, 3, 5, True)
    assert [one.tobytes() for one in by_box] == [one.tobytes() for one in expected]
    everything, _ = editing.edit(*base, editing.EVERYTHING, [0, 0, 1, 1], 5, 0, 1, 5, False)
    assert everything[0].tobytes() == model.edit(image, seed=5)[0].tobytes()


@pytest.mark.parametrize("size", [(101, 67), (24, 24), (48, 48)])
def test_an_upload_is_cropped_as_in_training(choices, size):
    """The page, the library and training have one crop; the page alone takes back what it has enlarged."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    painted = Image.new("L", size)
    painted.paste(255, (0, 0, size[0] // 2, size[1]))
    results, _ = editing.edit(choices, (image, painted), editing.PAINTED, [0, 0, 1, 1], 4, 0, 1, 5, True)
    expected = choices.model.edit(image, "emu", painted, seed=5, soft_blend=0)
    assert results[0].tobytes() == expected[0].tobytes()
    assert np.array_equal(np.asarray(results[0])[:, 4:], np.asarray(center_crop(image, 8))[:, 4:])
    large = image.resize((3 * size[0], 3 * size[1]), Image.Resampling.NEAREST)
    assert editing.as_drawn(large, size[0]).tobytes() == (image if size[0] == size[1] else large).tobytes()


def test_the_weights_own_sampler_is_offered(make_pipeline):
    own = make_pipeline().with_sampler(num_steps=100, order={"_target_": "enat.orders.EntropyBound", "bound": 2.0})
    choices = Choices(own)
    assert choices.own_order == "as the weights say" == choices.orders[-1]
    assert choices.range_of("num_steps") == (1, 100)
    asked = request(choices, num_steps=3)
    frames, _ = drawn(choices, asked)
    expected = own.with_sampler(num_steps=3).generate("bee")
    assert [frame.images[0].tobytes() for frame in frames] == [expected[0].tobytes()]  # drawn one at a time: no steps
    assert request(choices, order="halton").options == {"order": {"_target_": "enat.orders.Halton"}}
    assert set(NUMBERS) == set(choices.own)


def test_the_task_refuses_what_the_page_does_not_do(command, monkeypatch, tmp_path):
    monkeypatch.setattr(experiments.page, "serve", lambda *_: "http://127.0.0.1:1")
    options = ["task=page", f"weights={EMOJI}", f"output={tmp_path / 'page'}"]
    refused = command(*options, "fabric.precision=bf16-mixed")
    assert "fabric.precision=bf16-mixed: the page casts the weights once; expected 32-true" in refused.err
    assert command(*options, "trainer.devices=2").status == 0  # one process, for several can't share a port
    with pytest.raises(InputError, match="task=page: expected a single process"):  # under torchrun
        experiments.page.page(SimpleNamespace(processes=SimpleNamespace(size=2)), None, "FILE", "127.0.0.1", 0, {})


def test_the_task_shows_the_checkpoint(command, monkeypatch, tmp_path):
    served = {}

    def serve(model, given, host, port):
        served.update(images=model.with_sampler(num_steps=2).generate("face"), given=given, host=host, port=port)
        served["facts"] = model.facts()
        return "http://127.0.0.1:1"

    monkeypatch.setattr(experiments.page, "serve", serve)
    options = [f"weights={EMOJI}", "sampler.guidance_scale=2", "port=0", f"output={tmp_path / 'page'}"]
    outcome = command("task=page", *options)
    assert outcome.status == 0, outcome.err
    assert outcome.results["address"] == "http://127.0.0.1:1"
    assert (served["host"], served["port"]) == ("127.0.0.1", 0)
    assert served["given"] == "weights=examples/emoji sampler.guidance_scale=2"
    expected = enat.load(EMOJI).with_sampler(num_steps=2, guidance_scale=2.0)
    assert served["images"][0].tobytes() == expected.generate("face")[0].tobytes()
    assert served["facts"]["model_sha256"] == expected.facts()["model_sha256"]
