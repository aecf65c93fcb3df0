"""The page as a server: several visitors at once, made-up requests, and no way out of this machine."""

import base64
import io
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

import enat
from enat.images import read_facts
from experiments.command.main import main
from experiments.web import launching, uploads

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[page]'")
from gradio_client import Client


@pytest.fixture(scope="module")
def model(make_pipeline):
    return make_pipeline()


@pytest.fixture(scope="module")
def server(model):
    blocks = launching.launch(model, "weights=FILE", port=0)
    yield blocks
    blocks.close()


def files_in(html: str) -> list[bytes]:
    """The PNG files that a part of the page offers for download."""
    return [base64.b64decode(one) for one in re.findall(r'href="data:image/png;base64,([^"]+)"', html)]


def ask(server, name, *data):
    """Sends a request without the page: the last event of the answer, and what it says."""
    address = f"{server.local_url}gradio_api/call/{name}"
    begun = httpx.post(address, json={"data": list(data)}, timeout=60)
    if begun.status_code != 200:
        return "refused", begun.text
    answer = httpx.get(f"{address}/{begun.json()['event_id']}", timeout=60).text
    events = re.findall(r"event: (\w+)\ndata: (.*)", answer)
    return events[-1]


DRAW = [[1], 1, 0, 3, 2, 1.0, 1.0, "confidence", "none"]


def test_eight_visitors_at_once(server, model, tmp_path):
    """Each gets the images that it asked for, of its own seed and class."""

    def visit(place):
        client = Client(server.local_url, verbose=False)
        values = [[place % 5], 1 + place % 2, place, *DRAW[3:]]
        return files_in(client.predict(*values, api_name="/draw")[1])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(visit, range(8)))
    for place, files in enumerate(answers):
        expected = model.generate(place % 5, 1 + place % 2, seed=place)
        assert len(files) == len(expected)
        for number, (file, image) in enumerate(zip(files, expected, strict=True)):
            (tmp_path / "x.png").write_bytes(file)
            assert Image.open(tmp_path / "x.png").tobytes() == image.tobytes()
            facts = read_facts(tmp_path / "x.png")
            assert (facts["seed"], facts["class"], facts["number"]) == (place, model.class_names[place % 5], number)


def test_each_step_is_sent(server):
    job = Client(server.local_url, verbose=False).submit(*DRAW, api_name="/draw")
    job.result()
    texts = [answer[0] for answer in job.outputs()]
    assert [re.sub("<.*?>", "", text) for text in texts[:3]] == [f"Step {step} of 3" for step in (1, 2, 3)]
    assert "1 image in 3 steps, seed 0" in texts[-1]


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (0, [99], "a class id: 99; expected a whole number from 0 to 5."),
        (0, "bee", "classes: expected from 1 to 16 of them."),
        (1, 10**6, "images per class: 1000000; expected a whole number from 1 to 16."),
        (3, "many", "steps: 'many'"),
        (4, None, "guidance: None"),
        (7, {"_target_": "os.system"}, "order: dict"),
    ],
)
def test_crafted_requests_get_a_sentence(server, place, value, sentence):
    event, answer = ask(server, "draw", *[value if at == place else one for at, one in enumerate(DRAW)])
    assert event == "error"
    assert sentence in json.loads(answer)["error"]
    assert ask(server, "draw", *DRAW)[0] == "complete"  # goes on


def test_files_of_the_server_are_not_read(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    for path in (str(secret), "/etc/passwd", "http://127.0.0.1:9/x.png", "../../etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event, answer = ask(server, "restore", file)
        assert event == "error"
        assert "no settings" not in answer  # which would mean that it was read
        editor = {"background": file, "layers": [], "composite": None}
        assert ask(server, "edit", editor, "everything", 0, 0, 1, 1, 1, 0, 1, 0, True)[0] == "error"
    assert httpx.get(f"{server.local_url}gradio_api/file={secret}").status_code == 403
    assert httpx.get(f"{server.local_url}gradio_api/file=/etc/passwd").status_code == 403


def test_uploads_are_read_by_our_reader(server):
    """Gradio by itself would open any format that Pillow knows."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, format="TIFF")
    sent = httpx.post(f"{server.local_url}gradio_api/upload", files={"files": ("x.png", content.getvalue())})
    file = {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}}
    editor = {"background": file, "layers": [], "composite": None}
    event, answer = ask(server, "edit", editor, "everything", 0, 0, 1, 1, 1, 0, 1, 0, True)
    assert event == "error"
    assert "the image can't be read; expected a PNG, JPEG or WebP file." in answer


def part(server, content=b"x", **about):
    """Sends a part of a picture, as the image editor does."""
    editor = next(block for block in server.blocks.values() if block.get_block_name() == "imageeditor")
    values = {"component_id": editor._id, "session_hash": "a", "fn_name": "accept_blobs", "id": "a", "type": "layer"}
    address = f"{server.local_url}gradio_api/component_server"
    return httpx.post(address, data={**values, **about}, files={"files": ("a.png", content)}, timeout=60), editor


def test_uploads_of_the_editor_are_bounded(server):
    answer, editor = part(server, index="150000000")
    assert answer.status_code == 422
    assert "number of the layer: '150000000'; expected" in answer.text
    assert editor.blob_storage == {}
    for place in range(40):
        answer, editor = part(server, index="0", id=f"{place}")
        assert answer.status_code == 200
    assert len(editor.blob_storage) == uploads.MAX_KEPT
    editor.blob_storage.clear()


@pytest.mark.parametrize("field", ["files", "others"])
def test_few_uploads_are_kept(server, monkeypatch, field):
    """Of any name: gradio leaves those of others where they are."""
    folder = uploads.own_folder()

    def send(*contents):
        files = [(field, (f"{place}.png", content)) for place, content in enumerate(contents)]
        return httpx.post(f"{server.local_url}gradio_api/upload", files=files, timeout=60)

    monkeypatch.setattr(uploads, "MAX_FILES", 3)
    for place in range(5):
        assert send(field.encode() + b"%d" % place, b"%d" % place + field.encode()).status_code == 200
    kept = [path for path in folder.rglob("*") if path.is_file()]
    assert len(kept) == 3
    assert field.encode() + b"4" in [path.read_bytes() for path in kept]
    assert len(list(folder.iterdir())) <= 3
    monkeypatch.setattr(uploads, "MAX_FILES_BYTES", 100)
    assert send(bytes(90)).status_code == 200
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 100


EVIL = "http://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "SELF"}, 200),
        ({"Origin": "SELF"}, 200),
        ({"Origin": "https://proxy.example", "X-Forwarded-Host": "proxy.example"}, 200),
        ({}, 200),
    ],
)
def test_requests_of_other_sites(server, headers, status):
    own = server.local_url.rstrip("/")
    given = {name: own if value == "SELF" else value for name, value in headers.items()}
    for path, content in (("upload", {"files": {"files": ("x.png", b"x")}}), ("call/draw", {"json": {"data": DRAW}})):
        answer = httpx.post(f"{own}/gradio_api/{path}", headers=given, timeout=60, **content)
        assert answer.status_code == status
        assert status == 200 or answer.text == "the request comes from another web site; expected one of this page."


def test_links_to_the_page_may_be_followed(server):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert httpx.get(server.local_url, headers=link).status_code == 200
    picture = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert httpx.get(f"{server.local_url}config", headers=picture).status_code == 403


def test_large_requests_are_refused(server):
    files = [("files", ("a.png", bytes(9 * 2**20)))] * 6
    assert httpx.post(f"{server.local_url}gradio_api/upload", files=files, timeout=60).status_code == 413


def test_other_names_of_this_machine(server):
    """The name of another web page may lead to this machine, too."""
    for host, status in (("evil.example", 400), ("evil.example:7860", 400), ("localhost:1", 200), ("[::1]:1", 200)):
        assert httpx.get(server.local_url, headers={"Host": host}).status_code == status
    address = f"{server.local_url}gradio_api/call/draw"
    assert httpx.post(address, json={"data": DRAW}, headers={"Host": "evil.example"}).status_code == 400


def test_only_this_machine_and_no_telemetry(server):
    assert server.server_name == "127.0.0.1"
    assert server.local_url.startswith("http://127.0.0.1:")
    assert not server.share
    assert not server.analytics_enabled
    page = httpx.get(server.local_url).text
    assert not re.findall(r'(?:src|href)="https?://(?!127\.0\.0\.1)', page)


def test_a_proxy_of_the_machine_is_not_asked(model, monkeypatch):
    """Gradio asks whether its page is there; the proxy of a company does not know it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    launching.launch(model, "", port=0).close()


def test_a_port_in_use_is_told(server, model):
    with pytest.raises(enat.errors.InputError, match=f"port={server.server_port}: can't be used on 127.0.0.1"):
        launching.launch(model, "", port=server.server_port)


def test_a_missing_gradio_is_told(make_pipeline, tmp_path, monkeypatch, capsys):
    make_pipeline().save(tmp_path / "folder")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["page", str(tmp_path / "folder")]) == 2
    assert "the page needs the package gradio; expected `pip install -e '.[page]'`" in capsys.readouterr().err
