"""Studies of the paper's tables stand beside the paper's numbers."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from enat.errors import InputError
from experiments.reporting.plots import plot_beside_paper
from experiments.reporting.published import ABLATIONS, OTHERS, SETTINGS, other_settings, published_row, rows_of
from experiments.reporting.study import read_study

SWEEPS = Path(__file__).parents[3] / "conf" / "sweep"
TABLES = ["fig_2", "table_1", "table_2", "table_6a", "table_6b", "table_6c", "table_6d", "table_6e"]


@pytest.fixture
def ablations(tmp_path):
    """Jobs of two tables, as they lie in the folder that the tables share."""
    folder = tmp_path / "digits-ablations"
    for number, (row, fid) in enumerate([("enat", 0.7), ("disentangled_one", 0.8), ("nat", 0.9), ("separate", 1.0)]):
        for seed in (0, 1):
            job = folder / f"ablation={row},seed={seed}"
            job.mkdir(parents=True)
            record = {"number": number, "overrides": [f"ablation={row}", f"seed={seed}"], "error": None}
            (job / "job.json").write_text(json.dumps({**record, "study": "ablations"}))
            cost = {"paper_gop_per_image": 0.3, "gflop_per_image": 0.5 + number / 10}
            (job / "results.json").write_text(json.dumps({"fid": fid + seed / 100, "cost": cost}))
            config = {"name": "digits", "trainer": {"max_steps": 900}, "sampler": {"num_steps": 8}}
            (job / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_every_row_of_a_table_is_published():
    assert [name for name in TABLES if (SWEEPS / f"{name}.yaml").is_file()] == TABLES
    assert {row for table in TABLES for row in rows_of(table)} == set(ABLATIONS)
    for table in TABLES:  # their order is that of the tables
        assert rows_of(table) == [row for row in ABLATIONS if row in rows_of(table)]
    for name in ("table_7", "steps"):
        with pytest.raises(
            InputError, match=f"^table={name}: expected a table of the paper: fig_2, table_1, table_2, "
        ):
            rows_of(name)


def test_rows_of_jobs():
    assert published_row("ablations", {"ablation": "nat"}, {}) == (6.54, 39.6, None)
    assert published_row("ablations", {"ablation": "key_values"}, {}) is None
    assert published_row("table_3", {}, {"name": "enat_l_256", "sampler": {"num_steps": 4}}) == (4.13, 200, None)
    assert published_row("table_3", {}, {"name": "digits", "sampler": {"num_steps": 4}}) is None
    assert published_row(None, {"ablation": "nat"}, {"name": "enat_l_256", "sampler": {"num_steps": 4}}) is None


def test_the_papers_own_settings_are_not_named(compose_config):
    for name in ("nat", "disentangled_quarter", "enat"):
        assert other_settings(compose_config("experiment=enat_s_256", f"+ablation={name}")) == ""
    assert (
        other_settings(compose_config("experiment=enat_s_256", "data.batch_size=256")) == "data.batch_size=256 (2048)"
    )
    assert other_settings(compose_config("experiment=digits")).count("=") == len(SETTINGS) - 1  # all but the steps


def test_a_table_beside_the_papers(command, ablations, tmp_path):
    outcome = command("task=report", f"runs={ablations}", "table=table_6a", f"output={tmp_path}/report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# table_6a\n")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    columns = [rows[0].index(title) for title in ("FID", "FID in the paper", "G operations/image in the paper")]
    assert [[row[0], *(row[column] for column in columns)] for row in rows[2:]] == [
        ["| nat", "0.905 ± 0.007", "6.54", "39.6"],
        ["| disentangled_one", "0.805 ± 0.007", "4.78", "39.8"],
        ["| enat", "**0.705 ± 0.007**", "4.97", "22.6"],
    ]
    assert "Settings that differ from the paper's, which are in parentheses: " in text
    assert "trainer.max_steps=900 (300000)" in text
    assert (
        "- enat: FID differs (difference -0.200, 95 % interval -0.230 to -0.170); "
        "in the paper, the difference of FID is -1.57."
    ) in text
    assert [Path(picture).name for picture in outcome.results["pictures"]] == [
        "fid_over_ablation.png", "fid_over_operations.png",
    ]  # fmt: skip
    assert list(pd.read_csv(tmp_path / "report" / "groups.csv")["published_fid"]) == [6.54, 4.78, 4.97]
    refused = command("task=report", f"runs={ablations}", "table=table_6e", "baseline=3", f"output={tmp_path}/other")
    assert "baseline=3: expected the number of a row of the table, 1 to 1" in refused.err
    refused = command("task=report", f"runs={ablations}", "table=table_2x", f"output={tmp_path}/other")
    assert refused.err.startswith("Error: table=table_2x: expected a table of the paper")


def test_systems_stand_beside_those_of_table_3(tmp_path):
    for steps in (4, 8):
        job = tmp_path / f"num_steps={steps}"
        job.mkdir()
        record = {"number": steps, "overrides": [f"sampler.num_steps={steps}"], "error": None, "study": "table_3"}
        (job / "job.json").write_text(json.dumps(record))
        (job / "results.json").write_text(json.dumps({"fid": 16 / steps, "cost": {"paper_gop_per_image": steps}}))
        (job / "config.yaml").write_text(f"name: enat_l_256\nsampler: {{num_steps: {steps}}}")
    study = read_study(tmp_path)
    assert list(study.groups["published_fid"]) == [4.13, 2.79]
    _, papers = plot_beside_paper(study).axes
    names = [text.get_text() for text in papers.texts]
    assert len(names) == len(OTHERS)
    assert "MaskGIT, 12" in names
    assert papers.get_xlabel().endswith("with the VQGAN's decoder")


def test_an_ablation_of_our_own_comes_last(ablations):
    path = ablations / "ablation=enat,seed=0" / "job.json"
    path.write_text(path.read_text().replace("ablation=enat", "ablation=key_values"))
    assert list(read_study(ablations).groups["ablation"]) == [
        "nat",
        "disentangled_one",
        "enat",
        "separate",
        "key_values",
    ]
