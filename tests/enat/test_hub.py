"""Names on the Hugging Face Hub, against a server here that answers as the hub does to the few requests in question."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from urllib.parse import unquote

import pytest

import enat
from enat.checkpoints.hub import find_weights
from enat.errors import InputError

ROOT = Path(__file__).parents[2]
COMMITS = MappingProxyType({"main": "a" * 40, "v2": "b" * 40})  # by revision
DRAW = """
import enat, hashlib, sys
images = enat.load(sys.argv[1]).generate(["bee"], 2)
print(hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest())
"""


class Hub(BaseHTTPRequestHandler):
    """Serves the files of folders, by the commit of each, as one repository: somebody/birds."""

    folders: dict[str, Path]
    asked: list[str]

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = unquote(self.path.partition("?")[0])
        self.asked.append(path)
        if path.startswith("/api/models/somebody/birds/revision/"):
            commit = COMMITS.get(path.rpartition("/")[2])
            if commit is not None:
                names = [{"rfilename": file.name} for file in sorted(self.folders[commit].iterdir())]
                content = json.dumps({"id": "somebody/birds", "sha": commit, "siblings": names}).encode()
                return self.send(200, content, {"Content-Type": "application/json"}, with_body)
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        if path.startswith("/api/models/somebody/birds/tree/"):
            files = sorted(self.folders[path.rpartition("/")[2]].iterdir())
            entries = [{"type": "file", "path": x.name, "size": x.stat().st_size, "oid": "c" * 40} for x in files]
            return self.send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"}, with_body)
        _, _, name, _, commit, *rest = [*path.split("/"), *[""] * 5][:6]
        file = self.folders.get(commit, Path("/none")) / rest[0]
        if name == "birds" and file.is_file():
            content = file.read_bytes()
            tag = hashlib.sha256(content).hexdigest()
            return self.send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": commit}, with_body)
        return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def send(self, status, content, headers, with_body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(make_pipeline, tmp_path):
    """A running server, its two folders, and the environment in which the hub's package finds it."""
    folders = {commit: tmp_path / revision for revision, commit in COMMITS.items()}
    make_pipeline().save(folders[COMMITS["main"]])
    make_pipeline().with_sampler(num_steps=7, guidance_scale=0.0).save(folders[COMMITS["v2"]])
    for folder in folders.values():
        (folder / "modeling.py").write_text("raise SystemExit('ran')")
        (folder / "pytorch_model.bin").write_bytes(b"not asked for")
    handler = type("OneHub", (Hub,), {"folders": folders, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    yield handler, folders, {**os.environ, **place, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1"}
    server.shutdown()
    server.server_close()


def digest(images):
    return hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()


@pytest.mark.slow
def test_a_name_on_the_hub(hub, tmp_path):
    handler, folders, environment = hub
    (tmp_path / "here").mkdir()
    options = {"capture_output": True, "text": True, "env": environment, "cwd": tmp_path / "here"}
    for name, revision in (("somebody/birds", "main"), ("somebody/birds@v2", "v2")):
        drawn = subprocess.run([sys.executable, "-c", DRAW, name], **options)
        assert drawn.returncode == 0, drawn.stderr
        assert drawn.stdout.split()[-1] == digest(enat.load(folders[COMMITS[revision]]).generate(["bee"], 2))
    files = {path.rpartition("/")[2] for path in handler.asked if "/resolve/" in path}
    assert files == {"config.json", "model.safetensors", "tokenizer.safetensors", "README.md"}
    command = "import sys; from experiments.command.main import main; sys.exit(main())"
    for name, reason in (("somebody/bees", "Repository Not Found"), ("somebody/birds@v3", "Revision Not Found")):
        missing = subprocess.run([sys.executable, "-c", command, "sample", name], **options)
        assert missing.returncode == 2
        assert f"weights={name}: there is no such file or folder here, and the Hugging Face Hub" in missing.stderr
        assert reason in missing.stderr
        assert "Traceback" not in missing.stderr


def test_what_exists_here_goes_before_a_name_on_the_hub(make_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("enat.checkpoints.hub._fetch", lambda *_: pytest.fail("asked the hub"))
    make_pipeline().save("somebody/birds")
    assert digest(enat.load("somebody/birds").generate(["bee"])) == digest(make_pipeline().generate(["bee"]))


@pytest.mark.parametrize(
    "path", ["outputs/last.ckpt", "a/b/c", "last", "/tmp/none", "../x", "a/b.safetensors", "a/..", "x@main", "a/b@../c"]
)
def test_paths_are_no_names(path, monkeypatch):
    monkeypatch.setattr("enat.checkpoints.hub._fetch", lambda *_: pytest.fail("asked the hub"))
    assert find_weights(path) == Path(path)
    assert find_weights(Path("somebody/birds")) == Path("somebody/birds")


def test_without_the_package_a_sentence_says_which_extra_brings_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs the package huggingface_hub: pip install -e '\.\[hub\]'$"):
        enat.load("somebody/birds")
