"""The page in a browser: it draws, reveals, edits, downloads, and takes its own file back."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import enat
from enat.images import read_facts

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[page]'")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
from experiments.web import launching  # noqa: E402

CHROMIUM = shutil.which("chromium")
EMOJI = Path(__file__).parents[3] / "examples" / "emoji"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt install chromium"),
]


@pytest.fixture(scope="module")
def model():
    return enat.load(EMOJI)


@pytest.fixture(scope="module")
def address(model):
    blocks = launching.launch(model, f"weights={EMOJI}", port=0)
    yield blocks.local_url
    blocks.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 400])
def page(browser, address, request):
    context = browser.new_context(viewport={"width": request.param, "height": 900}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.asked = []
    page.on("request", lambda one: page.asked.append(one.url))
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    yield page
    context.close()


# Keeps each picture that the page shows, so that no step is missed between two looks.
WATCH = """() => {
  window.frames_seen = new Set();
  const look = () => document.querySelectorAll('#drawn img').forEach(one => window.frames_seen.add(one.src));
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def status(page, text):
    page.get_by_role("status").filter(has_text=text).filter(visible=True).wait_for()


def downloaded(page, name, to):
    with page.expect_download() as waiting:
        page.get_by_role("link", name=name).filter(visible=True).click()
    waiting.value.save_as(to)
    return to


def test_a_visit(page, model, address, tmp_path):
    # Draw a face and a flag, chosen by name with the keyboard, and watch them appear.
    page.evaluate(WATCH)
    classes = page.get_by_label("Classes (type to search)")
    classes.click()
    classes.press("Backspace")
    for name in ("face", "flag"):
        classes.fill(name)
        classes.press("Enter")
    classes.press("Escape")
    page.get_by_label("Images per class").fill("1")
    page.get_by_label("Seed").filter(visible=True).fill("3")
    page.get_by_role("button", name="Draw", exact=True).press("Enter")
    status(page, "2 images in 16 steps, seed 3")
    assert page.evaluate("window.frames_seen.size") >= 8
    file = downloaded(page, "Download face 1 as PNG", tmp_path / "face.png")
    expected = model.generate(["face", "flag"], seed=3)
    assert Image.open(file).tobytes() == expected[0].tobytes()
    assert read_facts(file)["seed"] == 3
    assert "classes=[face,flag]" in page.get_by_label("The same images on the command line").input_value()

    # Edit the drawn face: paint over its left eye.
    page.get_by_role("tab", name="Edit").click()
    page.get_by_role("button", name="Take this image").click()
    canvas = page.locator("canvas").filter(visible=True).first
    canvas.wait_for()
    page.wait_for_timeout(1500)
    box = canvas.bounding_box()
    left, middle = box["x"] + 0.4 * box["width"], box["y"] + 0.5 * box["height"]
    canvas.hover()
    page.mouse.move(left, middle - 40)
    page.mouse.down()
    page.mouse.move(left, middle + 40, steps=10)
    page.mouse.up()
    page.get_by_label("Results").fill("2")
    page.get_by_role("button", name="Edit", exact=True).click()
    status(page, "2 results, seed 0")
    edited = Image.open(downloaded(page, "Download clock 1 as PNG", tmp_path / "edited.png"))
    changed = (np.asarray(edited) != np.asarray(expected[0])).any(axis=2)
    assert changed.any()
    assert not changed[:, 24:].any()

    # Drop the face back in: the controls are those of its drawing.
    page.reload()
    page.locator("input[type=file]").first.set_input_files(file)
    status(page, "Draw makes the same image again.")
    assert page.get_by_label("Seed").filter(visible=True).input_value() == "3"
    page.get_by_role("button", name="Draw", exact=True).click()
    status(page, "1 image in 16 steps, seed 3")
    again = downloaded(page, "Download face 1 as PNG", tmp_path / "again.png")
    assert again.read_bytes() == file.read_bytes()

    # It fits into the window, names its controls, and asks nobody else.
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    unnamed = "input:not([type=file]), textarea, select"
    assert page.locator(unnamed).filter(visible=True).count() >= 10
    assert all(one.evaluate(NAME) for one in page.locator(unnamed).filter(visible=True).all())
    others = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert not others, re.sub(r"\?.*", "", others[0])


NAME = "one => one.ariaLabel || one.title || [...(one.labels || [])].map(label => label.innerText).join('')"
