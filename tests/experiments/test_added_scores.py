"""Metrics of torchmetrics that a YAML alone adds: in training's validation and in task=evaluate, on 1 and 2 ranks."""

from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SCORES = "score=[fid,own_mifid,own_variation]"
YAMLS = {
    "own_mifid": """
# @package scores
mifid:
  _target_: enat.metrics.view.OnView
  view: pool
  metric:
    _target_: torchmetrics.image.MemorizationInformedFrechetInceptionDistance
    feature:
      _target_: enat.metrics.view.AsTheyAre
""",
    "own_variation": """
# @package scores
variation:
  _target_: enat.metrics.view.OnView
  view: images
  metric:
    _target_: torchmetrics.image.TotalVariation
    reduction: mean
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the YAMLs, for Hydra's `--config-dir`."""
    folder = tmp_path_factory.mktemp("added")
    (folder / "conf" / "score").mkdir(parents=True)
    for name, text in YAMLS.items():
        (folder / "conf" / "score" / f"{name}.yaml").write_text(text.lstrip())
    return folder


@pytest.fixture
def run(separate_command, folder):
    """Runs the debug experiment with the added scores on a number of ranks; returns the results."""

    def call(ranks: int, *arguments: str) -> dict:
        options = [f"--config-dir={folder}/conf", "experiment=debug", SCORES]
        ended = separate_command(*options, *arguments, ranks=ranks)
        assert ended.status == 0, ended.err
        return ended.results

    return call


@pytest.mark.slow
def test_added_by_yaml_alone(run, folder):
    trained = run(1, f"output={folder}/train")
    logged = pd.read_csv(folder / "train/metrics/version_0/metrics.csv")
    for name in ("mifid", "variation"):
        assert logged[f"val/{name}"].notna().sum() == 2  # one for each validation
        assert logged[f"val/{name}"].nunique() == 2
    weights = f"weights={trained['checkpoint']}"
    alone, together = (run(n, "task=evaluate", weights, f"output={folder}/evaluate_{n}") for n in (1, 2))
    assert together["processes"] == 2
    names = ("fid", "mifid", "variation")
    assert [together[name] for name in names] == [alone[name] for name in names] == [trained[name] for name in names]
    assert alone["mifid"] == pytest.approx(alone["fid"], rel=1e-5)  # no image is near to one of the reference
    assert 0 < alone["variation"] < 64


@pytest.mark.slow
def test_validation_on_two_ranks(run, folder):
    """The network differs by sums in another order, and so its images: where it is not trained, all is equal."""
    untrained = ["module.optimizer.lr=0", "module.mask_groups=2", "metrics.untrained=false", "metrics.held_out=null"]
    ddp = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true"]
    rows = []
    for ranks, options in ((1, []), (2, ddp)):
        output = folder / f"validated_{ranks}"
        run(ranks, f"output={output}", *untrained, *options)
        logged = pd.read_csv(output / "metrics/version_0/metrics.csv")
        rows.append(logged[["val/fid", "val/mifid", "val/variation"]].dropna())
    assert len(rows[0]) == 2
    assert rows[0].values.tolist() == rows[1].values.tolist()
