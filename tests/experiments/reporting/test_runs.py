"""What is read of runs is what they wrote, whatever stopped them."""

import json
import math
from pathlib import Path

import pytest

from experiments.reporting.runs import find_runs, natural_sort_key, read_job, read_options, read_run, read_scalars


def test_options_are_read_as_hydra_reads_them():
    overrides = ["a.b=1", "+c=true", "schedule@sampler.mask_schedule=cosine", "x={y:0.5,z:w}", "n=null", "lr=1e-4"]
    assert read_options([*overrides, "q='a b'", "s=[1,2]"]) == {
        "a.b": 1, "c": "true", "sampler.mask_schedule": "cosine", "x.y": 0.5, "x.z": "w", "n": "null", "lr": 1e-4,
        "q": "a b", "s": "[1, 2]",
    }  # fmt: skip


def test_numbers_in_names_are_sorted_as_numbers():
    assert sorted(["x10", "x9", "y", "10", "9"], key=natural_sort_key) == ["9", "10", "x9", "x10", "y"]


@pytest.mark.parametrize(
    ("results", "error"),
    [
        (None, "not finished"),
        ({"fid": 1.0}, None),
        ({"fid": math.nan, "inception_score": 2.0}, "FID is not a number"),
        ({"fid": 1.0, "inception_score": math.inf}, "Inception Score is infinite"),
    ],
)
def test_a_job_without_usable_scores_has_an_error(tmp_path, results, error):
    (tmp_path / "job.json").write_text('{"overrides": ["a=1"], "error": null}')
    if results:
        (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_job(tmp_path / "job.json").error == error
    assert read_run(tmp_path).error == error


def test_scores_of_further_protocols_keep_their_names(tmp_path):
    (tmp_path / "job.json").write_text('{"overrides": [], "error": null}')
    scores = {"enat": {"fid": 1.0}, "adm": {"fid": 2.0}}
    (tmp_path / "results.json").write_text(json.dumps({"fid": 1.0, "protocol": "enat", "scores": scores, "ok": True}))
    job = read_job(tmp_path / "job.json")
    assert (job.numbers, job.protocol) == ({"fid": 1.0, "fid (adm)": 2.0}, "enat")


def logged(run, *files):
    for version, text in enumerate(files):
        folder = run / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)


def test_steps_done_again_count_as_the_last_time_and_scores_join_the_step_where_the_run_went_on(tmp_path):
    logged(tmp_path, "step,train/loss,val/fid\n1,3,\n2,2,0.9\n3,9,\n", "step,final/fid,train/loss\n2,0.8,\n4,,1\n")
    scalars = read_scalars(tmp_path)
    assert scalars["train/loss"].dropna().to_dict() == {1: 3, 2: 2, 4: 1}
    assert (scalars["val/fid"][2], scalars["final/fid"][2]) == (0.9, 0.8)


@pytest.mark.parametrize("content", ["", "step,train/loss\n", "step,train/loss\n,5\n"])
def test_a_file_without_scalars_takes_none_away(tmp_path, content):
    logged(tmp_path, "step,train/loss\n1,3\n2,2\n", content)
    assert read_scalars(tmp_path)["train/loss"].to_dict() == {1: 3, 2: 2}


def test_runs_behind_links_are_found_once(tmp_path):
    """A folder of links to runs is a way to choose some; a link to a folder above leads nowhere new."""
    for name in ("a", "b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text('{"fid": 1}')
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for name in ("a", "b"):
        (chosen / name).symlink_to(tmp_path / "runs" / name)
    (chosen / "again").symlink_to(tmp_path / "runs" / "a")
    (chosen / "loop").symlink_to(chosen)
    found = find_runs(chosen)
    assert [run.resolve().name for run in found] == ["a", "b"]
    assert len(find_runs(tmp_path)) == 3


def test_a_folder_may_be_given_in_any_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text('{"fid": 1}')
    assert find_runs(Path("a"), Path("b")) == [Path("a"), Path("b")]
    assert find_runs(tmp_path / "a", Path("b"), Path("a/../a")) == [tmp_path / "a", tmp_path / "b"]


def test_runs_below_a_job_are_found_if_they_are_asked_for(tmp_path):
    """Their scores are not those of the study, but whoever names the folders wants them."""
    (tmp_path / "0" / "evaluate").mkdir(parents=True)
    (tmp_path / "0" / "job.json").write_text('{"overrides": [], "error": null}')
    (tmp_path / "0" / "evaluate" / "results.json").write_text('{"fid": 1}')
    assert find_runs(tmp_path) == [tmp_path / "0"]
    assert find_runs(tmp_path / "0" / "evaluate") == [tmp_path / "0" / "evaluate"]
