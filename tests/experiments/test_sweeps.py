"""Studies run in one command: what is missing, and nothing else; a failure stops no other job, and is not hidden."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from experiments.runtime import held_out_seeds
from experiments.runtime.held_out_seeds import best_jobs
from experiments.runtime.multirun import JobError, fixed_options, objectives

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=debug", "trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.sample_grid=null"]
NO_SCORES = ["metrics.evaluation=null", "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss"]
STUDIES = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml") if "study" not in path.stem)


@pytest.fixture
def sweep(command):
    """Runs a multirun of the debug experiment."""
    return lambda *arguments: command("-m", *SMALL, *arguments)


@pytest.mark.slow
def test_a_study_is_run_once_and_a_failure_is_told(sweep, tmp_path):
    """Of four jobs one fails; it and one whose folder is removed are run again, by the same command."""
    options = [
        "+sweep=study",
        "study=one",
        "variant=enat,nat",
        "seed=0",
        "module.net.num_heads=4,5",
        "score=[fid]",
        f"hydra.sweep.dir={tmp_path}",
    ]
    first = sweep(*options)
    assert first.status == 1
    assert (
        "module.net.width=32: expected a multiple of num_heads=5. The same command runs what is missing." in first.err
    )
    assert "Traceback" not in first.err
    jobs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/job.json")}
    assert len(jobs) == 4
    failed = {name for name, content in jobs.items() if content["error"]}
    assert failed == {name for name in jobs if "num_heads=5" in name}
    done = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert set(done) == set(jobs) - failed
    (gone,) = (name for name in done if "variant=nat" in name)
    shutil.rmtree(tmp_path / gone)
    second = sweep(*options)
    assert second.status == 1
    assert second.out.count("done already") == 1
    again = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert set(again) == set(done)
    assert {name for name in done if again[name] != done[name]} == {gone}
    other = sweep(*(option for option in options if option != "study=one"), "study=other")
    assert "the folder holds another job (study: one before, other now); expected the same" in other.err
    assert other.status == 1


@pytest.mark.slow
def test_sampler_study(command, sweep, tmp_path):
    """Several options of the sampler vary on one checkpoint; a job's scores are those of `task=evaluate` alone."""
    command(*SMALL, *NO_SCORES, f"output={tmp_path}/run")
    weights = f"weights={tmp_path}/run/checkpoints/last.ckpt"
    options = ["+sweep=sampler_study", "study=any", weights, "seed=3", f"hydra.sweep.dir={tmp_path}/study"]
    vary = ["sampler.num_steps=1,2", "sampler.guidance_scale=0,1"]
    outcome = sweep(*options, *vary)
    assert outcome.status == 0
    assert f"python run.py task=report runs={tmp_path}/study" in outcome.out.splitlines()[-1]
    table = [line.split()[:2] for line in outcome.out.splitlines()[-5:-1]]
    assert table == [["1", "0"], ["1", "1"], ["2", "0"], ["2", "1"]]  # steps and guidance of each job
    by_options = {
        (sampler["num_steps"], sampler["guidance_scale"]): results
        for results in (json.loads(path.read_text()) for path in tmp_path.glob("study/*/results.json"))
        if (sampler := results["settings"]["sampler"])
    }
    assert set(by_options) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert by_options[1, 0]["cost"]["gflop_per_image"] < by_options[2, 0]["cost"]["gflop_per_image"]
    alone = ["task=evaluate", weights, "seed=3", "sampler.num_steps=2", "sampler.guidance_scale=1"]
    assert command(*SMALL, *alone, f"output={tmp_path}/alone").results["fid"] == by_options[2, 1]["fid"]
    report = command("task=report", f"runs={tmp_path}/study", f"output={tmp_path}/report").results
    assert [(row["num_steps"], row["guidance_scale"], row["fid"]) for row in report["groups"]] == [
        (steps, scale, by_options[steps, scale]["fid"]) for steps, scale in ((1, 0), (1, 1), (2, 0), (2, 1))
    ]
    assert f"{tmp_path}/report/fid_over_inception_score.png" in report["pictures"]


@pytest.mark.slow
def test_a_study_refuses_other_weights(command, sweep, tmp_path):
    command(*SMALL, *NO_SCORES, f"output={tmp_path}/run")
    options = ["+sweep=steps", f"weights={tmp_path}/run/checkpoints/last.ckpt", "seed=3"]
    assert sweep(*options, "sampler.num_steps=1,2", f"hydra.sweep.dir={tmp_path}/study").status == 0
    shutil.rmtree(tmp_path / "run")
    command(*SMALL, *NO_SCORES, f"output={tmp_path}/run", "seed=7")  # another network in a file of the same name
    shutil.rmtree(next(tmp_path.glob("study/*num_steps=2*")))
    for steps in (1, 2):  # neither the job that is done nor a new one
        refused = sweep(*options, f"sampler.num_steps={steps}", f"hydra.sweep.dir={tmp_path}/study")
        assert refused.status == 1
        assert "the folder holds results of other weights (weights.sha256: " in refused.err
    assert len(list(tmp_path.glob("study/*/results.json"))) == 1


def test_a_job_may_go_on_otherwise():
    overrides = ["seed=0", "+sweep=steps", "weights=a.ckpt"]
    others = ["seed=0", "+sweep=steps", "weights=/b.ckpt", "logger=wandb", "logger.wandb.offline=true", "resume=true"]
    assert fixed_options(overrides) == fixed_options(others) == {"seed": "0"}
    assert fixed_options([*overrides, "trainer=gpu", "~logger.csv"]) == fixed_options(overrides)
    assert fixed_options([*overrides, "held_out_seeds=[7,8]"]) == fixed_options(overrides)
    assert fixed_options([*overrides, "trainer.max_steps=3"]) != fixed_options(overrides)
    assert fixed_options([*overrides, "~callbacks.ema"]) != fixed_options(overrides)


@pytest.mark.slow
def test_a_job_begun_anew_has_no_old_results(sweep, tmp_path):
    folder = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=job"]
    options = ["+sweep=cache", "module.cache_from_ema=true", "seed=0", *folder]
    assert sweep(*options).status == 0
    (results,) = tmp_path.glob("*/results.json")
    assert "untrained network" not in json.loads(results.read_text())["compared_with"]
    assert sweep(*options, "resume=false", "module.net.num_heads=5").status == 1
    assert not results.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_jobs(name):
    """Every value of an option that varies can be composed, and makes a configuration of its own."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"+sweep={name}"], return_hydra_config=True)
        params = dict(config.hydra.sweeper.params)
        assert params.pop("seed", "0,1,2") == "0,1,2"
        if name.startswith("tune"):  # each interval by its two ends, one option after another
            values_of = {option: re.findall(r"[\w.]+", values.partition("(")[2]) for option, values in params.items()}
            words = ("log", "interval")
            values_of = {option: [one for one in found if one not in words] for option, found in values_of.items()}
        else:
            values_of = {option: _split(str(values)) for option, values in params.items()}
        for option, values in values_of.items():
            jobs = [compose("config", [f"+sweep={name}", f"{option}={value}"]) for value in values]
            assert len({json.dumps(str(job)) for job in jobs}) == len(values) >= (1 if name == "table_4" else 2)
    assert values_of


@pytest.mark.slow
def test_tables_of_the_paper_share_their_jobs(sweep, tmp_path):
    """Both tables have ENAT itself, which is trained once; each shows its own rows."""
    options = ["experiment=digits", "metrics=none", "seed=0", f"hydra.sweep.dir={tmp_path}"]
    first = sweep(*options, "+sweep=table_6b")
    assert first.status == 0, first.err
    second = sweep(*options, "+sweep=table_6c")
    assert second.out.count("done already") == 1
    for outcome, rows, table in ((first, ["enat", "separate"], "6b"), (second, ["enat", "without_projection"], "6c")):
        *_, heading, one, two, command = outcome.out.splitlines()
        assert heading.split()[:2] == ["ablation", "seeds"]
        assert [one.split()[0], two.split()[0]] == rows
        assert command.endswith(f"python run.py task=report runs={tmp_path} table=table_{table}")
    folders = sorted(path.parent.name.partition(",")[0] for path in tmp_path.glob("*/results.json"))
    assert folders == [f"ablation={row}" for row in ("enat", "separate", "without_projection")]
    refused = sweep(*options, "+sweep=table_6c", "study=mine")
    assert "the folder holds another job (study: ablations before, mine now)" in refused.err


def _split(values: str) -> list[str]:
    """At commas outside of braces."""
    parts, depth = [""], 0
    for character in values:
        depth += (character == "{") - (character == "}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


@pytest.mark.slow
def test_jobs_of_joblib_read_data_in_workers(separate_command, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "images").mkdir()
    for number in range(10):
        Image.new("RGB", (16, 16), (20 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    small = ["tokenizer.channels=32", "tokenizer.multipliers=[1,1]", "tokenizer.resolution=16", "trainer.max_steps=1"]
    options = [*small, f"data.images={tmp_path}/images", "data.held_out=0.2", "data.batch_size=2", "data.num_workers=1"]
    jobs = ["seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}/sweep"]
    outcome = separate_command("-m", "experiment=tokenizer", *options, *jobs)
    assert outcome.status == 0, outcome.err
    assert len(list((tmp_path / "sweep").glob("*/results.json"))) == 2


def test_objectives():
    results = {"fid": 2.0, "cost": {"gflop_per_image": 3}}
    assert objectives(["fid"], results) == 2.0
    assert objectives(["fid", "cost.gflop_per_image"], results) == (2.0, 3.0)
    assert objectives(None, results) is None
    with pytest.raises(JobError, match="objective=fid: the result is NaN"):  # this job fails, and the search goes on
        objectives(["fid"], {"fid": math.nan})


def test_the_best_of_a_search(tmp_path):
    """Those than which no other is better in all objectives, the one of the lowest FID first."""
    values = {"a": (3.0, 1.0), "b": (1.0, 3.0), "c": (2.0, 2.0), "d": (2.5, 2.5), "e": (1.0, 3.0), "f": (math.nan, 0.5)}
    for name, (fid, gflop) in values.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text("{}")
        (tmp_path / name / "results.json").write_text(json.dumps({"fid": fid, "cost": {"gflop": gflop}}))
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "job.json").write_text("{}")
    both = best_jobs(tmp_path, ["fid", "cost.gflop"], ["minimize", "minimize"])
    assert [job.name for job in both] == ["b", "e", "c", "a"]
    assert [job.name for job in best_jobs(tmp_path, ["fid"], ["maximize"])] == ["a"]


def test_scores_of_other_weights_are_not_those_of_a_search(tmp_path, monkeypatch):
    """They stay, and the settings are scored again beside them."""
    commands = []
    monkeypatch.setattr(held_out_seeds, "run_command", lambda command: commands.append(command) or 0)
    job = tmp_path / "search" / "0"
    job.mkdir(parents=True)
    overrides = ["sampler.num_steps=2", "+sweep=tune", "resume=false", "held_out_seeds=[7,8]"]
    (job / "job.json").write_text(json.dumps({"overrides": overrides}))
    settings = {"sha256": "ab12", "sampler": {"num_steps": 2}}
    (job / "results.json").write_text(json.dumps({"fid": 1.0, "settings": settings}))
    held_out = tmp_path / "search-held_out_seeds"
    earlier = {"0": {**settings, "sha256": "cd34"}, "0-2": {**settings, "sampler": {"num_steps": 4}}}
    for name, other in earlier.items():
        (held_out / name).mkdir(parents=True)
        (held_out / name / "results.json").write_text(json.dumps({"seeds": [7, 8], "settings": other}))
    arguments = (tmp_path / "search", ["fid"], ["minimize"], [7, 8], "a.ckpt")
    assert held_out_seeds.score_again(*arguments) == [held_out / "0-3"]
    own = ["hydra.mode=RUN", "task=evaluate", "weights=a.ckpt", f"output={held_out}/0-3", "seeds=[7,8]"]
    assert commands == [["sampler.num_steps=2", "+sweep=tune", *own]]
    (held_out / "0-3").mkdir()
    (held_out / "0-3" / "results.json").write_text(json.dumps({"seeds": [7, 8], "settings": settings}))
    assert held_out_seeds.score_again(*arguments) == [held_out / "0-3"]
    assert len(commands) == 1


@pytest.mark.slow
def test_a_search_ends_with_seeds_that_it_has_not_seen(separate_command, tmp_path):
    assert separate_command("experiment=debug", "metrics=none", f"output={tmp_path}/run").status == 0
    sizes = ["metrics.evaluation.num_images=40", "hydra.sweeper.n_trials=2", "held_out_seeds=[7,8]"]
    (tmp_path / "own" / "sweep").mkdir(parents=True)  # a sweep of the user's that sets an option of the sampler
    own = "# @package _global_\ndefaults: [tune, _self_]\nsampler: {num_steps: 5}\n"
    (tmp_path / "own" / "sweep" / "mine.yaml").write_text(own)
    search = ["-m", "+sweep=mine", f"weights={tmp_path}/run/checkpoints/last.ckpt", "metrics=digits", *sizes]
    search += ["--config-dir", f"{tmp_path}/own"]
    outcome = separate_command(*search, f"hydra.sweep.dir={tmp_path}/search")
    assert outcome.status == 0, outcome.err
    (folder,) = (tmp_path / "search-held_out_seeds").iterdir()
    results = json.loads((folder / "results.json").read_text())
    assert results["seeds"] == [7, 8]
    found = json.loads((tmp_path / "search" / folder.name / "results.json").read_text())
    assert results["settings"]["sampler"] == found["settings"]["sampler"]
    assert found["settings"]["sampler"]["num_steps"] == 5
    all_found = [json.loads(path.read_text())["fid"] for path in (tmp_path / "search").glob("*/results.json")]
    assert found["fid"] == min(all_found)
    assert f"Results with these seeds, which are the ones to quote: {folder}" in outcome.out
    written = (folder / "results.json").stat().st_mtime_ns
    again = separate_command(*search, f"hydra.sweep.dir={tmp_path}/search")  # finds all of it there
    assert f"which are the ones to quote: {folder}" in again.out
    assert (folder / "results.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_job_that_fails_does_not_end_a_search(command, separate_command, tmp_path):
    """The command ends with status 1 and names the job, and so does the same command again, which goes on."""
    command(*SMALL, *NO_SCORES, f"output={tmp_path}/run")
    search = ["+sweep=tune", f"weights={tmp_path}/run/checkpoints/last.ckpt", "metrics.evaluation.num_images=40"]
    search += ["hydra.sweeper.n_trials=3", "held_out_seeds=null", f"hydra.sweep.dir={tmp_path}/search"]
    search += ["sampler.guidance_scale=interval(-4,4)"]  # below zero, a job fails
    for _ in range(2):
        outcome = separate_command("-m", "experiment=debug", *search)
        assert outcome.status == 1
        jobs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("search/*/job.json")}
        assert sorted(jobs) == ["0", "1", "2"]
        failed = [name for name in sorted(jobs) if jobs[name]["error"]]
        assert 0 < len(failed) < 3
        assert f"Error: {tmp_path}/search: these jobs failed: {', '.join(failed)}; their job.json" in outcome.err
        assert "Traceback" not in outcome.err
    assert outcome.out.count("done already") == 3 - len(failed)


@pytest.mark.slow
def test_a_search_whose_jobs_all_fail_says_so(separate_command, tmp_path):
    search = ["-m", "experiment=debug", "+sweep=tune", "weights=none.ckpt", f"hydra.sweep.dir={tmp_path}"]
    outcome = separate_command(*search, "hydra.sweeper.n_trials=2")
    assert outcome.status == 1
    assert len(list(tmp_path.glob("*/job.json"))) == 2
    assert "Error: all jobs of the search failed; the job.json of each says why." in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.slow
def test_trainings_of_a_multirun_begin_anew(sweep, tmp_path):
    options = [*NO_SCORES, "metrics=none", "seed=0", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=job"]
    for start in ([], ["resume=false"]):
        outcome = sweep(*options, *start)
        assert outcome.status == 0, outcome.err
    for folder in (tmp_path / "job", tmp_path / "job" / "before_1"):
        assert json.loads((folder / "results.json").read_text())["steps"] == 2
        assert (folder / "checkpoints" / "last.ckpt").exists()
    assert "done already" in sweep(*options).out


MULTIRUNS = {  # a command, another value of what varies, another fixed option, and their folders
    "evaluate": (["weights=RUN", "sampler.num_steps=1,2"], "sampler.num_steps=3,1", "seed=4", "run/evaluate-"),
    "sample": (["weights=RUN", "classes=1,2", "images_per_class=1"], "classes=3,1", "seed=4", "run/sample-"),
    "train": (
        ["output=RUN", "seed=1,2", *NO_SCORES, "metrics=none"],
        "seed=3,1",
        "trainer.val_check_interval=1",
        "run",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("task", MULTIRUNS)
def test_the_jobs_of_a_multirun_share_a_folder(sweep, command, tmp_path, task):
    """Further values join them; the jobs of another fixed option have a folder of their own, of all or of each."""
    command(*SMALL, *NO_SCORES, f"output={tmp_path}/run")
    options, values, other, start = MULTIRUNS[task]
    options = [f"task={task}", *(option.replace("RUN", f"{tmp_path}/run") for option in options)]
    outcome = sweep(*options)
    assert outcome.status == 0, outcome.err
    (record,) = {path.parents[1] for path in tmp_path.glob("**/job.json")}
    assert (record / "multirun.yaml").exists()
    assert str(record.relative_to(tmp_path)).startswith(start)
    assert outcome.out.rstrip().endswith(f"task=report runs={record}")
    report = command("task=report", f"runs={record}", f"output={tmp_path}/report")
    assert len(report.results["runs"]) == 2
    assert sweep(*options).out.count("done already") == 2
    more = sweep(*options, values)
    assert more.status == 0, more.err
    assert more.out.count("done already") == 1
    assert len(list(record.glob("*/results.json"))) == 3
    assert "done already" not in sweep(*options, other).out
    folders = {path.parents[1] for path in tmp_path.glob("**/job.json")}
    assert len(folders) == (1 if task == "train" else 2)


@pytest.mark.slow
def test_jobs_whose_own_outputs_differ_share_the_folder_of_a_multirun(sweep, tmp_path):
    outcome = sweep(*NO_SCORES, "metrics=none", "name=one,two", f"output={tmp_path}/${{name}}")
    assert outcome.status == 0, outcome.err
    assert len({path.parents[1] for path in tmp_path.glob("*/*/results.json")}) == 1
    assert len(list(tmp_path.glob("*/*/results.json"))) == 2
