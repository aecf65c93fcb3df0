"""Studies run in one command: what is missing, and nothing else; a failure stops no other job, and is not hidden."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from experiments.runtime.multirun import fixed_options, objectives

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=debug", "trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.sample_grid=null"]
STUDIES = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml") if "study" not in path.stem)


def sweep(*arguments):
    return subprocess.run(
        [sys.executable, "run.py", "-m", *SMALL, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_study_is_run_once_and_a_failure_is_told(tmp_path):
    """Of four jobs one fails; it and one whose folder is removed are run again, by the same command."""
    options = [
        "+sweep=disentangle",
        "variant=enat,nat",
        "seed=0",
        "module.net.num_heads=4,5",
        f"hydra.sweep.dir={tmp_path}",
    ]
    first = sweep(*options)
    assert first.returncode == 1
    assert "module.net: width=32: expected a multiple of num_heads=5. The other jobs went on" in first.stderr
    assert "Traceback" not in first.stderr
    jobs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/job.json")}
    assert len(jobs) == 4
    failed = {name for name, content in jobs.items() if content["error"]}
    assert failed == {name for name in jobs if "num_heads=5" in name}
    done = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert set(done) == set(jobs) - failed
    (gone,) = (name for name in done if "variant=nat" in name)
    shutil.rmtree(tmp_path / gone)
    second = sweep(*options)
    assert second.returncode == 1
    assert second.stdout.count("done already") == 1
    again = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("*/results.json")}
    assert set(again) == set(done)
    assert {name for name in done if again[name] != done[name]} == {gone}
    other = sweep(*options, "study=other")
    assert "the folder holds another job (study: null before, other now); expected the same" in other.stderr
    assert other.returncode == 1


def test_sampler_study(command, tmp_path):
    command(*SMALL, f"output={tmp_path}/run")
    options = ["+sweep=steps", f"weights={tmp_path}/run/checkpoints/last.ckpt", "seed=3"]
    assert sweep(*options, "sampler.num_steps=1,2", f"hydra.sweep.dir={tmp_path}/study").returncode == 0
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("study/*/results.json"))]
    assert [result["settings"]["sampler"]["num_steps"] for result in results] == [1, 2]
    assert results[0]["cost"]["gflop_per_image"] < results[1]["cost"]["gflop_per_image"]
    shutil.rmtree(tmp_path / "run")
    command(*SMALL, f"output={tmp_path}/run", "seed=7")  # another network in a file of the same name
    shutil.rmtree(next(tmp_path.glob("study/*num_steps=2*")))
    for steps in (1, 2):  # neither the job that is done nor a new one
        refused = sweep(*options, f"sampler.num_steps={steps}", f"hydra.sweep.dir={tmp_path}/study")
        assert refused.returncode == 1
        assert "the folder holds results of other weights (weights.sha256: " in refused.stderr
    assert len(list(tmp_path.glob("study/*/results.json"))) == 1


def test_a_job_may_go_on_otherwise():
    overrides = ["seed=0", "+sweep=steps", "weights=a.ckpt"]
    others = ["seed=0", "+sweep=steps", "weights=/b.ckpt", "logger=wandb", "logger.wandb.offline=true", "resume=true"]
    assert fixed_options(overrides) == fixed_options(others) == {"seed": "0", "sweep": "steps"}
    assert fixed_options([*overrides, "trainer=gpu", "~logger.csv"]) == fixed_options(overrides)
    assert fixed_options([*overrides, "trainer.max_steps=3"]) != fixed_options(overrides)
    assert fixed_options([*overrides, "~callbacks.ema"]) != fixed_options(overrides)


def test_a_job_begun_anew_has_no_old_results(tmp_path):
    options = ["+sweep=attention", "variant=enat", "seed=0", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=job"]
    assert sweep(*options).returncode == 0
    (results,) = tmp_path.glob("*/results.json")
    assert "untrained network" not in json.loads(results.read_text())["yardsticks"]
    assert sweep(*options, "resume=false", "module.net.num_heads=5").returncode == 1
    assert not results.exists()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_jobs(name):
    """All of its jobs can be composed, and differ in what varies and in the seed."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"+sweep={name}"], return_hydra_config=True)
        params = dict(config.hydra.sweeper.params)
        assert params.pop("seed", "0,1,2") == "0,1,2"
        if name.startswith("tune"):  # Each interval by its two ends, one setting after another
            ends = [(option, re.findall(r"[\d.]+", values)) for option, values in params.items()]
            chosen = [f"{option}={end}" for option, (low, high) in ends for end in (low, high)]
        else:
            ((option, values),) = params.items()
            chosen = [f"{option}={value}" for value in _split(str(values))]
        assert len(chosen) >= 2
        jobs = [compose("config", [f"+sweep={name}", job]) for job in chosen]
    assert len({json.dumps(str(job)) for job in jobs}) == len(jobs)


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


def test_objectives():
    results = {"fid": 2.0, "cost": {"gflop_per_image": 3}}
    assert objectives(["fid"], results) == 2.0
    assert objectives(["fid", "cost.gflop_per_image"], results) == (2.0, 3.0)
    assert objectives(None, results) is None
