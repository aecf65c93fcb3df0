"""Servers of others: endless and slow answers, more than was asked for, and links in the place of downloads."""

import gzip
import json
import resource
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data import fetch
from data.download import download_file
from enat.errors import InputError

MANIFEST = {
    "tokenizer": "VQGAN", "tokenizer_sha256": "abc", "resolution": 8, "grid": [2, 2], "codebook_size": 50,
    "class_names": ["a"], "views": ["plain"], "pack_size": 4, "splits": {},
}  # fmt: skip


@pytest.fixture
def server():
    """Starts servers, and stops them after the test."""
    running = []

    def start(handle, about=()) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                handle(self)

            def do_HEAD(self):
                self.send_response(200)
                for name, value in dict(about).items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_):
                pass

        one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        one.daemon_threads = True
        threading.Thread(target=one.serve_forever, daemon=True).start()
        running.append(one)
        return f"http://127.0.0.1:{one.server_port}"

    yield start
    for one in running:
        one.shutdown()


@contextmanager
def more_memory_at_most(size):
    """Lets this process take so many bytes more of memory, and no more."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_an_endless_manifest(server, monkeypatch, tmp_path):
    def handle(request):
        request.send_response(200)
        request.end_headers()
        try:
            while True:
                request.wfile.write(b" " * 2**16)
        except OSError:
            pass

    monkeypatch.setattr(fetch, "MAX_MANIFEST", 2**20)
    with pytest.raises(InputError, match=r"manifest\.json: more than 1,048,576 bytes, which is too long"):
        fetch.fetch_manifest(server(handle), tmp_path)


def test_a_server_that_sends_a_byte_a_second(server, monkeypatch, tmp_path):
    done = threading.Event()

    def handle(request):
        request.send_response(200)
        request.end_headers()
        try:
            while not done.wait(0.2):
                request.wfile.write(b" ")
                request.wfile.flush()
        except OSError:
            pass

    monkeypatch.setattr(fetch, "PATIENCE", 1)
    monkeypatch.setattr(fetch, "MAX_MANIFEST", 1000)
    address = server(handle)
    with pytest.raises(InputError, match=r"manifest\.json: can't be read: the server is too slow"):
        fetch.fetch_manifest(address, tmp_path)
    done.set()


@pytest.mark.parametrize("kind", ["a range", "compressed"])
def test_a_server_that_sends_more_than_was_asked_for(server, monkeypatch, tmp_path, kind):
    """Of a range, and of compressed content, no more is taken into memory than the file may have."""
    sent = []

    def handle(request):
        request.send_response(206)
        if kind == "compressed":
            request.send_header("Content-Encoding", "gzip")
        request.end_headers()
        part = gzip.compress(bytes(2**24)) if kind == "compressed" else b" " * 2**16
        try:
            for _ in range(2**10):
                request.wfile.write(part)
                sent.append(len(part))
        except OSError:
            pass

    monkeypatch.setattr(fetch, "MAX_MANIFEST", 2**20)
    address = server(handle, {"Content-Length": "1000", "Accept-Ranges": "bytes"})
    sentence = r"manifest\.json: more than 1,048,576 bytes, which is too long"
    with more_memory_at_most(500_000_000), pytest.raises(InputError, match=sentence):
        fetch.fetch_manifest(address, tmp_path)
    assert sum(sent) < 2**25


def test_a_manifest_of_a_server(server, tmp_path):
    def handle(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(json.dumps(MANIFEST).encode())

    folder = fetch.fetch_manifest(server(handle), tmp_path)
    assert json.loads((folder / "manifest.json").read_text()) == MANIFEST


def test_a_large_shard_is_not_kept_in_memory(server, tmp_path):
    """It goes to the disk in parts, and nothing of it stays there if it is another one."""
    size = 2**29

    def handle(request):
        request.send_response(200)
        request.end_headers()
        if request.path.endswith("manifest.json"):
            shard = {"name": "a.tar", "samples": 2**26, "bytes": size, "sha256": "0" * 64}
            request.wfile.write(json.dumps({**MANIFEST, "splits": {"train": [shard]}}).encode())
        else:
            for _ in range(size // 2**20):
                request.wfile.write(bytes(2**20))

    address = server(handle)
    sentence = r"a\.tar: the shard was altered; its sha256 is not the manifest's"
    with more_memory_at_most(300_000_000), pytest.raises(InputError, match=sentence):
        fetch.fetch(address, tmp_path)
    assert [path.name for path in tmp_path.glob("*/*")] == ["manifest.json"]


@pytest.mark.parametrize("place", ["file", "file.partial", "file.version"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_download_follows_no_link(server, tmp_path, place, kind):
    def handle(request):
        request.send_response(200)
        request.send_header("ETag", "of the server")
        request.end_headers()
        request.wfile.write(b"hello")

    precious = tmp_path / "precious"
    precious.write_text("mine")
    link = tmp_path / "files" / place
    link.parent.mkdir()
    if kind == "hard":
        link.hardlink_to(precious)
    else:
        link.symlink_to(precious)
    download_file(f"{server(handle)}/file", tmp_path / "files/file")
    assert precious.read_text() == "mine"
    assert (tmp_path / "files/file").read_text() == "hello"
    assert not (tmp_path / "files/file").is_symlink()
    (tmp_path / "files/file.partial").mkdir()
    with pytest.raises(InputError, match=r"file\.partial: this is no file; expected it to be removed"):
        download_file(f"{server(handle)}/file", tmp_path / "files/file")


@pytest.mark.parametrize("length", ["many", "1" * 5000, "", "²"])
def test_a_range_of_no_length(server, tmp_path, length):
    def handle(request):
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{length}")
        request.end_headers()

    (tmp_path / "file.partial").write_text("a part")
    (tmp_path / "file.version").write_text("1")
    address = f"{server(handle)}/file"
    with pytest.raises(InputError, match="the file has changed since a part of it was fetched; try again"):
        download_file(address, tmp_path / "file")
    with pytest.raises(InputError, match="the server answers 416"):  # although the whole file was asked for
        download_file(address, tmp_path / "file")
