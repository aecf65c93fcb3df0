"""Gives all tests the command line, in this process and in others, kills at a given moment, and small inputs."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import separate_processes
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import settings
from omegaconf import DictConfig
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

import run
from data.toy import photos as toy_photos
from enat.building import build_from_settings
from enat.checkpoints.selection import select_state
from enat.checkpoints.weights import read_file
from enat.net import ENAT
from enat.pipeline import Pipeline
from experiments.benchmarking import workload
from experiments.runtime.command_line import explain_errors

ROOT = Path(__file__).parent.parent

# The same examples on each run and no limits of time: a test's outcome depends on the code alone.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2  # workers would wait for each other's cores
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of processes that tests start, which must compute the same bits
torch.set_num_threads(THREADS)
RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
workload.COST_SECONDS = 0.01  # no test looks at the speed in the results of a run


@dataclass
class Outcome:
    """Holds the exit status and the output of a command."""

    status: int
    out: str
    err: str

    @property
    def results(self) -> dict:
        return json.loads(self.out.strip().splitlines()[-1])


@pytest.fixture
def command(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Runs `python run.py ARGUMENTS` in this process."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> Outcome:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        ranks_before = {name: os.environ.get(name) for name in RANKS}
        status = 0
        try:
            with explain_errors(arguments):
                run.main()
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        HydraConfig.instance().cfg = None  # which resolvers would read in a later test
        captured = capsys.readouterr()
        if torch.distributed.is_initialized():  # by a strategy for several devices on the only one
            torch.distributed.destroy_process_group()
        for name, value in ranks_before.items():  # Lightning leaves its own, and a later test would wait for others
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def separate_command() -> Callable[..., Outcome]:
    """Runs `run.py ARGUMENTS` in a process of its own, or as several ranks, which `command` can't do."""

    def call(*arguments: str, ranks: int = 1, environment: Mapping[str, str] = MappingProxyType({})) -> Outcome:
        return Outcome(*separate_processes.run(arguments, environment, ranks))

    return call


@pytest.fixture(scope="session")
def killed() -> Callable[..., Outcome]:
    """Runs `run.py ARGUMENTS` and signals it at a given call of a function; see `separate_processes.Kill`.

    For example, `killed("experiment=debug", at="enat.module:MaskedTokenModule.training_step", number=3)` kills training
    at the start of its third step. Of several ranks, each counts its own calls. Fails the test if the process should
    have been killed and was not.
    """

    def call(
        *arguments: str, at: str, number: int = 1, sent: signal.Signals = signal.SIGKILL, ranks: int = 1
    ) -> Outcome:
        outcome = Outcome(*separate_processes.run(arguments, {}, ranks, separate_processes.Kill(at, number, sent)))
        if sent == signal.SIGKILL:
            assert outcome.status == -signal.SIGKILL, f"not killed: {at} had no call {number}\n{outcome.err}"
        return outcome

    return call


@pytest.fixture(scope="session")
def compose_config() -> Callable[..., DictConfig]:
    """Composes the configuration as the command line does, without running it."""

    def call(*overrides: str) -> DictConfig:
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("config", list(overrides))

    return call


@pytest.fixture(scope="session")
def same_training() -> Callable[[Path, Path], bool]:
    """Says whether the newest checkpoints of two runs have the same bits: weights, averages and optimiser's moments."""

    def state(folder: Path) -> dict[str, torch.Tensor]:
        content = read_file(folder / "checkpoints" / "last.ckpt")
        moments = content["optimizer_states"][0]["state"]
        return {
            **content["state_dict"],
            **{f"ema.{name}": tensor for name, tensor in select_state(content)[0].items()},
            **{f"{i}.{name}": torch.as_tensor(value) for i, state in moments.items() for name, value in state.items()},
        }

    def call(first: Path, second: Path) -> bool:
        expected = state(first)
        actual = state(second)
        return expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)

    return call


@pytest.fixture(scope="session")
def make_net() -> Callable[..., ENAT]:
    """Makes a small untrained network whose output depends on its input (a fresh one's blocks are identities)."""

    def make(kind: type[ENAT] = ENAT, **options: Any) -> ENAT:
        torch.manual_seed(0)
        sizes = {"codebook_size": 12, "num_classes": 5, "num_tokens": 16, "width": 32, "num_heads": 4}
        net = kind(**{**sizes, "encoder_depth": 2, "decoder_depth": 2, **options})
        with torch.no_grad():
            for block in net.blocks:
                block.modulation.weight.normal_(std=0.1)
                block.modulation.bias.normal_(std=0.1)
            net.token_embedding.weight.normal_(std=0.5)
        return net.eval()

    return make


@pytest.fixture
def small_net(make_net) -> ENAT:
    """A small ENAT."""
    return make_net()


@pytest.fixture(scope="session")
def make_pipeline(make_net) -> Callable[..., Pipeline]:
    """Makes a small untrained pipeline whose tokenizer has weights: 4 x 4 tokens of 12 codes, images of 8 pixels."""

    def make(**options: Any) -> Pipeline:
        net = make_net()
        schedule = {"_target_": "enat.schedules.cosine", "_partial_": True}
        constant = {"_target_": "enat.schedules.constant", "_partial_": True}
        sampler = {
            "_target_": "enat.sampler.Sampler",
            **{"num_steps": 3, "guidance_scale": 2, "sampling_temperature": 1.0, "gumbel_temperature": 1.0},
            **{"mask_schedule": schedule, "guidance_schedule": constant},
            **{"sampling_temperature_schedule": constant, "gumbel_temperature_schedule": constant},
        }
        tokenizer = {
            **{"_target_": "enat.tokenizers.vqgan.VQGAN", "codebook_size": 12, "code_width": 8, "channels": 32},
            **{"multipliers": [1, 1], "num_blocks": 1, "resolution": 8, "weights": None},
        }
        settings = {
            "name": "small",
            "module": {"net": {"_target_": "enat.net.ENAT", **net.sizes}},
            "sampler": sampler,
            "tokenizer": tokenizer,
        }
        parts = (net, build_from_settings(sampler), build_from_settings(tokenizer))
        names = ["ant", "bee", "cat", "dog", "emu"]
        return Pipeline(*parts, names, {"settings": settings, "weights_kind": "EMA", **options})

    return make


@pytest.fixture(scope="session")
def inception(tmp_path_factory) -> Path:
    """A file like the FID Inception's, with random weights."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        net = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)  # or the signal fades on its way through
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Makes a folder of four class folders with 15 small photos each; tests must not change it."""
    folder = tmp_path_factory.mktemp("photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_photos, "CROPS", 15)
        toy_photos.cut_photos(folder)
    return folder
