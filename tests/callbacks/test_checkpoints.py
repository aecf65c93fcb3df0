"""Runs that are killed, run out of disk, or lose files: one sentence, nothing lost, the same weights in the end."""

import os
import resource
import signal
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

import enat
from callbacks.checkpoints import LEFT_ON_SIGNAL, AtomicCheckpointIO, Checkpoints, LeaveOnSignal
from callbacks.guard import NonFiniteGuard
from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import read_file
from enat.errors import InputError
from enat.loss import MaskedCrossEntropy
from enat.module import MaskedTokenModule
from experiments.runtime import training
from experiments.runtime.launch import cluster_plugins, starts_processes
from experiments.runtime.ranks import launched, processes
from experiments.runtime.resuming import fixed_settings, without_changing
from experiments.runtime.training import NEEDED, build_trainer, command_that_goes_on

ROOT = Path(__file__).parents[2]
DEBUG = "experiment=debug"
TRAINING = [DEBUG, "metrics.evaluation=null", "callbacks.generation_metrics=null", "callbacks.sample_grid=null"]
TRAINING += ["callbacks.checkpoint.monitor=val/loss", "callbacks.throughput=null"]  # no scores, pictures or speed
SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "7", "SLURM_NODEID": "1"}
SRUN |= {"SLURM_JOB_NAME": "enat", "SLURM_STEP_NUM_TASKS": "4"}


def learnt(folder: Path) -> dict[str, torch.Tensor]:
    content = read_file(folder / "checkpoints" / "last.ckpt")
    averaged = {f"ema.{name}": tensor for name, tensor in select_state(content)[0].items()}
    return content["state_dict"] | averaged


def same(first: Path, second: Path) -> bool:
    a, b = learnt(first), learnt(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_file_that_does_not_fit_leaves_the_earlier_one(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(InputError, match=r"last\.ckpt: can't be written: .*; an earlier file is unchanged"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_file(path)["x"], torch.zeros(10))
    assert list(tmp_path.iterdir()) == [path]


def test_files_kept(command, tmp_path):
    run = [*TRAINING, "trainer.max_steps=9", "trainer.val_check_interval=4", "callbacks.checkpoint.every_n_steps=3"]
    command(*run, f"output={tmp_path}")
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step_0000008.ckpt",
        "step_0000009.ckpt",
    ]
    assert (folder / "last.ckpt").samefile(folder / "step_0000009.ckpt")
    content = read_file(folder / "last.ckpt")
    assert content["settings"]["trainer"]["max_steps"] == 9
    best = read_file(folder / "best.ckpt")
    assert best["global_step"] in (4, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "sentence"),
    [("null", "masks and dropout are drawn by process"), ("1", "only the order of sums differs")],
)
def test_another_number_of_processes_is_told(command, tmp_path, groups, sentence):
    run = [*TRAINING, f"module.mask_groups={groups}", f"output={tmp_path}"]
    assert "instead of" not in command(*run, "trainer.max_steps=2").out
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = read_file(path)
    assert content["world_size"] == 1
    path.unlink()
    torch.save(content | {"world_size": 16}, path)
    out = command(*run).out
    assert "Note: 1 process instead of 16: the data go on in the same order, " in out
    assert sentence in out


@pytest.mark.slow
def test_damaged_and_missing_files(command, tmp_path):
    run = [*TRAINING, f"output={tmp_path}/b"]
    command(*TRAINING, f"output={tmp_path}/a")
    command(*run)
    folder = tmp_path / "b" / "checkpoints"
    (folder / "last.ckpt").unlink()
    (folder / "step_0000004.ckpt").write_bytes((folder / "step_0000004.ckpt").read_bytes()[:20_000])
    outcome = command(*run)  # from step 2
    assert "the file is truncated or no checkpoint. Taking another checkpoint." in outcome.out
    assert "step_0000002.ckpt, step 2" in outcome.out
    assert same(tmp_path / "a", tmp_path / "b")
    content = read_file(folder / "last.ckpt")
    content["state_dict"]["net.new"] = torch.zeros(1)
    for path in folder.iterdir():
        path.unlink()
    torch.save(content, folder / "last.ckpt")
    outcome = command(*run)
    assert (outcome.status, "the code has changed since" in outcome.err) == (1, True)
    (folder / "last.ckpt").write_text("nothing")
    outcome = command(*run)
    assert (outcome.status, "none of its checkpoints can be read; resume=false" in outcome.err) == (1, True)


@pytest.mark.slow
def test_a_run_goes_on_after_its_classes_have_moved(command, tmp_path):
    """The class itself must be the same."""
    run = [*TRAINING, f"output={tmp_path}"]
    command(*run, "trainer.max_steps=2")
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = read_file(path)
    settings = content["settings"]
    for name, sentence in (("NAT", "(module.net._target_: NAT before, ENAT now); expected"), ("ENAT", "")):
        settings["module"]["net"]["_target_"] = f"enat.earlier.{name}"
        path.unlink()
        torch.save(content, path)
        outcome = command(*run, "trainer.max_steps=3")
        assert (outcome.status, "Going on from" in outcome.out) == ((1, False) if sentence else (0, True))
        assert f"the folder holds another run {sentence}" in outcome.err or not sentence


@pytest.fixture(scope="module")
def uninterrupted(separate_command, tmp_path_factory):
    """A run of 20 steps with a data worker: its options and its folder."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = [*TRAINING, "trainer.max_steps=20", "trainer.val_check_interval=20", "data.num_workers=1"]
    run.append("callbacks.leave_on_signal.every_n_steps=5")
    assert separate_command(*run, f"output={folder}").status == 0
    return run, folder


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on(uninterrupted, command, killed, tmp_path, sent):
    """All processes get the signal when the eighth step begins; the ranks compare their flags every five steps."""
    run, folder = uninterrupted
    hook = "callbacks.checkpoints:Checkpoints.on_train_batch_start"
    left = killed(*run, f"output={tmp_path}", at=hook, number=8, sent=sent)
    assert left.status == LEFT_ON_SIGNAL, left.err
    saved = tmp_path / "checkpoints" / "step_0000010.ckpt"
    assert f"{sent.name}: saved {saved}; the same command goes on from there." in left.err
    assert read_file(saved.with_name("last.ckpt"))["global_step"] == 10
    assert command(*run, f"output={tmp_path}").results["steps"] == 20
    assert same(folder, tmp_path)


@pytest.fixture
def ignored():
    """The signals that end a run, which this process ignores before and after it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    earlier = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    yield numbers
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("moment", ["callbacks.checkpoints.Checkpoints.on_train_end", "experiments.train.score_all"])
def test_a_signal_after_the_last_batch(command, monkeypatch, ignored, tmp_path, moment, number):
    """Such as in the last validation, and while the trained network is scored."""
    sent = ignored[number]
    asked = []
    scontrol = SimpleNamespace(run=lambda arguments, check: asked.append(arguments))
    monkeypatch.setattr("callbacks.checkpoints.subprocess", scontrol)
    monkeypatch.setattr("callbacks.checkpoints.shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    original = resolve_name(moment)

    def signalled(*arguments):
        os.kill(os.getpid(), sent)
        return original(*arguments)

    run = [*TRAINING[:1], *TRAINING[2:], "metrics.evaluation.num_images=20", f"output={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(moment, signalled)
        left = command(*run)
    assert left.status == LEFT_ON_SIGNAL
    assert f"{sent.name}: training is finished and saved; the same command goes on with the scores." in left.err
    assert asked == ([["scontrol", "requeue", "7"]] if sent == signal.SIGUSR1 else [])
    assert [signal.getsignal(each) for each in ignored] == [signal.SIG_IGN] * 3
    assert not (tmp_path / "results.json").exists()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert command(*run).results["steps"] == 4


def leave_at_the_first_step(command, monkeypatch, *options):
    """Runs a command that gets SIGUSR1 when its first step begins, as SLURM sends it near the end of the time."""

    def signalled(callback, *arguments):
        original(callback, *arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    original = LeaveOnSignal.on_train_start
    with monkeypatch.context() as patch:
        patch.setattr(LeaveOnSignal, "on_train_start", signalled)
        return command(*TRAINING, "callbacks.leave_on_signal.every_n_steps=1", *options)


def test_a_run_that_began_anew_says_how_it_goes_on(command, monkeypatch, ignored, tmp_path):
    """Without SLURM, resume=false would begin another one."""
    (tmp_path / "run").mkdir()
    options = ["trainer.max_steps=4", f"output={tmp_path}/run"]
    left = leave_at_the_first_step(command, monkeypatch, "resume=false", *options)
    assert left.status == LEFT_ON_SIGNAL
    folder = f"{tmp_path}/run-2"
    assert f"the same command with output={folder} instead of resume=false goes on from there." in left.err
    assert "Going on from" in command(*TRAINING, *options[:1], f"output={folder}").out


def test_a_job_of_a_multirun_goes_on_in_its_folder(monkeypatch):
    settings = {"resume": False, "output": "outputs/x"}
    assert command_that_goes_on(settings) == "the same command with output=outputs/x instead of resume=false"
    monkeypatch.setattr(training, "is_job", lambda: True)
    assert command_that_goes_on(settings) == "the same command without resume=false"
    assert command_that_goes_on({**settings, "resume": True}) == "the same command"


def test_a_requeued_job_goes_on_where_it_began_anew(command, monkeypatch, ignored, tmp_path):
    """Its command has resume=false; that of another job begins anew. Here is no scontrol, as in many containers."""
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    options = ["resume=false", "trainer.max_steps=4", f"output={tmp_path}/run"]
    left = leave_at_the_first_step(command, monkeypatch, *options)
    assert left.status == LEFT_ON_SIGNAL
    assert "Job 77 is not put into the queue again, for there is no scontrol here." in left.err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert f"Going on from {tmp_path}/run-2/checkpoints/" in command(*TRAINING, *options).out
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert "Going on from" not in command(*TRAINING, *options).out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run-2", "run-3"]


def test_a_requeued_job_of_another_task_goes_on_too(command, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    draw = ["task=sample", f"weights={ROOT}/examples/emoji", "classes=[face]", "images_per_class=1", "resume=false"]
    for _ in range(2):
        assert command(*draw, f"output={tmp_path}/drawn").status == 0
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn"]


def test_a_run_that_fails_leaves_no_handler_of_signals(command, ignored, tmp_path):
    """The next job of a multirun would have it, in which nothing looks at its flag."""
    assert command(*TRAINING, "callbacks.checkpoint.monitor=val/nothing", f"output={tmp_path}").status == 1
    assert [signal.getsignal(each) for each in ignored] == [signal.SIG_IGN] * 3


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["callbacks.checkpoints:Checkpoints.on_train_end", "experiments.train:score_all"])
def test_all_ranks_leave_after_the_last_batch(killed, command, tmp_path, moment):
    run = [*TRAINING[:1], *TRAINING[2:], "metrics.evaluation.num_images=20", f"output={tmp_path}"]
    left = killed(*run, "trainer.accelerator=cpu", at=moment, sent=signal.SIGTERM, ranks=2)
    assert left.status == LEFT_ON_SIGNAL, left.err
    assert left.err.count("SIGTERM: training is finished and saved; the same command goes on with the scores.") == 1
    assert command(*run).results["steps"] == 4


def test_a_job_at_the_end_of_its_time_is_put_into_the_queue_again(ignored):
    """SLURM sends SIGUSR1 and, if a validation takes longer than the time that is left, SIGTERM."""
    leaving = LeaveOnSignal(every_n_steps=5, timeout_minutes=1)
    with leaving.handling():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving._agreed() == signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_process_that_leaves_while_scoring_ends_those_that_it_has_started(ignored, capsys):
    """They would wait for it, and end with the traceback of a lost connection."""
    sent = []
    launcher = SimpleNamespace(kill=sent.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher), is_global_zero=True)
    leaving = LeaveOnSignal(every_n_steps=5, timeout_minutes=1)
    with leaving.handling():
        leaving.finish_training(trainer)
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
    assert sent == [signal.SIGTERM]
    assert "SIGTERM: training is finished and saved" in capsys.readouterr().err


def test_the_best_checkpoint_of_a_run_that_was_killed_before_it_had_its_name(command, monkeypatch, tmp_path):
    """The best state is that of step 4, which is saved, and then the process is gone."""

    def validation_step(module, batch, number):
        module.log("val/watched", {2: 2.0, 4: 1.0}.get(module.global_step, 3.0))

    def link(callback, path, name):
        if path.name == "step_0000004.ckpt" and name == "best.ckpt":
            raise KeyboardInterrupt
        original_link(callback, path, name)

    original_link = Checkpoints._link
    monkeypatch.setattr(MaskedTokenModule, "validation_step", validation_step)
    run = [*TRAINING, "callbacks.checkpoint.monitor=val/watched", "callbacks.checkpoint.keep=1", f"output={tmp_path}"]
    run.append("trainer.max_steps=8")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_link", link)
        assert command(*run).status != 0
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert read_file(best)["global_step"] == 2
    assert command(*run).results["steps"] == 8
    assert read_file(best)["global_step"] == 4


@pytest.mark.parametrize(
    ("allowed", "fused", "every"),
    [(0, True, 1), (0, True, 0), (0, False, 0), (5, True, 1), (5, False, 1), (5, True, 4)],
)
def test_gradients_that_are_not_finite(command, monkeypatch, tmp_path, allowed, fused, every):
    calls, call = [], MaskedCrossEntropy.__call__

    def broken(self, logits, targets):
        calls.append(1)
        return call(self, logits, targets) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(MaskedCrossEntropy, "__call__", broken)
    run = [*TRAINING, "trainer.val_check_interval=4", f"callbacks.guard.max_skipped={allowed}", f"output={tmp_path}"]
    outcome = command(*run, f"module.optimizer.fused={fused}", f"trainer.log_every_n_steps={every}")
    if not allowed:
        assert (outcome.status, "step 2: the gradient is not finite, for 1 step in a row" in outcome.err) == (1, True)
        return
    assert outcome.status == 0
    assert all(tensor.isfinite().all() for tensor in learnt(tmp_path).values())
    rows = (tmp_path / "metrics" / "version_0" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/skipped_steps")
    assert [row.split(",")[column] for row in rows[1:] if row.split(",")[column]] == ["0.0", "0.0", "1.0", "1.0"][
        every - 1 :
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fused", [True, False])
def test_loss_scaling_finds_its_scale(compose_config, tmp_path, fused):
    """fp16 with a scale that is far too high: steps are skipped until it fits, and the guard only counts them."""
    config = compose_config(DEBUG, f"module.optimizer.fused={fused}", f"output={tmp_path}")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    guard = NonFiniteGuard(max_skipped=60)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=80, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        limit_val_batches=0, log_every_n_steps=1, callbacks=[guard, instantiate(config.callbacks.ema)],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)], enable_model_summary=False,
    )  # fmt: skip
    module = instantiate(config.module)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer.fit(module, datamodule=instantiate(config.data))
    assert 5 < guard.skipped < 80
    assert scaler.get_scale() == 2.0 ** (40 - guard.skipped)
    assert 0.01 < trainer.callback_metrics["train/grad_norm"] < 100
    changed = {name: tensor for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) > 10
    assert all(tensor.isfinite().all() for tensor in changed.values())


@pytest.mark.parametrize(
    ("options", "variables", "sentence"),
    [
        (["trainer=ddp", "trainer.precision=32-true"], {}, "expected one device in a multirun"),
        (["task=evaluate", "weights=any.ckpt"], {}, "expected one device in a multirun"),
        (["objective=[fid]"], {"RANK": "0", "WORLD_SIZE": "2"}, "objective: each process of torchrun"),
        (["objective=[fid]"], SRUN, "objective: each process of torchrun"),
    ],
)
def test_multirun_with_several_processes_is_refused(command, monkeypatch, options, variables, sentence, tmp_path):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices = ["trainer.accelerator=cpu", "trainer.devices=2"]
    refused = command("-m", DEBUG, *devices, *options, f"hydra.sweep.dir={tmp_path}")
    assert refused.status == 1
    assert sentence in refused.err


def test_processes_of_srun(monkeypatch, command):
    """A step of srun says who is who; the script around it, in which there is one process, has the numbers too."""
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert processes() == (0, 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert processes() == (3, 4, 1)
    assert launched() == (4, 1)
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")  # in the script around a step
    refused = command(DEBUG, "task=evaluate", "trainer.accelerator=cpu", "weights=any.ckpt")
    assert refused.status == 1
    assert "SLURM_NTASKS=4: this process was started without srun" in refused.err
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # with several GPUs, perhaps, whose processes Lightning starts
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert launched() is None
    assert [type(plugin) for plugin in cluster_plugins()] == [LightningEnvironment]
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "5")  # of torchrun, inside of it
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert processes() == (5, 8, 0)


def test_who_starts_the_processes(monkeypatch):
    """Lightning does, by the same command, unless srun or torchrun has."""
    for name in ("NODEID", "PROCID", "LOCALID", "JOB_ID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    for environment, expected in ((LightningEnvironment(), True), (SLURMEnvironment(auto_requeue=False), False)):
        strategy = DDPStrategy(cluster_environment=environment)
        trainer = L.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False)
        assert starts_processes(trainer.strategy) is expected
    assert not starts_processes(L.Trainer(accelerator="cpu", logger=False).strategy)


def test_torchrun_inside_of_slurm_says_which_process_this_is(monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # which a Trainer changes
    of_torchrun = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")  # set for Lightning, and so to be removed afterwards
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    for variables, kind, devices in ((SRUN, SLURMEnvironment, 4), (of_torchrun, TorchElasticEnvironment, 8)):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        options = {**dict.fromkeys(NEEDED), "max_steps": 1, "accelerator": "cpu", "devices": 1, "strategy": "auto"}
        trainer = build_trainer(partial(L.Trainer, **options), {}, {})
        assert isinstance(trainer.strategy.cluster_environment, kind)
        assert trainer.num_devices == devices  # whatever `devices` says
        assert isinstance(trainer.strategy, DDPStrategy)


def test_export(command, tmp_path):
    run = command(DEBUG, f"output={tmp_path}/a").results
    made = command(DEBUG, "task=export", f"weights={run['checkpoint']}", f"output={tmp_path}/x").results
    for kind, name in (("safetensors", "EMA"), ("official", "official")):
        scored = command(DEBUG, "task=evaluate", f"weights={made[kind]}", f"output={tmp_path}/{kind}").results
        assert (scored["fid"], scored["kind"]) == (run["fid"], name)
    again = command(DEBUG, "task=export", f"weights={made['official']}", f"output={tmp_path}/y").results
    expected = enat.load(made["folder"]).generate([3, 7])  # the command has said what the official file does not
    assert [x.tobytes() for x in enat.load(again["folder"]).generate([3, 7])] == [x.tobytes() for x in expected]
    assert again["kind"] == "official"


def test_options_of_speed_do_not_keep_a_run_from_going_on():
    settings = {"net": {"width": 8, "attention": {"_target_": "enat.kernels.sdpa"}}, "compile": False}
    others = {"net": {"width": 8, "attention": {"_target_": "enat.kernels.auto"}}, "compile": True}
    before_there_was_a_choice = {"net": {"width": 8}}
    assert without_changing(settings) == without_changing(others) == before_there_was_a_choice
    assert without_changing({"net": {"width": 16}}) != before_there_was_a_choice
    assert fixed_settings({"module": settings, "trainer": {"max_steps": 3}}) == fixed_settings({"module": others})
