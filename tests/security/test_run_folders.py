"""Folders of runs from others: locks, settings and results that are made up, and texts for the terminal."""

import json
import os
import zipfile
from types import SimpleNamespace

import pytest

from data.tokenization import ShardRecord
from enat.checkpoints.description import check_description
from enat.errors import InputError
from enat.files import MAX_TEXT, read_record, read_text
from experiments.reporting.scores import print_scores
from experiments.runtime.held_out_seeds import best_jobs
from experiments.runtime.lock import lock
from experiments.runtime.multirun import refuse_other_jobs, refuse_other_weights
from experiments.runtime.resuming import announce, finished_results, resume_point
from experiments.runtime.run_files import read_settings
from experiments.runtime.scoring import Unfinished

DOUBLED = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 34))])
HOLDER = {"host": "x", "process": 1, "job": None, "began": 1}


def put(path, text):
    """Writes a file; None makes a pipe in its place, and a path a link to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        os.mkfifo(path)
    elif isinstance(text, os.PathLike):
        path.symlink_to(text)
    else:
        path.write_bytes(text.encode(errors="surrogateescape"))


LOCKS = {
    "a link": lambda folder: folder / "mine.json",
    "a link that leads nowhere": lambda folder: folder / "nothing",
    "a link to itself": lambda folder: folder / "run/in_use.json",
    "a pipe": lambda folder: None,
    "brackets": lambda folder: "[" * 100_000,
    "a list": lambda folder: "[1]",
    "no text": lambda folder: "\udcff",
    "a path as the process": lambda folder: json.dumps({**HOLDER, "process": "../tmp"}),
    "a list as the host": lambda folder: json.dumps({**HOLDER, "host": ["x"]}),
    "spaces": lambda folder: " " * 2**20,
}


@pytest.mark.parametrize("kind", LOCKS)
def test_locks_that_are_made_up(tmp_path, monkeypatch, kind):
    """None is followed, waited for or removed."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    mine = json.dumps({**HOLDER, "host": os.uname().nodename, "began": None})
    (tmp_path / "mine.json").write_text(mine)
    path = tmp_path / "run/in_use.json"
    put(path, LOCKS[kind](tmp_path))
    with pytest.raises(InputError, match=r"in_use\.json: this is no lock of a run; delete it\."), lock(path.parent):
        pass
    assert path.lstat()
    assert (tmp_path / "mine.json").read_text() == mine
    assert not (tmp_path / "nothing").exists()


def test_a_folder_in_place_of_a_lock(tmp_path):
    (tmp_path / "in_use.json").mkdir()
    with pytest.raises(InputError, match="this is no lock of a run; delete it"), lock(tmp_path):
        pass


RECORDS = {
    "brackets": ("[" * 100_000, "nests too deep"),
    "a list": ("[1]", "holds no values by name"),
    "no JSON": ("{", "is no JSON"),
    "many digits": (f'{{"a": {"1" * 5000}}}', "is no JSON"),
    "no text": ("\udcff", "is no text"),
    "a pipe": (None, "is no file"),
}
SETTINGS = {
    "aliases that hold one another": (DOUBLED, "has more than 100,000 values"),
    "an alias that holds itself": ("a: &a {b: *a}", "nests more than 50 levels deep"),
    "brackets": ("a: " + "[" * 5000 + "]" * 5000, "nests too deep"),
    "a list": ("[1, 2]", "holds no options by name"),
    "no YAML": ("a: [1", "is no YAML"),
    "a type that does not fit": ('a: !!int ""', "is no YAML"),
    "no text": ("\udcff", "is no text"),
    "a pipe": (None, "is no file"),
}
COMMAND = {"task": {"_target_": "experiments.sample.sample"}, "trainer": {"max_steps": 1}}


@pytest.mark.parametrize("kind", RECORDS)
def test_results_that_are_made_up(tmp_path, kind):
    """Each reader of a JSON file in a received folder says what is wrong with it."""
    text, sentence = RECORDS[kind]
    output = tmp_path / "run"
    put(output / "results.json", text)
    put(output / "config.yaml", "{}")
    put(output / "job.json", text)
    put(output / "unfinished/work.json", text)
    record = output / "job.json"
    processes = SimpleNamespace(on_first=lambda work: work())
    for read in (
        lambda: read_record(output / "results.json"),
        lambda: finished_results(output, COMMAND, 1, {}),
        lambda: refuse_other_jobs(record, [], None),
        lambda: refuse_other_weights([record], None),
        lambda: best_jobs(tmp_path, ["fid"], ["minimize"]),
        lambda: Unfinished(str(output), {}, processes),
    ):
        with pytest.raises(InputError, match=sentence):
            read()


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_are_made_up(tmp_path, kind):
    text, sentence = SETTINGS[kind]
    put(tmp_path / "config.yaml", text)
    put(tmp_path / "results.json", '{"steps": 1}')
    with pytest.raises(InputError, match=sentence):
        read_settings(tmp_path / "config.yaml")
    with pytest.raises(InputError, match=sentence):
        finished_results(tmp_path, COMMAND, 1, {})


@pytest.mark.parametrize(("name", "text"), [("config.yaml", DOUBLED), ("results.json", "[]"), ("config.yaml", None)])
def test_a_command_in_a_received_folder(command, tmp_path, name, text):
    files = {"config.yaml": "{}", "results.json": "{}", name: text}
    for file, content in files.items():
        put(tmp_path / file, content)
    outcome = command("experiment=debug", "task=latency", f"output={tmp_path}")
    assert outcome.status == 1
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert f"{tmp_path / name}" in outcome.err


def test_records_that_lack_something(tmp_path):
    put(tmp_path / "job.json", '{"overrides": [1]}')
    with pytest.raises(InputError, match=r"job\.json does not say the overrides of a job"):
        refuse_other_jobs(tmp_path / "job.json", [], None)
    put(tmp_path / "results.json", '{"fid": "low"}')
    with pytest.raises(InputError, match="objective=fid: the results have no such number"):
        best_jobs(tmp_path.parent, ["fid"], ["minimize"])
    processes = SimpleNamespace(on_first=lambda work: work())
    unfinished = Unfinished(str(tmp_path / "output"), {}, processes)
    put(unfinished.folder / "x.json", '{"result": {"a": 1}, "files": []}')
    with pytest.raises(InputError, match=r"x\.json holds no scores"):
        unfinished.recall("x")
    with pytest.raises(InputError, match=r"^x: shard"):
        check_description({"shard": 1, "skipped": []}, ShardRecord, "x:")


def test_a_large_file(tmp_path):
    with (tmp_path / "results.json").open("wb") as file:
        file.truncate(MAX_TEXT + 1)
    with pytest.raises(InputError, match=r"results\.json has more than 268,435,456 bytes"):
        read_text(tmp_path / "results.json")


def test_texts_of_files_do_not_steer_the_terminal(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "step_1.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x\x1b[31m/data.pkl", b"x")
    (tmp_path / "step_\x1b[32m.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="none of its checkpoints can be read"):
        resume_point(tmp_path, {}, None, None)
    settings = {"module": {"scheduler": {}}, "trainer": {"max_steps": "\x1b[38m"}}
    content = {"global_step": "\x1b[33m", "world_size": "\x1b[34m", "settings": settings}
    announce(tmp_path / "\x1b[35m.ckpt", content, 1, {"module": {}, "trainer": {}})
    print_scores({}, ["a note \x1b[36m"], ["image\x1b[37m.png"])
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    for color in range(31, 39):
        assert f"\\x1b[{color}m" in printed
