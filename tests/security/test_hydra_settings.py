"""Hydra's own settings in YAML files of others: commands of SLURM, references that change, jobs of other processes."""

import pytest
from omegaconf import OmegaConf

from enat.errors import InputError
from experiments.runtime.hydra_settings import check_hydra

HEAD = "# @package _global_\ndefaults: [debug, _self_]\n"
SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
EMPTY = {"callbacks": {}, "sweeper": {}, "job_logging": None, "hydra_logging": None, "job": {"env_set": {}}}


def settings_with(**launcher):
    """Settings of Hydra with a launcher for SLURM, whose package need not be installed."""
    overrides = {"hydra": ["hydra.launcher.setup=[module load cuda]"], "task": []}
    parts = {"runtime": {"output_dir": "???"}, "overrides": overrides, "launcher": {**SLURM, **launcher}}
    return OmegaConf.create({"hydra": {**EMPTY, **parts}})


def test_commands_of_a_slurm_job_come_from_the_command_line():
    """What the configuration itself says of the command line does not count, nor does a part of the commands."""
    commands = {"setup": ["module load cuda"]}
    check_hydra(settings_with(**commands), ["hydra.launcher.setup=[module load cuda]"])
    for arguments in ([], ["hydra.launcher.setup=[module]"], ["hydra/launcher=submitit_slurm"]):
        with pytest.raises(
            InputError, match=r"^hydra\.launcher\.setup: a file may not set commands of a job; give it on"
        ):
            check_hydra(settings_with(**commands), arguments)
    more = {"additional_parameters": {"mem": 3, "wrap": "rm"}}
    check_hydra(settings_with(**more), ["hydra.launcher.additional_parameters={mem:3,wrap:rm}"])
    with pytest.raises(InputError, match=r"^hydra\.launcher\.additional_parameters: a file may not set commands"):
        check_hydra(settings_with(**more), ["+hydra.launcher.additional_parameters.mem=3"])


JOB = (
    "{version: 1, disable_existing_loggers: false, root: {level: INFO, handlers: [x]}, handlers: "
    '{x: {"()": torch.utils.collect_env.run, command: "COMMAND"}}}'
)


def test_settings_of_hydra_stand_for_the_same_when_they_are_used(separate_command, tmp_path):
    """A reference that stands for harmless settings until Hydra knows the folder of the run stands for them later."""
    (tmp_path / "conf/experiment").mkdir(parents=True)
    text = f"evil: {JOB.replace('COMMAND', f'touch {tmp_path}/ran')}\nsel: {{first: {{version: 1, root: null}}}}\n"
    text += "hydra: {job_logging: \"${oc.select:'sel.${oc.select:hydra.runtime.output_dir,first}',${evil}}\"}\n"
    (tmp_path / "conf/experiment/shared.yaml").write_text(HEAD + text)
    conf = ["--config-dir", str(tmp_path / "conf"), "experiment=shared"]
    outcome = separate_command(*conf, "trainer.max_steps=1", f"output={tmp_path}/run")
    assert outcome.status == 0, outcome.err
    assert not (tmp_path / "ran").exists()


def test_jobs_in_other_processes_are_checked(separate_command, tmp_path):
    """Their configurations are composed there, and the first process has not seen them."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/good.yaml").write_text(HEAD)
    text = f"hydra: {{job_logging: {JOB.replace('COMMAND', f'touch {tmp_path}/ran')}}}\n"
    (tmp_path / "conf/experiment/bad.yaml").write_text(HEAD + text)
    search = [
        "hydra/sweeper=optuna",
        "hydra/sweeper/sampler=grid",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
    ]
    options = [*search, "hydra/launcher=joblib", "experiment=choice(good,bad)", f"hydra.sweep.dir={tmp_path}/sweep"]
    outcome = separate_command("-m", "--config-dir", str(tmp_path / "conf"), *options, "trainer.max_steps=1")
    assert outcome.status == 1
    assert "hydra.job_logging.handlers.x.()=torch.utils.collect_env.run: expected one of" in outcome.err
    assert outcome.err.count("Error: ") == 1
    assert not (tmp_path / "ran").exists()


def test_a_slurm_script_has_no_lines_of_a_file():
    check_hydra(settings_with(partition="long"), [])
    for launcher in ({"partition": "a\nid > RAN\n"}, {"signal": ["a", "b\rc"]}, {"x\ny": 1}):
        with pytest.raises(InputError, match=r"(?s)^hydra\.launcher\..*: expected one line of plain characters"):
            check_hydra(settings_with(**launcher), [])


def test_joblib_calculates_no_formula_of_a_file():
    for value in ("all", 4, "2*n_jobs", "n_jobs"):
        check_hydra(settings_with(pre_dispatch=value), [])
    for value in ("2*n_jobs*__import__('os').getpid()", "n_jobs\n", "allocate()"):
        with pytest.raises(InputError, match=r"(?s)^hydra\.launcher\.pre_dispatch"):
            check_hydra(settings_with(pre_dispatch=value), [])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{root: {level: LOUD}}", "Unable to configure root logger (Unknown level: 'LOUD')."),
        ("{version: 7}", "Unsupported version: 7."),
        ("{formatters: {simple: {format: 5}}}", "Unable to configure formatter 'simple' (expected string"),
    ],
)
def test_logging_that_does_not_work(command, tmp_path, text, sentence):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/shared.yaml").write_text(f"{HEAD}hydra: {{job_logging: {text}}}\n")
    outcome = command("--config-dir", str(tmp_path / "conf"), "experiment=shared", f"output={tmp_path / 'run'}")
    assert outcome.status == 2
    assert outcome.err.startswith(f"Error: hydra.job_logging or hydra.hydra_logging: {sentence}")


def test_the_working_folder_stays(command, tmp_path):
    refused = command("experiment=debug", "hydra.job.chdir=true", f"output={tmp_path}/run")
    assert refused.err.startswith("Error: hydra.job.chdir: relative paths in options would be those of other files")
