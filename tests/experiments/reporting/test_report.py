"""The report of a study says what its jobs' results say."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from PIL import Image

from enat.errors import InputError
from experiments.report import VALIDATION, report
from experiments.reporting.figures import plot_panels
from experiments.reporting.study import read_study


def test_scores_of_a_jobs_checkpoint_and_files_of_others_change_no_study(study_folder):
    before = read_study(study_folder).groups
    evaluated = next(study_folder.glob("*/job.json")).parent / "evaluate"
    evaluated.mkdir()
    (evaluated / "results.json").write_text('{"fid": 1.0}')
    for number, text in enumerate(['{"a": 1,', "5"]):
        (study_folder / f"other{number}").mkdir()
        (study_folder / f"other{number}" / "results.json").write_text(text)
    pd.testing.assert_frame_equal(read_study(study_folder).groups, before)


def test_no_runs(command, tmp_path):
    for runs in ("null", "[]"):
        refused = command("task=report", f"runs={runs}", f"output={tmp_path}")
        assert "runs: expected runs=DIR, the folder of a run or of several, or runs=[DIR,DIR]." in refused.err


def test_texts_of_jobs_steer_neither_a_browser_nor_a_terminal(command, make_job, tmp_path):
    folder = tmp_path / "study"
    for number, value in enumerate(["<script>alert(1)</script>", "\x1b[31m"]):
        make_job(folder, number, [f"sampler.mask_schedule='{value}'"], 1.0 + number, None, steps=2)
        make_job(folder, number + 2, [f"sampler.mask_schedule='{value}'", "seed=1"], None, f"wrong: {value}")
    outcome = command("task=report", f"runs={folder}", f"output={tmp_path}/report")
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "report/report.md").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\\x1b[31m" in text
    for place in (text, outcome.out.rpartition("Results:")[0]):
        assert "\x1b" not in place
    assert "<script>" not in text


def test_task(command, study_folder, tmp_path):
    outcome = command("task=report", f"runs={study_folder}", f"output={tmp_path}/report")
    results, folder = outcome.results, tmp_path / "report"
    assert (outcome.status, results["failed"]) == (0, 2)
    text = (folder / "report.md").read_text()
    assert "6 jobs: 1 failed, 1 not finished." in text
    assert "± is the sample standard deviation over seeds." in text
    assert VALIDATION in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == (
        "| reuse prob | seeds | FID | Inception Score | GFLOP/image | images/s | parameters | "
        "FID difference (95 % interval) | errors |"
    )
    assert rows[2:] == [
        "| 0.5 | 2 | 3.000 ± 1.414 | 9.000 ± 0.000 | 1 | 20 | 1.23 M |  |  |",
        "| 10 | 2 | **1.250 ± 0.354** | 9.000 ± 0.000 | 3 | 20 | 1.23 M | -1.750 (-11.872 to 8.372) |  |",
        "| 0 | 0 |  |  |  |  |  |  | 1 x module.masking: something \\| was wrong.; 1 x not finished |",
    ]
    sentences = [
        "Compared with row 1 (reuse prob 0.5), by Welch's 95 % interval over seeds:",
        "- reuse prob 10: FID not told apart (difference -1.750, 95 % interval -11.872 to 8.372); "
        "Inception Score: difference 0.000, no interval can be given.",
        "- reuse prob 0: FID can't be compared (there is no score); "
        "Inception Score can't be compared (there is no score).",
    ]
    printed = outcome.out.splitlines()
    assert all(sentence in text.splitlines() and sentence in printed for sentence in sentences)
    assert any(line.split()[:5] == ["10", "2", "1.250", "±", "0.354"] for line in printed)
    table = pd.read_csv(folder / "report.csv")
    assert list(table["fid"].dropna()) == [2.0, 4.0, 1.0, 1.5]
    assert list(table["seed"]) == [0, 1] * 3
    assert list(table["error"].dropna()) == ["module.masking: something | was wrong.", "not finished"]
    groups = pd.read_csv(folder / "groups.csv")
    assert list(groups["fid"].dropna()) == [3.0, 1.25]
    assert groups.loc[1, ["fid_difference", "fid_low", "fid_high"]].tolist() == pytest.approx(
        [-1.75, -11.872, 8.372], abs=1e-3
    )
    for name in ("fid_over_reuse_prob.png", "fid_over_flops.png", "losses.png", "panels.png"):
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 30, name
    assert [path.rpartition("/")[2] for path in results["pictures"]] == [
        "fid_over_reuse_prob.png", "fid_over_flops.png", "losses.png",
    ]  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {  # and no logger's folder
        "report.md", "report.csv", "groups.csv", "results.json", "config.yaml", "panels.png", "losses.png",
        "fid_over_reuse_prob.png", "fid_over_flops.png",
    }  # fmt: skip
    assert len(results["groups"]) == 3
    assert len(results["runs"]) == 6  # with a file for scalars, which for two of them is empty


def test_curves_without_scores_have_no_note_on_them(command, tmp_path, make_job):
    make_job(tmp_path / "run", 1, ["seed=0"], fid=1.0, steps=2)
    metrics = tmp_path / "run/one/metrics/version_0/metrics.csv"
    metrics.write_text("step,train/loss\n1,2.0\n2,1.0")
    outcome = command("task=report", f"runs={tmp_path}/run", f"output={tmp_path}/report")
    assert "panels" in outcome.results
    assert VALIDATION not in (tmp_path / "report" / "report.md").read_text()


def test_jobs_without_metrics(command, tmp_path, make_job):
    for seed in range(2):
        for images, prob in ((0, "0.5"), (1, "default")):
            overrides = [f"seed={seed}"] + ([f"p={prob}"] if images == 0 else [])
            make_job(tmp_path / "study", 2 + 2 * seed + images, overrides, fid=1.0 + images)
    shutil.rmtree(tmp_path / "study" / "2" / "metrics")
    outcome = command("task=report", f"runs={tmp_path}/study", f"output={tmp_path}/report")
    assert outcome.status == 0
    assert "panels" not in outcome.results
    assert not (tmp_path / "report" / "panels.png").exists()
    assert not (tmp_path / "report" / "losses.png").exists()
    assert (tmp_path / "report" / "fid_over_p.png").exists()


@pytest.mark.slow
def test_another_row_to_compare_with(command, study_folder, tmp_path):
    options = ["task=report", f"runs={study_folder}", f"output={tmp_path}/report"]
    assert "Compared with row 2 (reuse prob 10)" in command(*options, "baseline=2").out
    refused = command(*options, "baseline=4")
    assert (refused.status, "baseline=4: expected the number of a row of the table, 1 to 3." in refused.err) == (
        1,
        True,
    )


def test_what_is_no_study(command, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "job.json").write_text("{")
    outcome = command("task=report", f"runs={tmp_path}", f"output={tmp_path}/report")
    assert (outcome.status, "job.json: expected what a multirun writes" in outcome.err) == (1, True)


@pytest.mark.slow
def test_wandb_gets_the_table(command, study_folder, tmp_path):
    options = ["logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/report"]
    assert command("task=report", f"runs={study_folder}", *options).status == 0
    (path,) = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    assert [row[table["columns"].index("fid")] for row in table["data"]] == [3.0, 1.25, None]
    assert [row[table["columns"].index("reuse_prob")] for row in table["data"]] == [0.5, 10, 0]
    pictures = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/images/*.png")
    assert len(list(pictures)) == 3


def test_wandb_gets_a_column_of_numbers_and_words(command, tmp_path, make_job):
    make_job(tmp_path / "study", 2, ["p=0.5"], fid=1.0)
    make_job(tmp_path / "study", 3, [], fid=2.0)
    options = ["logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/report"]
    assert command("task=report", f"runs={tmp_path}/study", *options).status == 0
    (path,) = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    assert [row[table["columns"].index("p")] for row in table["data"]] == ["0.5", "default"]


def test_any_runs_are_compared(command, tmp_path):
    """Each is a row, with the options in which they differ; a run without scores says why."""
    for name, width, seed, results in (
        ("a", 32, 0, {"fid": 3.0}),
        ("b", 64, 1, {"fid": 2.0}),
        ("c", 64, 2, {"steps": 9}),
        ("d", 32, 3, None),
    ):
        folder = tmp_path / name
        (folder / "metrics" / "version_0").mkdir(parents=True)
        (folder / "metrics" / "version_0" / "metrics.csv").write_text("step,train/loss\n1,2.5\n2,2.25\n")
        settings = {"name": name, "seed": seed, "module": {"net": {"width": width}, "seed": "${seed}"}}
        (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "output": f"outputs/{name}"}))
        if results is not None:
            (folder / "results.json").write_text(json.dumps(results))
    runs = ",".join(f"{tmp_path}/{name}" for name in "abcd")
    outcome = command("task=report", f"runs=[{runs}]", f"output={tmp_path}/report")
    jobs = pd.read_csv(tmp_path / "report" / "report.csv")
    assert list(jobs["job"]) == ["a", "b", "c", "d"]
    assert {"width", "seed", "fid", "error"} <= set(jobs.columns)
    assert not any("module" in column for column in jobs.columns)  # `module.seed` is `seed`
    assert list(jobs["error"].fillna("")) == ["", "", "", "not finished"]
    rows = [row.split() for row in outcome.out.splitlines() if row.strip().startswith(("a ", "b ", "c ", "d "))]
    assert [row[:3] for row in rows] == [["a", "32", "1"], ["b", "64", "1"], ["c", "64", "1"], ["d", "32", "0"]]
    assert "1 jobs" not in outcome.out
    assert "No scores were computed (metrics=none) in c." in outcome.out
    assert "1 x not finished" in outcome.out
    alone = command("task=report", f"runs={tmp_path}/a", f"output={tmp_path}/report_of_a")
    assert alone.results["groups"][0]["fid"] == 3.0
    missing = command("task=report", f"runs=[{tmp_path}/a,{tmp_path}/report]", f"output={tmp_path}/x")
    assert f"runs={tmp_path}/report: there is no run in it" in missing.err


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    table = pd.DataFrame({"train/loss": [2.5, 2.25]}, index=pd.Index([1, 2], name="step"))
    plot_panels({"x$^$": table, "cash_$1_$": table}, tmp_path / "panels.png")
    assert (tmp_path / "panels.png").stat().st_size > 1000


def test_scores_that_can_not_be_compared_have_a_note(tmp_path, monkeypatch):
    """The folder that all runs are below is the current one, which has a name too."""
    monkeypatch.chdir(tmp_path)
    for name, protocol, num_images in (("a", "adm", 50_000), ("b", "lite0", 1_000)):
        (tmp_path / name).mkdir()
        content = {"fid": 2.0, "protocol": protocol, "num_images": num_images}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    (tmp_path / "report").mkdir()
    report(["a", str(tmp_path / "b")], None, 1, {}, "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith(f"# {tmp_path.name}\n")
    assert "The scores are of several protocols (adm, lite0): they can't be compared." in text
    assert "The scores are of different numbers of images (1,000 to 50,000): FID is higher with fewer images." in text
    report("a", None, 1, {}, "report")
    assert (tmp_path / "report" / "report.md").read_text().startswith(f"# {tmp_path.name}\n")
    with pytest.raises(InputError, match="table=sampler_study: expected a table of the paper: fig_2, table_1"):
        report("a", "sampler_study", 1, {}, "report")
