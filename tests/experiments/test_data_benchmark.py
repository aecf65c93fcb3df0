"""The benchmark of the stream of shards: it counts samples and bytes correctly."""

import numpy as np

from data.shards import ShardPacks
from experiments.data_benchmark import full_pass, synthetic_shards

OPTIONS = ["samples=1000", "seconds=0.01", "side=4", "read_batch=64"]


def test_small_benchmark(command, tmp_path):
    options = [*OPTIONS, f"output={tmp_path}"]
    outcome = command("task=data_benchmark", *options)
    assert outcome.status == 0, outcome.err
    results = outcome.results
    assert results["each_sample_once"]
    assert results["ratio"] == results["samples_per_second"] / results["plain_samples_per_second"]
    assert results["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("shards/train-*.tar"))
    (tmp_path / "results.json").unlink()
    assert command("task=data_benchmark", *options).status == 0  # again
    refused = command("task=data_benchmark", *options, "samples=1", f"output={tmp_path}/one")  # takes no time to read
    assert "samples=1: expected a value greater than or equal to 2" in refused.err


def test_shards_of_somebody_else_stay(command, tmp_path):
    manifest = synthetic_shards(tmp_path, samples=10, side=2)
    (tmp_path / "shards").mkdir()
    synthetic_shards(tmp_path / "shards", samples=10, side=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.tar")}
    outcome = command("task=data_benchmark", *OPTIONS, f"output={tmp_path}")
    assert f"{tmp_path}/shards: this exists already and is of another program" in outcome.err
    manifest.tokenizer_sha256 = "abc"
    manifest.save(tmp_path)
    outcome = command("task=data_benchmark", *OPTIONS, f"output={tmp_path}")
    assert outcome.status == 1
    assert f"output={tmp_path}: the folder holds shards of images; expected another output=DIR." in outcome.err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.tar")} == before


def test_a_lost_sample_would_be_seen(tmp_path):
    manifest = synthetic_shards(tmp_path, samples=250, side=2, shard_size=100, pack_size=20)
    packs = ShardPacks(tmp_path, manifest, "train")
    read = packs.read
    packs.read = lambda pack: tuple(np.concatenate([x[:1], x[:-1]]) for x in read(pack))  # last lost, first twice
    counts = full_pass(packs, batch_size=16, ranks=2, workers=1)
    assert sorted(set(counts.tolist())) == [0, 1, 2]
