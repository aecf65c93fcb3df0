"""A job of a multirun uses the folder of the same job only, and results of the same weights."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from enat.errors import InputError
from experiments.reporting.runs import find_runs
from experiments.runtime.job_data import data_sha256
from experiments.runtime.multirun import JobError, refuse_other_data, refuse_other_jobs, refuse_other_weights, run_job
from experiments.runtime.multirun_table import MultirunTable

CHOICES = "expected the same settings, another hydra.sweep.dir=DIR, or resume=false to run its jobs anew."


@pytest.fixture
def record(tmp_path):
    """The record of a job that is done."""
    (tmp_path / "results.json").write_text("{}")
    path = tmp_path / "job.json"
    path.write_text(json.dumps({"overrides": ["+sweep=steps", "seed=0"], "study": "steps", "weights_sha256": "ab12"}))
    return path


def test_another_job_is_refused(record):
    refuse_other_jobs(record, ["seed=0", "+sweep=steps", "logger=wandb", "weights=elsewhere.ckpt"], "steps")
    refuse_other_jobs(record, ["seed=0", "+sweep=more_steps"], "steps")  # of the same study
    refuse_other_jobs(record.with_name("none.json"), ["seed=1"], None)
    differences = "seed: 0 before, 1 now; study: steps before, null now"
    sentence = f"{record.parent}: the folder holds another job ({differences}); {CHOICES}"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        refuse_other_jobs(record, ["seed=1"], None)


def test_results_of_other_weights_are_refused(record):
    refuse_other_weights([record], "ab12")
    differences = "weights.sha256: ab12 before, cd34 now"
    sentence = f"{record.parent}: the folder holds results of other weights ({differences}); {CHOICES}"
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        refuse_other_weights([record], "cd34")
    record.with_name("results.json").unlink()
    refuse_other_weights([record], "cd34")  # nothing was computed with the others


def test_failures_of_a_shorter_search_are_told(tmp_path, capsys):
    """Its folder may have further jobs, of the same search when it was longer."""
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "sweeper": {"n_trials": 2}}})
    for number, error in enumerate([None, None, "ValueError"]):
        job = tmp_path / str(number)
        job.mkdir()
        (job / "results.json").write_text("{}")
        (job / "job.json").write_text(json.dumps({"overrides": [], "number": number, "error": error}))
    jobs = list(tmp_path.iterdir())
    MultirunTable().tell_failures(config, jobs)
    config.hydra.sweeper.n_trials = 3
    with pytest.raises(SystemExit):
        MultirunTable().tell_failures(config, jobs)
    assert "search: these jobs failed: 2; their job.json" in capsys.readouterr().err.replace(str(tmp_path), "search")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs a job of the options `seed=0` in a folder, which holds what it gave."""
    config = OmegaConf.create({"job": {"num": 0}, "overrides": {"task": ["seed=0"]}})
    monkeypatch.setattr(HydraConfig, "get", lambda: config)
    folder = tmp_path / "job"

    def run(value, resume=True):
        def work():
            if isinstance(value, Exception):
                raise value
            (folder / "checkpoints").mkdir()  # which fails beside those of another run
            (folder / "results.json").write_text(json.dumps({"fid": value}))
            return {"fid": value}

        return run_job(folder, resume, None, data_sha256(run.config), None, run.config, work, str)

    run.folder = folder
    run.config = OmegaConf.create({"output": str(folder)})
    return run


def read(path):
    return json.loads(path.read_text())


def test_a_job_begun_anew_keeps_what_was_there(job):
    assert job(1) == job(2) == {"fid": 1}  # is done already
    assert job(3, resume=False) == {"fid": 3}
    with pytest.raises(JobError, match="no disk"):
        job(ValueError("no disk"), resume=False)
    with pytest.raises(JobError, match="no disk"):  # when there is nothing to set aside
        job(ValueError("no disk"), resume=False)
    assert sorted(path.name for path in job.folder.iterdir()) == ["before_1", "before_2", "job.json"]
    for number, fid in ((1, 1), (2, 3)):
        before = job.folder / f"before_{number}"
        assert read(before / "results.json") == {"fid": fid}
        assert (before / "checkpoints").is_dir()
        assert read(before / "job.json")["error"] is None
    assert find_runs(job.folder.parent) == [job.folder]  # what a report shows
    assert job(4) == {"fid": 4}
    assert read(job.folder / "job.json")["error"] is None


def test_results_of_other_settings_are_not_those_of_a_job(job):
    """A YAML file of an experiment has changed, of which its overrides say nothing."""
    assert job(1) == {"fid": 1}
    (job.folder / "config.yaml").write_text(
        "trainer: {max_steps: 4, precision: 16-mixed}\nname: before\nweights: moved\nheld_out_seeds: [1]\n"
    )
    job.config.trainer = {"max_steps": 4, "precision": "32-true"}
    assert job(2) == {"fid": 1}
    job.config.trainer.max_steps = 40
    sentence = r"holds results of other settings \(trainer\.max_steps: 4 before, 40 now\); .* another hydra\.sweep\.dir"
    with pytest.raises(InputError, match=sentence):
        job(2)


@pytest.mark.parametrize(("restarts", "goes_on"), [("1", True), ("0", False)])
def test_a_job_begun_anew_that_slurm_has_requeued_goes_on(job, monkeypatch, restarts, goes_on):
    """As a run that is no job does: what it has done so far would be set aside at each restart."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    assert job(1, resume=False) == {"fid": 1}
    (job.folder / "slurm_job_id.txt").write_text("7")
    assert job(2, resume=False) == {"fid": 1 if goes_on else 2}
    assert (job.folder / "before_1").exists() != goes_on


def test_results_of_no_job_stay(job):
    job.folder.mkdir()
    (job.folder / "results.json").write_text(json.dumps({"fid": 1}))
    (job.folder / "photo.png").touch()
    assert job(2, resume=False) == {"fid": 2}
    assert read(job.folder / "results_before.json") == {"fid": 1}
    assert (job.folder / "photo.png").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_job_that_is_under_way_stays_as_it_is(job, resume):
    """A second multirun marks no job of the first as failed."""
    job.folder.mkdir()
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = int(Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2].split()[19])
    holder = {"host": socket.gethostname(), "process": sleeper.pid, "job": None, "began": began}
    (job.folder / "in_use.json").write_text(json.dumps(holder))
    (job.folder / "job.json").write_text(json.dumps({"overrides": ["seed=0"], "study": None, "error": None}))
    before = {path: path.read_text() for path in job.folder.iterdir()}
    with pytest.raises(JobError, match="is at work in this folder"):
        job(1, resume)
    assert {path: path.read_text() for path in job.folder.iterdir()} == before
    sleeper.communicate(b"\n")
    assert job(2) == {"fid": 2}


def test_a_job_that_ended_well_has_no_error(job):
    """An earlier version has marked it as failed, when the multirun was started twice."""
    job(1)
    record = read(job.folder / "job.json")
    (job.folder / "job.json").write_text(json.dumps({**record, "error": "a process is at work in this folder"}))
    assert job(2) == {"fid": 1}
    assert read(job.folder / "job.json") == record


@pytest.mark.parametrize("kind", ["images", "shards", "weights", "file"])
@pytest.mark.parametrize(
    "name", ["data.shards", "tokenizer.weights", "metrics.evaluation.references.all.path", "labels", "region.mask"]
)
def test_results_of_other_data_are_refused(job, tmp_path, kind, name):
    """Other files under the same path; where they are not there any more, what is done stays done."""
    place = tmp_path / "the data"
    names = {"images": "class/0.png", "shards": "manifest.json", "weights": "model.safetensors", "file": ""}
    changed = place / names[kind]
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text("a")
    OmegaConf.update(job.config, name, str(place), force_add=True)
    assert job(1) == job(2) == {"fid": 1}
    changed.write_text("b")
    with pytest.raises(InputError, match=f"holds results of other data \\({name}.sha256: .*{CHOICES}"):
        job(2)
    assert job(2, resume=False) == job(3) == {"fid": 2}
    changed.unlink()
    assert job(4) == {"fid": 2}


def test_data_of_a_job_are_what_its_options_name(tmp_path):
    """They are not what it writes itself, its weights, which are compared by themselves, or what can't be named."""
    own = tmp_path / "job" / "shards"
    data = tmp_path / "data"
    for file in (own / "manifest.json", data):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a")
    config = {
        "output": str(tmp_path / "job"),
        "weights": str(data),
        "task": {"weights": "${weights}", "images": str(data)},
        "data": {"shards": "${output}/shards", "images": "${oc.env:NO_SUCH_VARIABLE}", "cache": str(data)},
        "reference": {"images": {"path": "${here}"}, "weights": "???", "path": None, "images_per_class": 8},
        "here": str(data),
        "features": {"weights": "https://host/weights.pth"},
    }
    assert set(data_sha256(OmegaConf.create(config))) == {"reference.images.path.sha256"}


def test_images_in_a_list_are_data_of_a_job(tmp_path):
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    config = OmegaConf.create(
        {"output": str(tmp_path / "job"), "image": [*map(str, images), 3], "mask": f"{images[0]}"}
    )
    images[0].write_text("a")
    before = data_sha256(config)
    assert set(before) == {"image[0].sha256", "mask.sha256"}
    images[0].write_text("other")
    assert data_sha256(config)["image[0].sha256"] != before["image[0].sha256"]


def test_records_of_older_versions_say_nothing_of_data(record):
    refuse_other_data(record, {"scored.path.sha256": "ab12"})
