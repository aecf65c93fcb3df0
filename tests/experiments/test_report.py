"""The report of a study says what its jobs' results say."""

import json
import shutil
from functools import partial

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.report import plot_losses, plot_over, plot_over_settings
from experiments.reporting.study import Study, markdown_table, natural, read_scalars, settings_of


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
    assert "6 jobs: 1 failed, 1 not finished." in text
    assert "± is the sample standard deviation over seeds." in text
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
    assert {path.name for path in folder.iterdir()} == {  # and no logger's folder
        "report.md", "report.csv", "results.json", "panels.png", "fid_over_reuse_prob.png", "fid_over_flops.png",
        "losses.png",
    }  # fmt: skip
    assert len(results["groups"]) == 3
    assert len(results["runs"]) == 6  # with a file for scalars, which for two of them is empty


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
        "encoder depth 4, decoder depth 2, variant default", "encoder depth 9, decoder depth 1, variant nat",
    ]  # fmt: skip


def test_settings_are_read_as_hydra_reads_them():
    found = settings_of(
        ["a.b=1", "+c=true", "schedule@sampler.mask_schedule=cosine", "x={y:0.5,z:w}", "n=null", "lr=1e-4", "q='a b'"]
    )
    assert found == {
        "a.b": 1, "c": True, "sampler.mask_schedule": "cosine", "x.y": 0.5, "x.z": "w", "n": "null", "lr": 1e-4,
        "q": "a b",
    }  # fmt: skip


def test_settings_with_the_same_last_name_stay_two(tmp_path):
    for number, (net, tokenizer) in enumerate([(1, 1), (1, 2), (2, 1)]):
        job(tmp_path, number + 2, [f"module.net.width={net}", f"tokenizer.width={tokenizer}"], fid=1.0 + number)
    study = Study(tmp_path)
    assert study.varied == ["module.net.width", "tokenizer.width"]
    assert list(study.groups["fid"]) == [1.0, 2.0, 3.0]


def test_equal_numbers_are_one_value_and_close_ones_are_two(tmp_path):
    for number, value in enumerate(["0.5", "0.50", "0.50000001"]):
        job(tmp_path, number + 2, [f"sampler.guidance_scale={value}"], fid=1.0 + number)
    assert list(Study(tmp_path).groups["seeds"]) == [2, 1]


def test_a_setting_that_is_a_result_too(tmp_path):
    for images in (500, 1000):
        job(tmp_path, images, [f"metrics.evaluation.num_images={images}"], fid=1.0, num_images=images, seed=0)
    assert list(Study(tmp_path).groups["num_images"]) == [500, 1000]


def test_order_without_numbers_and_of_several_multiruns(tmp_path):
    """By the multirun's folder, then by the job's number, then by name: 2 before 10."""
    for place in ("b10/0", "b10/1", "b2/scale=2.5", "b2/scale=10"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        content = {"overrides": ["variant=nat"], "error": None}
        if place.startswith("b10"):
            content["number"] = 1 - int(folder.name)  # against the names
        (folder / "job.json").write_text(json.dumps(content))
    assert list(Study(tmp_path).jobs["job"]) == ["b2/scale=2.5", "b2/scale=10", "b10/1", "b10/0"]
    assert set(Study(tmp_path).jobs["error"]) == {"not finished"}
    assert sorted(["x10", "x9", "y", "10", "9"], key=natural) == ["9", "10", "x9", "x10", "y"]


def test_costs_and_scores_may_be_missing(tmp_path):
    job(tmp_path, 2, ["variant=nat"], fid=1.0, cost=None)
    table = markdown_table(Study(tmp_path))
    assert table.splitlines()[0] == "| seeds | FID | Inception Score |"
    (tmp_path / "2" / "results.json").write_text('{"fid": 2.0, "cost": {"gflop_per_image": 1234.5}}')
    assert markdown_table(Study(tmp_path)).splitlines()[::2] == [
        "| seeds | FID | GFLOP/image |", "| 1 | **2.000** | 1,234 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([{"lr": lr} for lr in ("1e-3", "1e-4")], ("lr", None)),
        ([{"a": a, "b": b} for a in ("x", "y") for b in (1, 2, 3)], ("b", "a")),
        ([{"a": a} for a in ("x", 1)], None),  # not all are numbers
        ([{"a": a, "b": 3 - a} for a in (0, 1, 2)], None),  # changed together: a line for each point
        ([{"a": a, "b": b, "c": c} for a in (0, 1) for b in (0, 1) for c in (0, 1)], None),
    ],
)
def test_what_is_over_an_axis(tmp_path, settings, expected):
    for number, chosen in enumerate(settings):
        job(tmp_path, number + 2, [f"x.{name}={value}" for name, value in chosen.items()], fid=1.0)
    assert Study(tmp_path).axis_and_lines(most=10) == expected


def drawn(monkeypatch, draw, study, path):
    """The figure that was saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    draw(study, path)
    return figures[0]


def test_numbers_are_drawn_as_numbers(monkeypatch, study):
    axes = drawn(monkeypatch, plot_over_settings, Study(study), study).axes[0]
    (container,) = axes.containers
    points = container.lines[0].get_xydata()
    assert points[1:].tolist() == [[0.5, 3.0], [10.0, 1.25]]  # ordered, though the jobs were not
    assert (points[0, 0], pd.isna(points[0, 1])) == (0, True)  # the one that failed
    ends = [path.vertices[:, 1] for path in container.lines[2][0].get_paths() if len(path.vertices)]
    assert [list(end) for end in ends if end[0] == end[0]] == [
        pytest.approx([3 - 2**0.5, 3 + 2**0.5]), pytest.approx([1.25 - 0.125**0.5, 1.25 + 0.125**0.5]),
    ]  # fmt: skip


def test_of_many_groups_the_best_have_names(monkeypatch, tmp_path):
    """In the picture over operations: those that no other beats, here the first, the fourth and the last."""
    fids = [5.0, 6.0, 7.0, 2.0, *[3.0 + n / 10 for n in range(10)], 1.0]
    for number, fid in enumerate(fids):
        job(tmp_path, number + 2, [f"a={number}", f"b={number**2}", f"c={number % 3}"], fid=fid)
    figure = drawn(monkeypatch, partial(plot_over, "gflop_per_image"), Study(tmp_path), tmp_path)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "other settings", "a 0, b 0, c 0", "a 3, b 9, c 0", "a 14, b 196, c 2",
    ]  # fmt: skip


def test_the_front_of_two_scores(monkeypatch, tmp_path):
    """A high Inception Score is better: 9 has no match, 8 has the lower FID, 7 is worse than 8 in both."""
    for number, (fid, score) in enumerate([(3.0, 9.0), (2.0, 8.0), (2.5, 7.0), *[(4.0 + n, 6.0) for n in range(10)]]):
        job(tmp_path, number, [f"a={number}"], fid=fid, inception_score=score)
    figure = drawn(monkeypatch, partial(plot_over, "inception_score"), Study(tmp_path), tmp_path)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["other settings", "a 1", "a 0"]


def test_curves_are_means_over_seeds_with_a_band(monkeypatch, tmp_path):
    for seed, fid in enumerate((1.0, 3.0)):
        job(tmp_path, seed, [f"seed={seed}"], fid=fid, steps=3)
    axes = drawn(monkeypatch, plot_losses, Study(tmp_path), tmp_path).axes[2]
    assert axes.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 2.0], [3, 2.0]]
    assert set(axes.collections[0].get_paths()[0].vertices[:, 1]) == {1.0, 3.0}


def logged(run, *starts):
    for version, text in enumerate(starts):
        folder = run / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)


def test_a_start_replaces_what_was_lost_and_adds_to_the_step_where_it_goes_on(tmp_path):
    logged(tmp_path, "step,train/loss,val/fid\n1,3,\n2,2,0.9\n3,9,\n", "step,final/fid,train/loss\n2,0.8,\n4,,1\n")
    found = read_scalars(tmp_path)
    assert found["train/loss"].dropna().to_dict() == {1: 3, 2: 2, 4: 1}
    assert (found["val/fid"][2], found["final/fid"][2]) == (0.9, 0.8)


@pytest.mark.parametrize("content", ["", "step,train/loss\n", "step,train/loss\n,5\n"])
def test_a_start_without_scalars_takes_none_away(tmp_path, content):
    logged(tmp_path, "step,train/loss\n1,3\n2,2\n", content)
    assert read_scalars(tmp_path)["train/loss"].to_dict() == {1: 3, 2: 2}


def test_jobs_without_metrics(command, tmp_path):
    for seed in range(2):
        for images, prob in ((0, "0.5"), (1, "default")):
            overrides = [f"seed={seed}"] + ([f"p={prob}"] if images == 0 else [])
            job(tmp_path / "study", 2 + 2 * seed + images, overrides, fid=1.0 + images)
    shutil.rmtree(tmp_path / "study" / "2" / "metrics")
    outcome = command("task=report", f"runs={tmp_path}/study", f"output={tmp_path}/report")
    assert outcome.status == 0
    assert "panels" not in outcome.results
    assert not (tmp_path / "report" / "panels.png").exists()
    assert not (tmp_path / "report" / "losses.png").exists()
    assert (tmp_path / "report" / "fid_over_p.png").exists()


def test_what_is_no_study(command, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "job.json").write_text("{")
    outcome = command("task=report", f"runs={tmp_path}", f"output={tmp_path}/report")
    assert (outcome.status, "job.json: expected what a multirun writes" in outcome.err) == (1, True)


def test_wandb_gets_the_table(command, study, tmp_path):
    options = ["logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/report"]
    assert command("task=report", f"runs={study}", *options).status == 0
    (path,) = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    assert [row[table["columns"].index("fid")] for row in table["data"]] == [3.0, 1.25, None]
    assert [row[table["columns"].index("reuse_prob")] for row in table["data"]] == [0.5, 10, 0]
    pictures = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/images/*.png")
    assert len(list(pictures)) == 3


def test_wandb_gets_a_column_of_numbers_and_words(command, tmp_path):
    job(tmp_path / "study", 2, ["p=0.5"], fid=1.0)
    job(tmp_path / "study", 3, [], fid=2.0)
    options = ["logger=wandb", "logger.wandb.offline=true", f"output={tmp_path}/report"]
    assert command("task=report", f"runs={tmp_path}/study", *options).status == 0
    (path,) = (tmp_path / "report" / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(path.read_text())
    assert [row[table["columns"].index("p")] for row in table["data"]] == ["0.5", "default"]
