"""A job of a multirun uses the folder of the same job only, and results of the same weights."""

import json
import re

import pytest

from enat.errors import InputError
from experiments.runtime.multirun import refuse_other_jobs, refuse_other_weights

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
