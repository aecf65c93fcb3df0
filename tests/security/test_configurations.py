"""YAML files of others that try to run code, to delete files, or to send secrets. Each is tried by the command line."""

import json
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from enat.errors import InputError
from experiments.runtime.building import build, plan
from experiments.runtime.targets import TARGETS

HEAD = "# @package _global_\ndefaults: [debug, _self_]\n"
MKDIR = "{_target_: os.mkdir, _args_: [RAN]}"
ALIASES = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
TENSORBOARD = "_target_: lightning.pytorch.loggers.TensorBoardLogger"
TRICKS = {  # a YAML file, and what the command says of it
    "aliases that hold one another": (f"a0: &a0 [x]\n{ALIASES}", "has more than 100,000 values"),
    "an alias that holds itself": ("a: &a [*a]", "shared.yaml: an alias in it holds itself."),
    "brackets without an end": (f"a: {'[' * 5000}{']' * 5000}", "shared.yaml: it nests too deep."),
    "a type that does not fit": ('a: !!int ""', "shared.yaml: this is no YAML that can be read (string index out"),
    "no YAML": ("a: [1", "shared.yaml: this is no YAML that can be read (while parsing a flow sequence"),
    "a name for the terminal": (
        'name: "x\\e]0;y\\a"',
        "name=x\\x1b]0;y\\x07: expected a text without control characters",
    ),
    "a folder for the terminal": (
        'hydra: {run: {dir: "RAN\\e[31m"}}',
        "\\x1b[31m: expected a text without control",
    ),
    "an option for the terminal": ('"a\\e[31m": 1', "a\\x1b[31m=1: expected a text without control characters"),
    "a name of the run that is put together": (
        """name: "${oc.select:b.x}"\nb: "${oc.create:'{x: \\"a\\\\e[31m\\"}'}\"""",
        "name=a\\x1b[31m: expected plain characters in one line",
    ),
    "a value that is put together": (
        """notes: "${oc.select:b.x}"\nb: "${oc.create:'{x: \\"a\\\\e[31m\\"}'}\"""",
        "notes=a\\x1b[31m: expected a text without control characters",
    ),
    "a name of two lines": ('name: "x\\ny"', "name=x y: expected plain characters in one line"),
    "a style of logging": (
        'hydra: {job_logging: {formatters: {simple: {format: "{msg}", style: "{"}}}}',
        "hydra.job_logging.formatters.simple.style={: expected %, since",
    ),
    "a function in place of an object": (f"module: {{net: {MKDIR}}}", "module.net._target_=os.mkdir: a configuration"),
    "positional arguments": (
        f"module: {{net: {{_args_: [{MKDIR}]}}}}",
        "module.net._args_: no such option",
    ),
    "an element of a list": (
        f"module: {{optimizer: {{betas: [{MKDIR}, 0.9]}}}}",
        "module.optimizer.betas[0]._target_=os.mkdir",
    ),
    "a key with a dot": (
        f'callbacks: {{"ema.x": {MKDIR}}}',
        "callbacks.ema.x._target_=os.mkdir: a configuration",
    ),
    "a reference to a hidden node": (
        f'hidden: {MKDIR}\nmodule: {{net: "${{oc.select:hidden}}"}}',
        "module.net._target_=os.mkdir: a configuration",
    ),
    "a name that is put together": (
        'a: os.\nmodule: {net: {_target_: "${a}mkdir"}}',
        "module.net._target_=os.mkdir: a configuration",
    ),
    "a node made of text": (
        "module: {net: \"${oc.create:'{_target_: os.mkdir, path: RAN}'}\"}",
        "module.net",
    ),
    "other ways to build": ("module: {net: {_recursive_: false}}", "module.net._recursive_: no such option"),
    "a module that an allowed one has imported": (
        "module: {loss: {_target_: enat.checkpoints.weights.torch.load, f: RAN, weights_only: false}}",
        "module.loss._target_=enat.checkpoints.weights.torch.load: a configuration",
    ),
    "a method with an effect": (
        "module: {loss: {_target_: data.scored_images.ImageWriter.clear}}",
        "module.loss._target_=data.scored_images.ImageWriter.clear: a configuration",
    ),
    "a task within a task": (
        "module: {loss: {_target_: experiments.emoji.emoji, output: RAN, side: 8, per_class: 1}}",
        "module.loss._target_=experiments.emoji.emoji: a configuration",
    ),
    "an object in place of a task": (
        "task: {_target_: lightning.pytorch.loggers.CSVLogger, save_dir: RAN}",
        "task._target_=lightning.pytorch.loggers.CSVLogger: a configuration",
    ),
    "a callback of Hydra": (f"hydra: {{callbacks: {{x: {MKDIR}}}}}", "hydra.callbacks.x._target_=os.mkdir: Hydra may"),
    "a callback of Hydra by reference": (
        f'hidden: {{x: {MKDIR}}}\nhydra: {{callbacks: "${{hidden}}"}}',
        "hydra.callbacks.x._target_=os.mkdir: Hydra may",
    ),
    "a launcher": ("hydra: {launcher: {_target_: os.mkdir}}", "hydra.launcher._target_=os.mkdir: Hydra may"),
    "a factory of logging": (
        'hydra: {job_logging: {handlers: {x: {"()": os.mkdir, path: RAN}}}}',
        "hydra.job_logging.handlers.x.()=os.mkdir: expected",
    ),
    "a class of logging": (
        "hydra: {job_logging: {handlers: {x: {class: logging.handlers.SocketHandler, host: a, port: 1}}}}",
        "hydra.job_logging.handlers.x.class=logging.handlers.SocketHandler: expected",
    ),
    "an object for logging": (
        "hydra: {hydra_logging: {handlers: {x: {class: logging.StreamHandler, stream: 'ext://os.environ'}}}}",
        "hydra.hydra_logging.handlers.x.stream=ext://os.environ: expected",
    ),
    "a log file elsewhere": (
        "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: RAN}}}}",
        "hydra.job_logging.handlers.x.filename=",
    ),
    "a log file above the folder of the run": (
        "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, mode: w, "
        'filename: "${hydra.runtime.output_dir}/../RAN"}}}}',
        "hydra.job_logging.handlers.x.filename=${hydra.runtime.output_dir}/../",
    ),
    "a log file above the folder of the run by reference": (
        "up: ..\nhydra: {job_logging: {handlers: {x: {class: logging.FileHandler, "
        'filename: "${hydra.runtime.output_dir}/${up}/RAN"}}}}',
        "hydra.job_logging.handlers.x.filename=${hydra.runtime.output_dir}/${up}/",
    ),
    "a log file in a folder of the file's choice": (
        "hydra: {runtime: {output_dir: RAN}, hydra_logging: {handlers: {x: {class: logging.FileHandler, "
        'filename: "${hydra.runtime.output_dir}/x.log"}}}}',
        "hydra.runtime.output_dir: Hydra sets this by itself",
    ),
    "an attribute of a handler": (
        "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, delay: true, "
        'filename: "${hydra.runtime.output_dir}/x.log", ".": {baseFilename: RAN}}}}}',
        "hydra.job_logging.handlers.x..={'baseFilename': ",
    ),
    "logging that is there when the run starts": (
        'evil: {x: {"()": os.mkdir, path: RAN}}\nsel: {first: {}}\n'
        "hydra: {job_logging: {handlers: \"${oc.select:'sel.${oc.select:hydra.job.num,first}',${hydra.job.num}}\"}}",
        "hydra.job_logging.handlers=",
    ),
    "settings of Hydra among the options of a sweep": (
        "hydra: {mode: MULTIRUN, sweeper: {params: {+hydra.searchpath: '[pkg://antigravity]'}}}",
        "hydra.sweeper.params: +hydra.searchpath can't be varied by a file",
    ),
    "the environment": ("hydra: {job: {env_set: {LD_PRELOAD: RAN}}}", "hydra.job.env_set: a configuration may not"),
    "a secret in an option": (
        'data: {shards: "http://127.0.0.1:1/${oc.env:WANDB_API_KEY}"}',
        "${oc.env:WANDB_API_KEY}: a configuration may not read the environment",
    ),
    "a secret in the name of a folder": (
        f'logger: {{x: {{{TENSORBOARD}, save_dir: RAN, name: "a-$WANDB_API_KEY"}}}}',
        "logger.x.name=a-$WANDB_API_KEY: this logger may not read the environment",
    ),
    "a secret in the name of a folder by reference": (
        f'a: $\nlogger: {{x: {{{TENSORBOARD}, save_dir: RAN, sub_dir: "${{a}}{{WANDB_API_KEY}}"}}}}',
        "logger.x.sub_dir=${WANDB_API_KEY}: this logger may not read the environment",
    ),
    "the folder of a user": (
        f"logger: {{x: {{{TENSORBOARD}, save_dir: ~root/RAN}}}}",
        "logger.x.save_dir=~root/",
    ),
}

# These need the packages of the extra `sweeps`.
HEAD_OF_SWEEPS = (
    "# @package _global_\n"
    "defaults: [debug, {override /hydra/launcher: joblib}, {override /hydra/sweeper: optuna}, _self_]\n"
)
TRICKS_OF_SWEEPS = {
    "text of a reference": (
        "hydra: {launcher: {temp_folder: '\\${oc.create:\"{_target_: os.mkdir}\"}'}}",
        "hydra.launcher.temp_folder=${oc.create:",
    ),
    "a function of a plugin's module": (
        "hydra: {sweeper: {sampler: {_target_: hydra._internal.core_plugins.bash_completion.os.getcwd}}}",
        "hydra.sweeper.sampler._target_=hydra._internal.core_plugins.bash_completion.os.getcwd: Hydra may",
    ),
    "a function of the sweeper": (
        "objective: {_target_: os.mkdir, path: RAN}\nhydra: {mode: MULTIRUN, sweeper: "
        "{custom_search_space: hydra.utils.instantiate}}",
        "hydra.sweeper.custom_search_space: a file may not set commands",
    ),
    "a formula of joblib": (
        "hydra: {launcher: {pre_dispatch: __import__('os').mkdir('RAN')}}",
        "hydra.launcher.pre_dispatch=__import__",
    ),
    "options that nobody typed": (
        "hydra: {overrides: {hydra: [hydra.sweeper.n_trials=1]}}",
        "hydra.overrides: a file may not say what stands on the command line",
    ),
}


@pytest.mark.parametrize("trick", [*TRICKS, *TRICKS_OF_SWEEPS])
def test_a_yaml_file_runs_no_code(command, tmp_path, monkeypatch, trick):
    if trick in TRICKS_OF_SWEEPS:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    head = HEAD if trick in TRICKS else HEAD_OF_SWEEPS
    text, sentence = {**TRICKS, **TRICKS_OF_SWEEPS}[trick]
    monkeypatch.setenv("WANDB_API_KEY", "the secret")
    ran = tmp_path / "ran"
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/shared.yaml").write_text(head + text.replace("RAN", str(ran)) + "\n")
    outcome = command("--config-dir", str(tmp_path / "conf"), "experiment=shared", f"output={tmp_path / 'run'}")
    assert outcome.status in (1, 2)
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert sentence in outcome.err
    assert "the secret" not in outcome.err
    assert not ran.exists()
    assert not (tmp_path / "run").exists()


LETTERS = st.from_regex(r"[a-z_]{1,6}(\.[a-z_]{1,6}){0,3}", fullmatch=True)
MODULES = sorted({target.rpartition(".")[0] for target in TARGETS})
STARTS = st.sampled_from([*MODULES, "torch", "torch.optim", "torchmetrics", "os", "builtins"])
ENDS = st.sampled_from(["os.system", "torch.load", "importlib.import_module", "open", "subprocess.run", "__import__"])
NAMES = st.one_of(LETTERS, st.builds("{}.{}".format, STARTS, st.one_of(ENDS, LETTERS))).filter(
    lambda name: name not in TARGETS
)


@given(name=NAMES)
def test_other_names_are_refused(name):
    for node in ({"_target_": name}, {"a": [{"_target_": name, "_partial_": True}]}, {"a.b": {"_target_": name}}):
        with pytest.raises(InputError):
            build(plan(OmegaConf.create({"module": node}), "module"))


@pytest.mark.slow
def test_nothing_is_imported_or_called_for_other_names():
    names: list[str] = []

    @given(name=NAMES)
    def collect(name):
        names.append(name)

    collect()
    assert len(names) >= 50
    script = Path(__file__).parent / "watch_targets.py"
    outcome = subprocess.run([sys.executable, script], input=json.dumps(names), capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert json.loads(outcome.stdout) == []


def test_passwords_in_urls_are_not_kept(command, photos, tmp_path):
    """Neither in the files of a run nor in what is printed."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    shards = ["task=tokenize", "tokenizer=vqgan_tiny", f"images={photos}", "num_workers=0", "held_out=0.1"]
    assert command(*shards, f"output={tmp_path}/shards").status == 0
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "shards")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        options = [f"data.shards=http://me:hunter2@{address}", f"data.cache={tmp_path}/cache", "data.num_workers=0"]
        outcome = command(*options, "module.net.width=32", "trainer.max_steps=1", f"output={tmp_path}/run")
        options += ["hydra.output_subdir=hydra", "seed=0"]
        sweep = command("-m", *options, "module.net.width=32", "trainer.max_steps=1", f"output={tmp_path}/run")
        server.shutdown()
    assert outcome.status == 0, outcome.err
    assert sweep.status == 0, sweep.err
    assert "hunter2" not in sweep.out + sweep.err
    folder = tmp_path / "run-sweep"
    assert address in (folder / "multirun.yaml").read_text()
    assert list(folder.glob("*/hydra/overrides.yaml"))
    assert not [file for file in folder.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    files = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    assert any(address.encode() in content for content in files.values())
    assert not [file for file, content in files.items() if b"hunter2" in content]
    assert "hunter2" not in outcome.out + outcome.err
    refused = command(f"data.shards=http://me:hunter2@{address}/x?token=tell", f"output={tmp_path}/other")
    assert refused.status == 1
    assert "hunter2" not in refused.err
    assert "tell" not in refused.err
