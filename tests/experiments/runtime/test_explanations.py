"""Errors of libraries and of the machine, each put into one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb.errors

from enat.errors import InputError
from experiments.runtime.command_line import explain
from experiments.runtime.job_names import short
from experiments.runtime.launch import device_for

ROOT = Path(__file__).parents[3]


def test_a_missing_login_of_wandb():
    sentence, status = explain(wandb.errors.UsageError("api_key not configured (no-tty)"))
    assert (sentence, status) == (
        "logger=wandb: api_key not configured (no-tty); `wandb login` signs in, and logger.wandb.offline=true needs no "
        "account.",
        1,
    )


def test_an_operation_that_apple_gpus_lack():
    error = NotImplementedError("The operator 'aten::x' is not implemented for the MPS device. Please open an issue")
    assert explain(error)[0] == (
        "trainer.accelerator=mps: The operator 'aten::x' is not implemented for the MPS device; expected cpu, or "
        "PYTORCH_ENABLE_MPS_FALLBACK=1."
    )
    assert explain(NotImplementedError("something of our own"))[0] is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "of the GPU is not enough (CUDA"),
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "of this machine is not enough (Unable to allocate"),
    ],
)
def test_memory_that_is_used_up(error, sentence):
    told, status = explain(error)
    assert status == 1
    assert told.startswith(f"the memory {sentence}")
    assert "trainer.accumulate_grad_batches" in told


def test_memory_that_torch_does_not_get():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert explain(caught.value)[0].startswith("the memory of this machine is not enough ([enforce fail")


def test_a_folder_named_by_options_fits_a_file_system():
    """Where names have 255 bytes at most, and a letter may have three or four."""
    names = {short([f"classes={letter * 200}"]) for letter in ("a", "長", "𝄞")}
    assert len(names) == 3
    assert all(len(name.encode()) <= 150 for name in names)


def test_an_interrupted_task_says_whether_it_goes_on():
    assert explain(KeyboardInterrupt(), ["run.py"])[0] == "interrupted; the same command goes on from there."
    assert explain(KeyboardInterrupt(), ["run.py", "task=sample"])[0].endswith("goes on from there.")
    assert explain(KeyboardInterrupt(), ["run.py", "task=benchmark"])[0] == "interrupted."


def test_no_apple_gpu(monkeypatch):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(
        InputError, match=r"trainer\.accelerator=mps: there is no Apple GPU here; expected cpu or auto\."
    ):
        device_for("mps")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert device_for("mps").type == "mps"
    assert device_for("auto").type != "mps"  # nothing was run there yet


def test_a_reader_that_has_ended():
    code = "from experiments.runtime.command_line import explain_errors\nwith explain_errors([]): raise BrokenPipeError"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
