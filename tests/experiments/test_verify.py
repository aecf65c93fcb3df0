"""Parity with the official program, through the task; and that the task can fail."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

GOLDEN = "tests/golden"


def test_golden_parity(command):
    outcome = command("task=verify", f"golden={GOLDEN}")
    assert outcome.status == 0
    rows = {row["quantity"]: row for row in outcome.results["worst"]}
    assert all(row["passed"] for row in rows.values())
    limits = {
        "logits": 1e-4,
        "features": 1e-4,
        "loss with": 1e-5,
        "relative gradients": 1e-4,
        "different tokens": 0,
    }
    for word, limit in limits.items():
        matching = [row for name, row in rows.items() if word in name]
        assert matching
        assert all(row["error"] <= limit for row in matching), word
    assert all(0.2 < share <= 1 for share in outcome.results["bfloat16_agreement"].values())


@pytest.mark.parametrize(
    ("file", "tensor", "failing"),
    [
        ("model", "blocks.1.attn.kv.B.weight", "step 1 without reuse: logits"),
        ("model", "prev_proj.mlp.fc2.bias", "step 2 with reuse: features"),
        ("ema", "blocks.0.attn.q.weight", "loss with reuse"),
        ("gradients", "reuse.blocks.0.attn.kv.A.weight", "88 relative gradients with reuse"),
        ("generation", "8.inputs", "8 steps, different tokens given to a step"),
    ],
)
def test_a_wrong_tensor_is_found(command, tmp_path, file, tensor, failing):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / f"{file}.safetensors")
    tensors[tensor].view(-1)[: tensors[tensor].numel() // 2] += 1
    save_file(tensors, folder / f"{file}.safetensors")
    outcome = command("task=verify", f"golden={folder}", f"output={tmp_path}/out")
    assert outcome.status == 1
    assert failing in {row["quantity"] for row in outcome.results["worst"] if not row["passed"]}


def test_missing_gradient_is_found(command, tmp_path):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    tensors = load_file(folder / "gradients.safetensors")
    del tensors["plain.norm.bias"]
    save_file(tensors, folder / "gradients.safetensors")
    outcome = command("task=verify", f"golden={folder}", f"output={tmp_path}/out")
    assert outcome.status == 1
    failed = [row["quantity"] for row in outcome.results["worst"] if not row["passed"]]
    assert failed == ["gradients that only one program has, without reuse"]
    for _ in range(2):  # the second time, the results are there already
        job = command("-m", "task=verify", f"golden={folder}", f"hydra.sweep.dir={tmp_path}/sweep")
        assert job.status == 1
        assert "task=verify: this job did not pass, as its results.json says." in job.err
    total = len(outcome.results["worst"])
    assert f"{total - 1} of {total} pass." in outcome.out


def test_missing_file(command, tmp_path):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    (folder / "generator_8.safetensors").unlink()
    outcome = command("task=verify", f"golden={folder}", f"output={tmp_path}/out")
    assert outcome.status == 1
    assert outcome.err.strip() == f"Error: golden={folder}: generator_8.safetensors is missing or broken."
