"""task=download, from a server of the test's own."""

import hashlib
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType

import pytest

from data import download
from data.download import download_file
from enat.errors import InputError
from experiments.download import download as download_task

CONTENT = bytes([*range(128, 256), *range(128)]) * 12_000  # 3 MB, which begin as a pickle does
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Serves CONTENT, its first bytes only the first time, and ranges of it; remembers the requests."""

    requests: list
    content = CONTENT
    tag = '"1"'
    stops_after: int | None = None
    about: Mapping[str, str] = MappingProxyType({})  # further headers of each answer
    heeds_if_range = True
    sends_at_most = 10**9  # bytes of a range
    shift = 0  # of the ranges that are sent
    knows_ranges = True
    sends_parts_only = False
    trailing = b""  # what it sends after the bytes that it says a part has

    def do_GET(self):
        kind = type(self)
        kind.requests.append(self.headers.get("Range"))
        if self.path == "/around":
            self.send_response(302)
            self.send_header("Location", "/around")
            self.end_headers()
            return
        if self.path != "/file":
            self.send_error(404, "Not Found")
            return
        match = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        is_same = self.headers["If-Range"] == kind.tag or not kind.heeds_if_range
        start = int(match[1]) if match and kind.knows_ranges and is_same else 0
        if start and start >= len(kind.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(kind.content)}")
            self.end_headers()
            return
        self.send_response(206 if start or kind.sends_parts_only else 200)
        first = start + kind.shift if start else 0
        content = kind.content[first:][: kind.sends_at_most if start else None]
        place = f"bytes {first}-{first + len(content) - 1}/{len(kind.content)}"
        content += kind.trailing if start else b""
        about = {"Content-Length": f"{len(content)}", "Content-Range": place, "ETag": kind.tag, **kind.about}
        for name, value in about.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content if start else content[: kind.stops_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    kind = type("ServerOfTest", (Server,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield kind, f"http://127.0.0.1:{running.server_address[1]}/file"
        running.shutdown()


def test_a_stopped_download_goes_on(server, tmp_path):
    kind, url = server
    kind.stops_after = 2_000_000
    with pytest.raises(InputError, match=r"the download stopped at 2,000,000 of 3,072,000 bytes; the same"):
        download_file(url, tmp_path / "file")
    kind.stops_after = None
    seen = []
    assert download_file(url, tmp_path / "file", SHA256[:8], lambda *bytes_: seen.append(bytes_)) == SHA256
    assert kind.requests == [None, "bytes=2000000-"]
    assert seen[-1] == (3_072_000, 3_072_000)
    assert seen[0][0] > 2_000_000
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def download_in_two_parts(server, path, change):
    """Downloads a file from a server that stops once and then changes; checks that it is as the server has it then."""
    kind, url = server
    kind.stops_after = 2_000_000
    with pytest.raises(InputError, match="stopped"):
        download_file(url, path)
    kind.stops_after = None
    for name, value in change.items():
        setattr(kind, name, value)
    download_file(url, path)
    assert path.read_bytes() == kind.content
    return kind


@pytest.mark.parametrize("change", [{"tag": '"2"', "content": CONTENT[::-1]}, {"knows_ranges": False}])
def test_a_part_of_another_version_is_fetched_anew(server, tmp_path, change):
    download_in_two_parts(server, tmp_path / "file", change)


def test_bytes_after_the_end_of_a_part_are_left_out(server, tmp_path):
    download_in_two_parts(server, tmp_path / "file", {"trailing": b"more"})


def test_what_is_not_the_file(server, tmp_path):
    _, url = server
    with pytest.raises(InputError, match=r"the sha256 of the file is .*; expected 1234. It was removed"):
        download_file(url, tmp_path / "file", "1234")
    with pytest.raises(InputError, match=r"other: the server answers 404 \(Not Found\)"):
        download_file(url.replace("/file", "/other"), tmp_path / "file")
    with pytest.raises(InputError, match="expected an address of http or https"):
        download_file(f"file://{tmp_path}/x", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_the_task(command, server, tmp_path):
    _, url = server
    options = ["task=download", f"output={tmp_path}/o", f"folder={tmp_path}/assets", f"public_files.vqgan.url={url}"]
    outcome = command(*options, "files=[vqgan]")
    path = tmp_path / "assets" / "vqgan_jax_strongaug.ckpt"
    assert outcome.results["files"] == {"vqgan": {"path": str(path), "sha256": SHA256}}
    assert path.read_bytes() == CONTENT
    assert "is there already" in command(*options, "files=[vqgan]").err
    refused = command(*options, "files=[vqgan]", "public_files.vqgan.sha256=12")
    assert f"its sha256 is {SHA256}; expected 12. Remove it first." in refused.err
    assert "files=gan: there is no such file; there are vqgan, enat_l_256," in command(*options, "files=[gan]").err
    assert "expected names of files to fetch, such as files=[vqgan]; there are vqgan" in command(*options).err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["task=sample", "experiment=enat_l_256", "weights=assets/nnet_ema_256.pth"], "vqgan"),
        (["task=sample", "weights=assets/nnet_ema_256.pth"], "enat_l_256"),
        (["task=statistics", "scored.path={photos}", "scored.resolution=32"], "inception"),
        (["task=score", "metrics=inception", "scored.path={photos}", "features.weights={inception}"], "adm_256"),
    ],
)
def test_a_missing_public_file_says_how_to_fetch_it(command, photos, inception, tmp_path, arguments, name):
    filled = [argument.format(photos=photos, inception=inception) for argument in arguments]
    if name == "adm_256":
        filled[-1] = f"metrics.evaluation.{filled[-1]}"
    outcome = command(*filled, f"output={tmp_path}/o")
    assert outcome.status == 1
    assert "there is no such file. `python run.py task=download " in outcome.err
    assert f"'files=[{name}]'` fetches it." in outcome.err


def test_a_part_that_is_complete_gets_its_name(server, tmp_path):
    """The task was stopped between the last byte and the check of the sha256; servers answer 416 then."""
    kind, url = server
    (tmp_path / "file.partial").write_bytes(CONTENT)
    (tmp_path / "file.version").write_text(kind.tag)
    assert download_file(url, tmp_path / "file", SHA256) == SHA256
    assert (tmp_path / "file").read_bytes() == CONTENT
    (tmp_path / "other.partial").write_bytes(CONTENT + b"more")
    (tmp_path / "other.version").write_text(kind.tag)
    with pytest.raises(InputError, match="the file has changed since a part of it was fetched; try again"):
        download_file(url, tmp_path / "other")
    assert download_file(url, tmp_path / "other") == SHA256


def test_a_server_that_marks_no_versions(server, tmp_path):
    """What was fetched before may be of another file, and is fetched anew."""
    kind, url = server
    kind.tag = ""
    kind.stops_after = 2_000_000
    with pytest.raises(InputError, match="stopped"):
        download_file(url, tmp_path / "file")
    kind.stops_after = None
    kind.content = CONTENT[::-1]
    download_file(url, tmp_path / "file")
    assert kind.requests == [None, None]
    assert (tmp_path / "file").read_bytes() == kind.content


def test_a_server_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/file: can't be reached \("):
        download_file("http://127.0.0.1:9/file", tmp_path / "file")


def test_addresses_and_answers_that_are_odd(server, tmp_path):
    kind, url = server
    for address, sentence in {
        "http://": "can't be reached",
        "http://[::1": "can't be reached",
        "http://127.0.0.1:port/file": "can't be reached",
        f"{url}/überall": "the server answers 404",
        f"{url} with spaces": "the server answers 404",
    }.items():
        with pytest.raises(InputError, match=sentence):
            download_file(address, tmp_path / "file")
    kind.content = b""
    with pytest.raises(InputError, match="sends an empty file"):
        download_file(url, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_two_downloads_of_a_file_at_once(server, tmp_path):
    """The second one starts when the first one has written a part, and leaves it alone."""
    _, url = server
    refusals = []

    def start_another(done, total):
        with pytest.raises(InputError, match="another process is downloading it") as refusal:
            download_file(url, tmp_path / "file")
        refusals.append(refusal)

    assert download_file(url, tmp_path / "file", on_progress=start_another) == SHA256
    assert refusals
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_part_that_another_process_has_finished_meanwhile(server, tmp_path, monkeypatch):
    """Its lock is free again, but the open file has its final name now."""
    _, url = server

    def finish(file):
        (tmp_path / "file.partial").rename(tmp_path / "file")
        return True

    monkeypatch.setattr(download, "_lock", finish)
    with pytest.raises(InputError, match="another process is downloading it"):
        download_file(url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_disk_without_locks(server, tmp_path, monkeypatch):
    """What another process has written to the part shows in its size, and the file does not get its name."""
    _, url = server
    monkeypatch.setattr(download, "fcntl", None)

    def write_more(done, total):
        with (tmp_path / "file.partial").open("ab") as file:
            file.write(b"of another process")

    with pytest.raises(InputError, match="since another process writes to it, too; it was removed"):
        download_file(url, tmp_path / "file", on_progress=write_more)
    assert not (tmp_path / "file").exists()
    assert download_file(url, tmp_path / "file") == SHA256


def test_a_download_that_fails_leaves_no_empty_part(tmp_path):
    with pytest.raises(InputError, match="can't be reached"):
        download_file("http://127.0.0.1:9/file", tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_public_file_of_the_users(command, server, tmp_path):
    """Without a sha256, nothing is checked; without an address or a name, there is nothing to fetch."""
    _, url = server
    options = ["task=download", f"output={tmp_path}/o", f"folder={tmp_path}/assets", "files=[mine]"]
    fetched = command(*options, f"+public_files.mine.url={url}", "+public_files.mine.file=a.pth")
    assert fetched.status == 0, fetched.err
    assert fetched.results["files"]["mine"]["sha256"] == SHA256
    refused = command(*options, f"+public_files.mine.url={url}")
    expected = "public_files.mine: expected public_files.mine.file, the name that the file gets."
    assert refused.err == f"Error: {expected}\n"


@pytest.mark.parametrize("entry", [None, 3, "http://a/b", {}, {"file": "a"}, {"file": "a", "url": None}])
def test_a_public_file_without_an_address(tmp_path, entry):
    with pytest.raises(InputError, match=r"^public_files\.mine: expected public_files\.mine\.url, the address of the"):
        download_task(["mine"], {"mine": entry}, str(tmp_path))


def test_an_empty_file_is_fetched_again(server, tmp_path, capsys):
    _, url = server
    (tmp_path / "a.pth").touch()
    public_files = {"mine": {"url": url, "file": "a.pth"}}
    assert download_task(["mine"], public_files, str(tmp_path))["files"]["mine"]["sha256"] == SHA256
    assert "a.pth is empty; it is fetched again." in capsys.readouterr().err
    assert (tmp_path / "a.pth").read_bytes() == CONTENT


def test_a_folder_in_the_place_of_a_file(tmp_path):
    (tmp_path / "a.pth").mkdir()
    with pytest.raises(InputError, match=r"a\.pth: this is no file; expected it to be removed"):
        download_task(["mine"], {"mine": {"url": "http://a/b", "file": "a.pth"}}, str(tmp_path))


PAGES = [
    b"\n<!DOCTYPE html><html>Quota exceeded</html>",
    b"\xef\xbb\xbf<html>Quota exceeded</html>",
    b"<!-- a page --><html>Quota exceeded</html>",
    b"<Error><Code>AccessDenied</Code></Error>",
]


@pytest.mark.parametrize("content", PAGES)
@pytest.mark.parametrize("name", ["file", "file.npz"])
def test_a_page_in_place_of_a_file(server, tmp_path, content, name):
    kind, url = server
    kind.content = content
    with pytest.raises(InputError, match=r"the server gives a web page or XML instead of the file; open it in a br"):
        download_file(url, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file.pth", "file.CKPT", "file.pt", "file.npz"])
def test_what_does_not_begin_as_such_a_file_does(server, tmp_path, name):
    kind, url = server
    for content in (b"Quota exceeded", b'{"error": "quota"}', b"\xff\xfe<\0h\0", b"\x1f\x8b\x08 compressed"):
        kind.content = content
        with pytest.raises(InputError, match=rf"the server gives no \.{name[5:]} file instead of the file; open"):
            download_file(url, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    for content in (b"PK\x03\x04", *([] if name.endswith("npz") else [b"\x80\x02"])):
        kind.content = content
        download_file(url, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_a_file_that_is_compressed_on_the_way(server, tmp_path):
    kind, url = server
    kind.about = {"Content-Encoding": "gzip"}
    with pytest.raises(
        InputError, match=r"file: the server sends the file compressed \(gzip\); fetch it with a browser"
    ):
        download_file(url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    kind.about = {"Content-Encoding": "Identity"}
    assert download_file(url, tmp_path / "file") == SHA256


def test_a_page_does_not_replace_a_part(server, tmp_path):
    kind, url = server
    kind.stops_after = 2_000_000
    with pytest.raises(InputError, match="stopped"):
        download_file(url, tmp_path / "file")
    kind.stops_after = None
    kind.knows_ranges = False
    kind.content = PAGES[0]
    with pytest.raises(InputError, match="a web page"):
        download_file(url, tmp_path / "file")
    kind.knows_ranges = True
    kind.content = CONTENT
    assert download_file(url, tmp_path / "file") == SHA256
    assert kind.requests[-1] == "bytes=2000000-"


def test_a_server_that_sends_less_than_the_rest(server, tmp_path):
    """Each answer is a part of it, until all parts are there."""
    kind, url = server
    kind.stops_after = 2_000_000
    with pytest.raises(InputError, match="stopped"):
        download_file(url, tmp_path / "file")
    kind.sends_at_most = 500_000
    assert download_file(url, tmp_path / "file") == SHA256
    assert kind.requests[1:] == ["bytes=2000000-", "bytes=2500000-", "bytes=3000000-"]


OTHER_PARTS = {
    "shifted": {"shift": 256},
    "from the start": {"shift": -2_000_000},
    "of another version": {"tag": '"2"', "heeds_if_range": False, "content": CONTENT[::-1]},
    "without a total": {"about": {"Content-Range": "bytes 2000000-3071999/*"}},
    "of no length": {"about": {"Content-Range": "bytes 2000000-1999999/3072000"}},
    "after the end": {"about": {"Content-Range": "bytes 2000000-3072000/3072000"}},
    "without numbers": {"about": {"Content-Range": "all"}},
}


@pytest.mark.parametrize("change", OTHER_PARTS.values(), ids=OTHER_PARTS)
def test_another_part_than_was_asked_for(server, tmp_path, change):
    """The file is fetched from its start then."""
    kind = download_in_two_parts(server, tmp_path / "file", change)
    assert kind.requests[1:] == ["bytes=2000000-", None]


def test_a_part_without_a_mark_is_of_the_same_version(server, tmp_path):
    """As RFC 9110 allows in an answer to If-Range."""
    kind = download_in_two_parts(server, tmp_path / "file", {"about": {"ETag": ""}, "heeds_if_range": False})
    assert kind.requests == [None, "bytes=2000000-"]


def test_a_part_that_was_not_asked_for(server, tmp_path):
    """Without a mark, the next request could not tell that there is a part."""
    kind, url = server
    kind.sends_parts_only = True
    kind.about = {"ETag": ""}
    with pytest.raises(InputError, match="the server sends another part than was asked for"):
        download_file(url, tmp_path / "file")


def test_no_mark_and_no_part_is_left_behind(server, tmp_path):
    kind, url = server
    kind.content = b""
    with pytest.raises(InputError, match="sends an empty file"):
        download_file(url, tmp_path / "file")
    kind.content = CONTENT
    kind.stops_after = 0
    with pytest.raises(InputError, match="stopped at 0 of 3,072,000 bytes"):
        download_file(url, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_an_address_that_leads_back_to_itself(server, tmp_path):
    _, url = server
    with pytest.raises(InputError, match=r"^http://.*/around: the server answers 302 \([^\n.]* infinite loop\)\.$"):
        download_file(url.replace("/file", "/around"), tmp_path / "file")
