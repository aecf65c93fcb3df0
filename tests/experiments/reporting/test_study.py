"""A study groups jobs by what varies, whatever it is called."""

import json

import pandas as pd
import pytest

from experiments.reporting.plots import main_axis
from experiments.reporting.study import read_study
from experiments.reporting.tables import markdown_table, table_of


def test_groups(study_folder):
    study = read_study(study_folder)
    groups = study.groups
    assert study.varied == ["reuse_prob"]
    assert list(groups["reuse_prob"]) == [0.5, 10, 0]  # in the order of the jobs
    assert list(groups["seeds"]) == [2, 2, 0]
    assert list(groups["fid"])[:2] == [3.0, 1.25]
    assert list(groups["fid_std"])[:2] == pytest.approx([2**0.5, 0.125**0.5])
    assert pd.isna(groups["fid"][2])
    assert list(groups["gflop_per_image"])[:2] == [1.0, 3.0]
    assert groups["errors"][2] == "1 x module.masking: something | was wrong.; 1 x not finished"


def test_seeds_alone_are_one_row(tmp_path, make_job):
    for seed in range(3):
        make_job(tmp_path, seed, [f"seed={seed}", "variant=nat"], fid=float(seed))
    groups = read_study(tmp_path).groups
    assert (len(groups), groups["seeds"][0], groups["fid"][0], groups["fid_std"][0]) == (1, 3, 1.0, 1.0)


def test_options_that_go_together_and_defaults(tmp_path, make_job):
    make_job(tmp_path, 0, ["module.net={encoder_depth:4,decoder_depth:2}"], fid=1.0)
    make_job(tmp_path, 2, ["module.net={encoder_depth:9,decoder_depth:1}", "variant=nat"], fid=2.0)
    study = read_study(tmp_path)
    assert study.varied == ["encoder_depth", "decoder_depth", "variant"]
    assert list(study.groups["label"]) == [
        "encoder depth 4, decoder depth 2, variant default", "encoder depth 9, decoder depth 1, variant nat",
    ]  # fmt: skip


def test_options_with_the_same_last_name_stay_two(tmp_path, make_job):
    for number, (net, tokenizer) in enumerate([(1, 1), (1, 2), (2, 1)]):
        make_job(tmp_path, number + 2, [f"module.net.width={net}", f"tokenizer.width={tokenizer}"], fid=1.0 + number)
    study = read_study(tmp_path)
    assert study.varied == ["module.net.width", "tokenizer.width"]
    assert list(study.groups["fid"]) == [1.0, 2.0, 3.0]


def test_equal_numbers_are_one_value_and_close_ones_are_two(tmp_path, make_job):
    for number, value in enumerate(["0.5", "0.50", "0.50000001"]):
        make_job(tmp_path, number + 2, [f"sampler.guidance_scale={value}"], fid=1.0 + number)
    groups = read_study(tmp_path).groups
    assert list(groups["seeds"]) == [2, 1]
    assert list(groups["label"]) == ["guidance scale 0.5", "guidance scale 0.50000001"]


def test_an_integer_equals_a_float_and_true_is_not_1(tmp_path, make_job):
    for number, value in enumerate(["1", "1.0", "true"]):
        make_job(tmp_path, number + 2, [f"x.a={value}"], fid=1.0)
    assert list(read_study(tmp_path).groups["seeds"]) == [2, 1]


def test_an_option_that_is_a_result_too(tmp_path, make_job):
    for images in (500, 1000):
        make_job(tmp_path, images, [f"metrics.evaluation.num_images={images}"], fid=1.0, num_images=images, seed=0)
    assert list(read_study(tmp_path).groups["num_images"]) == [500, 1000]


@pytest.mark.parametrize("name", ["data.seed", "logger.wandb.group", "x.label", "x.job", "x.errors", "x.fid_std"])
def test_options_that_end_like_a_column_have_their_full_names(tmp_path, make_job, name):
    """The seeds of `data.seed` were those of `seed`, so that groups were of that."""
    for number in range(4):
        options = [f"{name}={number // 2}", f"seed={number % 2}"]
        make_job(tmp_path, number + 2, options, fid=1.0 + number // 2)
    study = read_study(tmp_path)
    assert study.varied == [name]
    assert list(study.groups["fid"]) == [1.0, 2.0]
    assert list(study.groups["seeds"]) == [2, 2]


def test_a_seed_counts_once(tmp_path, make_job):
    """The same study in two folders gives no further seeds, and no smaller intervals; of jobs that failed, neither."""
    for folder in ("a", "b"):
        for seed in range(2):
            failed = None if folder == "b" or seed == 0 else "x"
            make_job(tmp_path / folder, seed + 2, [f"seed={seed}", "x=1"], fid=1.0 + seed, error=failed)
    study = read_study(tmp_path / "a", tmp_path / "b")
    assert list(study.jobs["job"]) == ["a/2", "b/3"]
    assert study.repeated == ["a/3", "b/2"]
    assert list(study.groups["seeds"]) == [2]


def test_a_seed_that_is_not_on_the_command_line_counts_once(tmp_path, make_job):
    for folder in ("a", "b"):
        make_job(tmp_path / folder, 2, ["x=1"], fid=1.0)
        (tmp_path / folder / "2" / "config.yaml").write_text("seed: 3")
    assert read_study(tmp_path).repeated == ["b/2"]


def test_order_without_numbers_and_of_several_multiruns(tmp_path):
    """By the multirun's folder, then by the job's number, then by name: 2 before 10."""
    for place in ("b10/0", "b10/1", "b2/scale=2.5", "b2/scale=10"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        content = {"overrides": ["variant=nat"], "error": None}
        if place.startswith("b10"):
            content["number"] = 1 - int(folder.name)  # against the names
        (folder / "job.json").write_text(json.dumps(content))
    jobs = read_study(tmp_path).jobs
    assert list(jobs["job"]) == ["b2/scale=2.5", "b2/scale=10", "b10/1", "b10/0"]
    assert set(jobs["error"]) == {"not finished"}


def test_costs_and_scores_may_be_missing(tmp_path, make_job):
    make_job(tmp_path, 2, ["variant=nat"], fid=1.0, cost=None)
    table = markdown_table(table_of(read_study(tmp_path)), bold=0)
    assert table.splitlines()[0] == "| seeds | FID | Inception Score |"
    (tmp_path / "2" / "results.json").write_text('{"fid": 2.0, "cost": {"gflop_per_image": 1234.5}}')
    assert markdown_table(table_of(read_study(tmp_path)), bold=0).splitlines()[::2] == [
        "| seeds | FID | GFLOP/image |", "| 1 | **2.000** | 1,234 |",
    ]  # fmt: skip


def test_the_table_has_fid_by_every_protocol(tmp_path, make_job):
    scores = {"enat": {"fid": 1.0}, "adm": {"fid": 2.0}}
    make_job(tmp_path, 2, ["variant=nat"], fid=1.0, protocol="enat", scores=scores, cost=None)
    study = read_study(tmp_path)
    assert list(table_of(study).columns) == ["seeds", "FID", "FID (adm)", "Inception Score"]
    assert study.score_titles() == {"fid": "FID (enat)", "inception_score": "Inception Score (enat)"}


@pytest.mark.parametrize(
    ("options", "axis"),
    [
        ([{"lr": lr} for lr in ("1e-3", "1e-4")], "lr"),
        ([{"a": a, "b": b} for a in ("x", "y") for b in (1, 2, 3)], "b"),
        ([{"a": a} for a in ("x", 1)], None),  # not all are numbers
        ([{"a": a, "b": 3 - a} for a in (0, 1, 2)], None),  # changed together: a line for each point
        ([{"a": a, "b": b, "c": c} for a in (0, 1) for b in (0, 1) for c in (0, 1)], "a"),
        ([{"a": a, "b": b} for a in (0, 1) for b in (0, 1, 2)], "b"),
        ([{"a": a, "b": b, "c": b} for a in (0, 1) for b in (0, 1)], "a"),
        ([{"a": a, "b": b} for a in range(21) for b in range(21)], None),  # too many lines
    ],
)
def test_what_is_over_an_axis(tmp_path, make_job, options, axis):
    """The numeric option with the most values, the first of several."""
    for number, chosen in enumerate(options):
        make_job(tmp_path, number + 2, [f"x.{name}={value}" for name, value in chosen.items()], fid=1.0)
    assert main_axis(read_study(tmp_path)) == axis
