"""Folders of runs from others: pipes, and files without an end or of another kind."""

import os

import pytest

from enat.errors import InputError
from experiments.reporting.runs import find_runs, read_job, read_run, read_scalars

DOUBLED = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}}}" for i in range(1, 34))])
FILES = {
    "deep results": ("results.json", '{"fid": ' + "[" * 100_000, "nests too deep"),
    "a list of results": ("results.json", "[1]", "expected what a run writes"),
    "many digits": ("results.json", '{"fid": ' + "1" * 401 + "}", "fid has too many digits"),
    "doubled settings": ("config.yaml", DOUBLED, "has more than 100,000 values"),
    "settings in themselves": ("config.yaml", "a: &a {b: *a}", "nests more than 50 levels deep"),
    "deep settings": ("config.yaml", "a: " + "[" * 5000 + "]" * 5000, "deep"),
    "a list of settings": ("config.yaml", "[1, 2]", "config.yaml holds no options by name"),
    "a pipe of settings": ("config.yaml", None, "config.yaml is no file"),
    "a pipe of results": ("results.json", None, "results.json is no file"),
}


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    if text is None:
        os.mkfifo(folder / name)
    else:
        (folder / name).write_text(text)


@pytest.mark.parametrize("kind", FILES)
def test_files_of_runs(tmp_path, kind):
    name, text, sentence = FILES[kind]
    folder = tmp_path / "run"
    write(folder, name, text)
    with pytest.raises(InputError, match=sentence):
        read_run(folder)
    find_runs(tmp_path)
    (folder / "job.json").write_text('{"overrides": [], "error": null}')
    with pytest.raises(InputError, match="expected what a multirun writes"):
        read_job(folder / "job.json")


def test_huge_options(tmp_path):
    write(tmp_path, "config.yaml", f"a: {10**400}")
    assert read_run(tmp_path).options == {"a": str(10**400)}


def test_pipes_are_no_runs(tmp_path):
    for name in ("metrics/version_0/metrics.csv", "results.json", "job.json"):
        path = tmp_path / name.partition(".")[0] / name
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
    assert find_runs(tmp_path) == []
    assert len(read_scalars(tmp_path / "metrics")) == 0
