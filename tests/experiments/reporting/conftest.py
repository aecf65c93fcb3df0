"""Folders as multiruns leave them."""

import json
from collections.abc import Callable

import pytest


@pytest.fixture
def make_job() -> Callable[..., None]:
    """Writes a job's folder as a multirun does."""

    def make(folder, number, overrides, fid=None, error=None, steps=0, **results):
        # Names of folders tell no order.
        folder = folder / ("one" if number == 1 else str(number))
        metrics = folder / "metrics" / "version_0" / "metrics.csv"
        metrics.parent.mkdir(parents=True)
        (folder / "job.json").write_text(json.dumps({"number": number, "overrides": overrides, "error": error}))
        if fid is not None:
            cost = {"parameters": 1_234_567, "gflop_per_image": 0.5 + number, "images_per_second": 20.0}
            scores = {"fid": fid, "inception_score": 9.0, "inception_score_std": 0.3}
            (folder / "results.json").write_text(json.dumps({**scores, "cost": cost, **results}))
        rows = [f"{step},{2 - step / 10},{3 - step / 10},{fid or 9}" for step in range(1, steps + 1)]
        metrics.write_text("\n".join(["step,train/loss,val/loss,val/fid", *rows]) if steps else "")

    return make


@pytest.fixture
def study_folder(tmp_path, make_job):
    """Two probabilities with two seeds each; of another one, a job failed and one was stopped."""
    folder, number = tmp_path / "study", 0
    for prob, fids in (("0.5", (2.0, 4.0)), ("10", (1.0, 1.5)), ("0", (None, None))):
        for seed, fid in enumerate(fids):
            error = "module.masking: something | was wrong." if fid is None and seed == 0 else None
            overrides = [f"seed={seed}", f"module.masking.reuse_prob={prob}", "experiment=digits", "+sweep=x"]
            make_job(folder, number, overrides, fid, error, steps=5 if fid else 0)
            number += 1
    return folder
