"""No two jobs of a command share a folder, and the names of the folders are those of earlier versions otherwise."""

import re

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from experiments.runtime.job_names import job_name, options_of_multirun, remember_command


@pytest.fixture
def names(monkeypatch):
    """Returns the names of a multirun's jobs, of which each is given as its overrides."""

    def call(command, *jobs, params=None, left_out=()):
        remember_command(command)
        found = []
        for job in jobs:
            content = {"mode": RunMode.MULTIRUN, "overrides": {"task": job}, "sweeper": {"params": params}}
            monkeypatch.setattr(HydraConfig, "get", lambda content=content: OmegaConf.create(content))
            found.append(job_name(*left_out))
        return found

    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    yield call
    remember_command([])


def test_names_without_a_collision_stay(names):
    runs = [f"weights=/q/{run}/checkpoints/last.ckpt" for run in ("one", "two")]
    command = ["-m", f"{runs[0]},/q/two/checkpoints/last.ckpt", "seed=0,1", "data.shards=/q/s"]
    jobs = [[run, "seed=0", "data.shards=/q/s"] for run in runs]
    assert names(command, *jobs) == ["seed=0,weights=one_last", "seed=0,weights=two_last"]
    assert names(command, *jobs, left_out=["weights"]) == ["seed=0", "seed=0"]
    assert names(["-m"], ["resume=false"]) == ["job"]


@pytest.mark.parametrize("of_file", [False, True])
def test_options_that_change_no_result_tell_jobs_apart_that_differ_in_them(names, of_file):
    command = ["-m", "seed=3"] if of_file else ["-m", "seed=3", "trainer=cpu,gpu"]
    params = {"trainer": "cpu,gpu"} if of_file else None
    jobs = [["seed=3", f"trainer={trainer}", "logger=wandb"] for trainer in ("cpu", "gpu")]
    assert names(command, *jobs, params=params) == ["seed=3,trainer=cpu", "seed=3,trainer=gpu"]


def test_checkpoints_of_runs_of_the_same_name(names):
    paths = ["/A/run/checkpoints/last.ckpt", "/B/run/checkpoints/last.ckpt", "/B/other/checkpoints/last.ckpt"]
    first, second, third = names(["-m", f"weights={','.join(paths)}"], *([f"weights={path}"] for path in paths))
    assert first != second
    assert all(re.fullmatch("weights=run_last-[0-9a-f]{6}", name) for name in (first, second))
    assert third == "weights=other_last"


@pytest.mark.parametrize("of_file", [False, True])
def test_values_that_differ_in_characters_that_no_name_has(names, of_file):
    values = ["'/q/s a'", "/q/sa"]
    command = ["-m"] if of_file else ["-m", f"+scored.path={','.join(values)}"]
    params = {"scored.path": ",".join(values)} if of_file else None
    first, second = names(command, *([f"+scored.path={value}"] for value in values), params=params)
    assert first != second
    assert all(re.fullmatch("scored.path=_q_sa-[0-9a-f]{6}", name) for name in (first, second))


def test_several_shards_are_in_the_name(names):
    shards = ["/q/a", r"https\://me\:secret@host/b"]  # as Hydra writes it
    jobs = [[f"data.shards={folder}", "seed=0"] for folder in shards]
    expected = ["data.shards=_q_a,seed=0", "data.shards=https:__host_b,seed=0"]
    assert names(["-m", f"data.shards={','.join(shards)}"], *jobs) == expected


def test_values_that_are_not_listed(names):
    command = ["-m", "+preset=glob(*)", "sampler.guidance_scale=interval(0,1)"]
    assert names(command, ["+preset=halton", "sampler.guidance_scale=0.5"]) == [
        "preset=halton,sampler.guidance_scale=0.5"
    ]


def test_options_of_a_multirun():
    """What varies has no values; what a file varies may be fixed by the command."""
    params = {"seed": "0,1,2", "sampler.num_steps": "4,8"}
    task = ["task=evaluate", "seed=3", "+sampler.top_k=choice(1,2)", "trainer=cpu", "weights=/q/run/checkpoints/7.ckpt"]
    hydra = OmegaConf.create({"sweeper": {"params": params}, "overrides": {"task": task}})
    expected = ["sampler.num_steps", "sampler.top_k", "seed=3", "weights=7"]
    assert options_of_multirun(hydra, "task") == expected
    assert options_of_multirun(hydra, "task", "seed", "sampler.num_steps") == [*expected[:2], expected[3]]
