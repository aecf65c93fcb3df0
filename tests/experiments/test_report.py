"""The report of a study says what its jobs' results say."""

import json

import pandas as pd
import pytest
from PIL import Image

from experiments.study import Study, settings_of


def job(folder, number, overrides, fid=None, error=None, steps=0, **results):
    """A job's folder as a multirun leaves it."""
    folder = folder / str(number).replace("1", "one") if number == 1 else folder / str(number)  # names tell no order
    (folder / "metrics" / "version_0").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"number": number, "overrides": overrides, "error": error}))
    if fid is not None:
        cost = {"parameters": 1_234_567, "gflop_per_image": 0.5 + number, "images_per_second": 20.0}
        found = {"fid": fid, "inception_score": 9.0, "inception_score_std": 0.3, "cost": cost, **results}
        (folder / "results.json").write_text(json.dumps(found))
    if steps:
        rows = [f"{step},{2 - step / 10},{3 - step / 10},{fid or 9}" for step in range(1, steps + 1)]
        header = "step,train/loss,val/loss,val/fid"
        (folder / "metrics" / "version_0" / "metrics.csv").write_text("\n".join([header, *rows]))
    else:
        (folder / "metrics" / "version_0" / "metrics.csv").write_text("")


@pytest.fixture
def study(tmp_path):
    """Two probabilities with two seeds each; of another one, a job failed and one was stopped."""
    folder, number = tmp_path / "study", 0
    for prob, fids in (("0.5", (2.0, 4.0)), ("10", (1.0, 1.5)), ("0", (None, None))):
        for seed, fid in enumerate(fids):
            error = "module.masking: something | was wrong." if fid is None and seed == 0 else None
            overrides = [f"seed={seed}", f"module.masking.reuse_prob={prob}", "experiment=digits", "+sweep=x"]
            job(folder, number, overrides, fid, error, steps=5 if fid else 0)
            number += 1
    return folder


def test_groups(study):
    groups = Study(study).groups
    assert Study(study).varied == ["reuse_prob"]
    assert list(groups["reuse_prob"]) == [0.5, 10, 0]  # in the order of the jobs
    assert list(groups["seeds"]) == [2, 2, 0]
    assert list(groups["fid"])[:2] == [3.0, 1.25]
    assert list(groups["fid_std"])[:2] == pytest.approx([2**0.5, 0.125**0.5])
    assert pd.isna(groups["fid"][2])
    assert list(groups["gflop_per_image"])[:2] == [1.0, 3.0]
    assert groups["errors"][2] == "1 x module.masking: something | was wrong.; 1 x not finished"


def test_task(command, study, tmp_path):
    outcome = command("task=report", f"runs={study}", f"output={tmp_path}/report")
    results, folder = outcome.results, tmp_path / "report"
    assert (outcome.status, results["failed"]) == (0, 2)
    text = (folder / "report.md").read_text()
    assert "6 jobs, 2 of them without results." in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ("| reuse prob | seeds | FID | Inception Score | GFLOP/image | images/s | parameters | errors |")
    assert rows[2:4] == [
        "| 0.5 | 2 | 3.000 ± 1.414 | 9.000 ± 0.000 | 1 | 20 | 1.23 M |  |",
        "| 10 | 2 | **1.250 ± 0.354** | 9.000 ± 0.000 | 3 | 20 | 1.23 M |  |",
    ]
    assert rows[4] == "| 0 | 0 |  |  |  |  |  | 1 x module.masking: something \\| was wrong.; 1 x not finished |"
    table = pd.read_csv(folder / "report.csv")
    assert list(table["fid"].dropna()) == [2.0, 4.0, 1.0, 1.5]
    assert list(table["seed"]) == [0, 1] * 3
    assert list(table["error"].dropna()) == ["module.masking: something | was wrong.", "not finished"]
    for name in ("fid_over_reuse_prob.png", "fid_over_flops.png", "losses.png", "panels.png"):
        with Image.open(folder / name) as picture:
            assert len(picture.convert("RGB").getcolors(1_000_000)) > 30, name
    assert [path.rpartition("/")[2] for path in results["pictures"]] == [
        "fid_over_reuse_prob.png", "fid_over_flops.png", "losses.png",
    ]  # fmt: skip
    assert not list(tmp_path.glob("**/wandb"))


def test_seeds_alone_are_one_row(tmp_path):
    for seed in range(3):
        job(tmp_path, seed, [f"seed={seed}", "variant=nat"], fid=float(seed))
    groups = Study(tmp_path).groups
    assert (len(groups), groups["seeds"][0], groups["fid"][0], groups["fid_std"][0]) == (1, 3, 1.0, 1.0)


def test_settings_that_go_together_and_defaults(tmp_path):
    job(tmp_path, 0, ["module.net={encoder_depth:4,decoder_depth:2}"], fid=1.0)
    job(tmp_path, 2, ["module.net={encoder_depth:9,decoder_depth:1}", "variant=nat"], fid=2.0)
    study = Study(tmp_path)
    assert study.varied == ["encoder_depth", "decoder_depth", "variant"]
    assert list(study.groups["label"]) == [
        "encoder depth 4, decoder depth 2, default", "encoder depth 9, decoder depth 1, nat",
    ]  # fmt: skip


def test_settings_are_read_as_yaml_reads_them():
    found = settings_of(["a.b=1", "+c=true", "schedule@sampler.mask_schedule=cosine", "x={y:0.5,z:w}", "n=null"])
    assert found == {"b": 1, "c": True, "mask_schedule": "cosine", "y": 0.5, "z": "w", "n": "None"}


def test_what_is_no_study(command, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "job.json").write_text("{")
    outcome = command("task=report", f"runs={tmp_path}", f"output={tmp_path}/report")
    assert (outcome.status, "job.json: expected what a multirun writes" in outcome.err) == (1, True)


def test_wandb_gets_the_table(command, study, tmp_path):
    options = ["logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/report"]
    assert command("task=report", f"runs={study}", *options).status == 0
    assert list((tmp_path / "report" / "wandb").glob("offline-run-*/files/media/table/*"))
