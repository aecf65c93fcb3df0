"""Scores that can be trusted: against the libraries' own commands, over processes, and over interruptions."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.resize import make_resizer
from PIL import Image
from skimage import data as photos

from data.toy.digits import DigitFeatures
from enat.features import inception as protocols
from enat.features.inception import InceptionFeatures, to_bytes
from enat.metrics.accumulation import STATE
from experiments import evaluate

ROOT = Path(__file__).parents[2]
DEBUG = ("experiment=debug", "task=evaluate")
SCORES = ("fid", "inception_score", "kid", "precision", "recall", "class_accuracy", "copies")
ALL = {"enat": protocols.enat, "adm": protocols.adm, "clean": protocols.clean}


@pytest.fixture(scope="module")
def png(tmp_path_factory):
    """Two folders of small photos, of which the first have noise."""
    folder = tmp_path_factory.mktemp("png")
    rng = np.random.default_rng(0)
    photo = photos.astronaut()
    for name, strength in {"generated": 120, "real": 0}.items():
        (folder / name).mkdir()
        for number in range(16):
            left, top = rng.integers(0, 448, 2)
            cut = photo[top : top + 64, left : left + 64].astype(int) + rng.normal(0, strength + 1e-9, (64, 64, 3))
            Image.fromarray(cut.round().clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


@pytest.fixture
def scored(command, inception):
    """Runs task=score on a folder with the random Inception."""

    def call(path, *options):
        features = f"metrics.evaluation.features.weights={inception}"
        return command("task=score", "metrics=inception", features, f"scored.path={path}", *options)

    return call


@pytest.fixture(scope="module")
def checkpoint(separate_command, tmp_path_factory):
    """Of a run of the debug experiment, long enough that its images differ."""
    folder = tmp_path_factory.mktemp("checkpoint")
    options = ["trainer.max_steps=20", "callbacks.generation_metrics=null", "callbacks.checkpoint.monitor=val/loss"]
    assert separate_command(DEBUG[0], *options, "metrics.evaluation=null", f"output={folder}").status == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_scores_are_those_of_torch_fidelitys_command(scored, png, inception, tmp_path):
    reference = ["reference=images", f"reference.path={png}/real", "reference.resolution=null"]
    sizes = ["scores.kid.metric.subset_size=10", "scores.kid.metric.subsets=50"]
    scores = "score=[fid,inception_score,kid,precision_recall]"
    ours = scored(f"{png}/generated", "protocol=[adm]", scores, *reference, *sizes, f"output={tmp_path}").results
    program = [str(Path(sys.executable).parent / "fidelity"), "--isc", "--fid", "--kid", "--prc", "--cpu", "--no-cache"]
    folders = ["--input1", f"{png}/generated", "--input2", f"{png}/real"]
    network = ["--feature-extractor", "inception-v3-compat", "--feature-extractor-weights-path", str(inception)]
    subsets = ["--kid-subset-size", "10", "--kid-subsets", "50", "--silent", "--json"]
    ran = subprocess.run([*program, *folders, *network, *subsets], capture_output=True, text=True, check=True)
    theirs = json.loads(ran.stdout[ran.stdout.index("{") :])
    names = {
        "fid": "frechet_inception_distance",
        "inception_score": "inception_score_mean",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, their_name in names.items():
        assert ours[name] == pytest.approx(theirs[their_name], rel=1e-4), name
    assert ours["fid"] > 1
    assert 0 < ours["recall"] + ours["precision"] < 2
    assert ours["protocol"] == "adm"
    assert "fewer" not in ours["notes"][0]
    assert ours["settings"]["features_sha256"] == InceptionFeatures(str(inception), ALL).sha256
    assert ours["reference"]["adm"]["num_images"] == 16
    assert {"command", "versions", "device", "commit"} <= set(ours)


@pytest.mark.parametrize("side", [64, 256, 400])
def test_clean_resizes_as_clean_fid(side):
    """To a hundredth of a grey level; it resizes by Pillow, we by torch, which runs on GPUs too."""
    photo = np.ascontiguousarray(photos.astronaut()[:side, :side])
    expected = make_resizer("PIL", False, "bicubic", (299, 299))(photo)
    ours = protocols.clean(torch.from_numpy(photo).permute(2, 0, 1).unsqueeze(0) / 255)[0] * 128 + 128
    assert np.abs(ours.permute(1, 2, 0).numpy() - expected).max() < 0.01


def test_protocols_differ_as_they_should():
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    at_bytes = to_bytes(images).float() / 255
    assert torch.equal(protocols.adm(images), protocols.adm(at_bytes))
    assert torch.equal(protocols.clean(images), protocols.clean(at_bytes))
    assert not torch.equal(protocols.enat(images), protocols.enat(at_bytes))
    seen = [prepare(images) for prepare in ALL.values()]
    assert all((a - b).abs().max() > 0.1 for a, b in ((seen[0], seen[1]), (seen[1], seen[2]), (seen[0], seen[2])))


def test_spatial_features_are_the_first_channels_of_mixed_6(inception):
    network = InceptionFeatures(str(inception), {"adm": protocols.adm})
    found = []
    hook = network.net.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        spatial = network(torch.rand(2, 3, 64, 64))["adm"]["spatial"]
    hook.remove()
    assert spatial.shape == (2, 2023)
    assert spatial[1, 7 * 18 + 3] == found[-1][1, 3, 1, 1]  # position (1, 1) of 17 x 17, channel 3


@pytest.mark.slow
def test_images_written_score_as_when_generated(command, scored, inception, tmp_path):
    """PNG files and the npz of ADM's format hold what was scored, to the bit."""
    tiny = ["tokenizer=vqgan_tiny", "module.net.width=16", "module.net.num_tokens=64", "module.net.codebook_size=64"]
    torch.manual_seed(0)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "reference.npz", **statistics)
    reference = [f"reference.path={tmp_path}/reference.npz", "protocol=[adm]"]
    sizes = [f"metrics.evaluation.{size}" for size in ("num_images=7", "block_size=5", "batch_size=5")]
    sizes += ["score=[fid,inception_score]", "scores.inception_score.metric.splits=2"]
    features = f"metrics.evaluation.features.weights={inception}"
    run = ["experiment=photos", *tiny, f"output={tmp_path}/run", "trainer.max_steps=1", "trainer.val_check_interval=1"]
    weights = command(*run).results["checkpoint"]
    made = ["experiment=photos", "task=evaluate", *tiny, "metrics=inception", *sizes, *reference, features]
    ours = command(*made, f"weights={weights}", "png=true", "npz=true", f"output={tmp_path}/e").results
    assert len(list((tmp_path / "e" / "images_seed_0").glob("*.png"))) == 7
    archived = np.load(ours["images"][0])["arr_0"]
    assert archived.shape == (7, 32, 32, 3)
    for source in (["scored=folder"], ["scored=npz"]):
        path = tmp_path / "e" / ("images_seed_0" if source == ["scored=folder"] else "images_seed_0.npz")
        again = scored(path, *source, *reference, *sizes[1:], f"output={tmp_path}/again_{path.suffix}").results
        for name in ("fid", "inception_score"):
            assert again[name] == ours[name]


@pytest.mark.slow
def test_two_processes_make_the_same_images(separate_command, checkpoint, tmp_path):
    seen = []
    for count in (1, 2):
        output = tmp_path / str(count)
        options = [f"weights={checkpoint}", "png=true", f"output={output}", "metrics.evaluation.num_images=70"]
        results = separate_command(*DEBUG, *options, ranks=count).results
        assert results["processes"] == count
        files = sorted((output / "images_seed_0").glob("*.png"))
        seen.append(([results[name] for name in SCORES], [np.asarray(Image.open(file)).tobytes() for file in files]))
    assert seen[0][1] == seen[1][1]
    assert len(set(seen[0][1])) > 50
    assert seen[0][0] == seen[1][0]


@pytest.mark.slow
def test_killed_work_goes_on(command, killed, checkpoint, tmp_path):
    """Killed three times without warning, in two sets of images: the same scores and the same bytes."""
    options = [*DEBUG, f"weights={checkpoint}", "metrics.evaluation.num_images=240", "sampler.num_steps=12"]
    options += ["seeds=[0,1]", "npz=true"]
    expected = command(*options, f"output={tmp_path}/a").results
    # In blocks: 130 of the reference, then 24 of each seed. The third start has 10 to 24 left of the first seed.
    for block in (140, 5, 30):
        killed(*options, f"output={tmp_path}/b", at="enat.metrics.accumulation:Record.add", number=block)
    assert (tmp_path / "b/unfinished/seed_0.json").exists()
    assert (tmp_path / "b/unfinished/seed_1" / STATE).exists()
    for other, change in (("sampler.num_steps=11", "sampler.num_steps: 12 before, 11 now"), ("npz=false", "npz: true")):
        refused = sentence(command(*options, other, f"output={tmp_path}/b"))
        assert "the folder holds unfinished work" in refused
        assert change in refused
    outcome = command(*options, "seed=1", f"output={tmp_path}/b")  # a seed that has no part in it is no other work
    assert "of 240 images are there already" in outcome.err
    assert outcome.results["by_seed"] == expected["by_seed"]
    assert outcome.results["images_sha256"] == expected["images_sha256"]
    for seed in (0, 1):
        files = [tmp_path / run / f"images_seed_{seed}.npz" for run in "ab"]
        assert files[0].read_bytes()[200:] == files[1].read_bytes()[200:]
        assert np.load(files[0])["arr_0"].shape == (240, 8, 8, 3)
    assert not (tmp_path / "b" / "unfinished").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_killed_ranks_go_on(separate_command, killed, checkpoint, tmp_path, ranks):
    """Rank by rank killed and started again: equal bytes of all scores on 1, 2 and 3 ranks."""
    options = [*DEBUG, f"weights={checkpoint}", "metrics.evaluation.num_images=210"]
    expected = separate_command(*options, f"output={tmp_path}/a").results  # with as many threads as the ranks
    killed(*options, f"output={tmp_path}/b", at="enat.metrics.accumulation:Record.add", number=140, ranks=ranks)
    results = separate_command(*options, f"output={tmp_path}/b", ranks=ranks).results
    assert results["processes"] == ranks
    assert results["scores"] == expected["scores"]
    assert results["images_sha256"] == expected["images_sha256"]


@pytest.mark.slow
def test_killed_when_all_is_scored(command, checkpoint, monkeypatch, tmp_path):
    options = [*DEBUG, f"weights={checkpoint}", "seeds=[0,1]"]
    expected = command(*options, f"output={tmp_path}/a").results

    def killed(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(evaluate, "print_scores", killed)
    with pytest.raises(RuntimeError, match="killed"):
        command(*options, f"output={tmp_path}/b")
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    again = command(*options, f"output={tmp_path}/b").results
    for name in ("by_seed", "reference", "notes", "images_sha256"):
        assert again[name] == expected[name], name


def test_seeds(command, checkpoint, tmp_path):
    options = [*DEBUG, f"weights={checkpoint}"]
    both = command(*options, "seeds=[3,4]", f"output={tmp_path}/a").results
    single = command(*options, "seed=4", f"output={tmp_path}/b").results
    fids = [both["by_seed"][seed]["digits"]["fid"] for seed in ("3", "4")]
    assert single["fid"] == fids[1] != fids[0]
    assert both["fid"] == pytest.approx(np.mean(fids))
    assert json.dumps(both["num_images"]) == "40"
    assert both["fid_std_over_seeds"] == pytest.approx(np.std(fids, ddof=1))


def test_weights_cast_once(command, checkpoint, tmp_path):
    """In half precision the network is another, but not the tokenizer it is scored with, nor the noise."""
    runs = {
        precision: command(
            *DEBUG, f"weights={checkpoint}", f"fabric.precision={precision}", f"output={tmp_path}/{precision}"
        ).results
        for precision in ("32-true", "bf16-true")
    }
    full, half = runs["32-true"], runs["bf16-true"]
    assert half["network_precision"] == "bf16-true"
    assert half["tokenizer_sha256"] == full["tokenizer_sha256"]
    assert half["images_sha256"] != full["images_sha256"]
    assert half["fid"] == pytest.approx(full["fid"], rel=0.2)


@pytest.mark.slow
def test_reconstruction(scored, command, inception, png, tmp_path):
    """Decoded shards as the reference, and what the tokenizer costs as a figure of its own."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one").symlink_to(png / "real")
    shards = ["task=tokenize", "tokenizer=vqgan_tiny", "num_workers=0", "held_out=0.1"]
    written = command(*shards, f"images={tmp_path}/images", f"output={tmp_path}/shards").results["samples"]
    features = f"features.weights={inception}"
    made = ["task=statistics", features, f"scored.path={png}/real", "scored.resolution=32", "protocol=[adm]"]
    real = command(*made, f"output={tmp_path}/statistics").results["statistics"]
    decoded = ["scored=shards", "tokenizer=vqgan_tiny", "protocol=[adm]", "score=[fid]"]
    direct = scored(f"{tmp_path}/shards", *decoded, f"reference.path={real}", f"output={tmp_path}/r").results
    assert direct["num_images"] == written["train"] < 16
    assert direct["fid"] > 1
    reference = ["reference=shards", f"reference.images.path={tmp_path}/shards", f"reference.real.path={real}"]
    of_real = scored(
        f"{png}/real", "tokenizer=vqgan_tiny", "protocol=[adm]", *reference, "scored.resolution=32", "score=[fid]",
        f"output={tmp_path}/t",
    ).results  # fmt: skip
    assert of_real["reconstruction_fid"] == pytest.approx(direct["fid"], rel=1e-6)
    wrong = scored(f"{png}/real", "protocol=[clean]", f"reference.path={real}", f"output={tmp_path}/u")
    assert (wrong.status, "its statistics are of protocol adm, not clean" in wrong.err) == (1, True)
    torch.save({name: tensor + 1 for name, tensor in torch.load(inception).items()}, tmp_path / "other.pth")
    other = scored(f"{png}/real", f"reference.path={real}", f"metrics.evaluation.features.weights={tmp_path}/other.pth")
    assert (other.status, "made with other features" in other.err) == (1, True)


def sentence(outcome):
    assert outcome.status in (1, 2)
    assert outcome.err.strip().splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in outcome.err
    return outcome.err


@pytest.mark.slow
def test_bad_input(scored, command, checkpoint, inception, png, tmp_path):
    np.savez(tmp_path / "small.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    np.savez(tmp_path / "complex.npz", mu=np.zeros(2048), sigma=np.eye(2048) * 1j)
    np.savez(tmp_path / "negative.npz", mu=np.zeros(2048), sigma=-np.eye(2048))
    np.savez(tmp_path / "lopsided.npz", mu=np.zeros(2048), sigma=np.triu(np.ones((2048, 2048))))
    np.savez(tmp_path / "misfit.npz", mu=np.zeros(2048), sigma=np.eye(3))
    np.savez(tmp_path / "fine.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.save(tmp_path / "array.npy", np.zeros(3))
    archive = tmp_path / "damaged.npz"
    np.savez(archive, np.zeros((30, 8, 8, 3), dtype=np.uint8))
    archive.write_bytes(archive.read_bytes().replace(bytes(40), bytes(39) + b"x", 1))
    (tmp_path / "empty").mkdir()
    out = f"output={tmp_path}/o"
    folder = f"{png}/real"
    assert "reference.path=" in sentence(scored(folder, "reference.path=/no/file.npz", out))
    for name, expected in {
        "small": "64 features; the network has 2048",
        "nan": "holds NaN",
        "complex": "expected both mu and sigma",
        "negative": "sigma is no covariance",
        "lopsided": "sigma is no covariance",
        "misfit": "do not fit",
    }.items():
        assert expected in sentence(scored(folder, f"reference.path={tmp_path}/{name}.npz", out))
    assert "expected an .npz file" in sentence(scored(folder, f"reference.path={tmp_path}/array.npy", out))
    fine = f"reference.path={tmp_path}/fine.npz"
    assert "the file is damaged" in sentence(scored(archive, "scored=npz", fine, f"output={tmp_path}/n"))
    assert "protocol=[]: expected at least one" in sentence(scored(folder, fine, "protocol=[]", out))
    good = ["reference=images", f"reference.path={folder}", "reference.resolution=null", out]
    assert "found 0 images; expected at least 2" in sentence(scored(tmp_path / "empty", *good))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for side in (8, 9):
        Image.new("RGB", (side, 8)).save(mixed / f"{side}.png")
    few = ["scores.inception_score.metric.splits=2", out]
    assert "of another size (8x8 and 9x8)" in sentence(scored(mixed, *good, *few))
    apart = ["metrics.evaluation.block_size=1", "metrics.evaluation.batch_size=1", f"output={tmp_path}/apart"]
    assert "of different sizes (8x8 and 9x8, from image 1 on)" in sentence(
        scored(mixed, f"reference.path={tmp_path}/fine.npz", *few[:1], *apart)
    )
    assert "16 images: expected at least two, and one for each" in sentence(
        scored(
            folder,
            *good[:-1],
            "scores.inception_score.metric.splits=20",
            f"output={tmp_path}/p",
        )
    )
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(checkpoint.read_bytes()[:-2000])
    assert "truncated or no checkpoint" in sentence(command(*DEBUG, f"weights={cut}"))
    inception_cut = tmp_path / "inception.pth"
    inception_cut.write_bytes(inception.read_bytes()[:1000])
    assert "truncated or no checkpoint" in sentence(
        scored(folder, *good[:-1], f"metrics.evaluation.features.weights={inception_cut}")
    )
    assert "fabric.precision=64-true: expected 32-true" in sentence(
        command(*DEBUG, f"weights={checkpoint}", "fabric.precision=64-true")
    )
    assert "expected different integers" in sentence(command(*DEBUG, f"weights={checkpoint}", "seeds=[1,1]"))


def test_an_error_on_one_of_two_processes_ends_both(separate_command, inception, png, tmp_path):
    """Each block is on one process: the broken one's sentence comes from all, and none hangs."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8 + (number == 3))).save(folder / f"{number}.png")
    np.savez(tmp_path / "fine.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    sizes = [f"metrics.evaluation.{size}" for size in ("block_size=2", "batch_size=2")]
    sizes += ["scores.inception_score.metric.splits=1"]
    features = f"metrics.evaluation.features.weights={inception}"
    given = ["metrics=inception", features, f"scored.path={folder}", f"reference.path={tmp_path}/fine.npz", *sizes]
    ended = separate_command("task=score", *given, f"output={tmp_path}/o", ranks=2)
    assert ended.status == 1
    assert "Error: " in ended.err
    assert "of another size (8x8 and 8x9)" in ended.err
    assert "Traceback" not in ended.err


def test_a_resolution_added_after_images_of_several_sizes(scored, tmp_path):
    """The features of the reference are kept, and nothing of the images was done."""
    for part, sides in (("images", (8, 9)), ("real", (16, 16))):
        (tmp_path / part).mkdir()
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (16, sides[number % 2], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    options = ["reference=images", f"reference.path={tmp_path}/real", "score=[fid]", f"output={tmp_path}/o"]
    refused = scored(tmp_path / "images", *options)
    assert "of another size (9x16 and 8x16)" in refused.err or "of another size (8x16 and 9x16)" in refused.err
    reference = tmp_path / "o/unfinished/reference/state.pt"
    before = reference.stat().st_mtime_ns  # it would be another if it were computed again
    other_side = scored(tmp_path / "images", *options, "scored.resolution=15")
    assert "the images are 15x15, those of the reference 16x16" in other_side.err
    assert reference.stat().st_mtime_ns == before
    finished = scored(tmp_path / "images", *options, "scored.resolution=16")
    assert finished.status == 0, finished.err


def test_classes_that_do_not_divide_the_images(command, checkpoint, tmp_path):
    options = [*DEBUG, f"weights={checkpoint}", "metrics.evaluation.num_images=33", f"output={tmp_path}"]
    assert "the first 3 classes have one image more" in command(*options).results["notes"][-1]


@pytest.mark.slow
def test_a_crash_of_the_scores_loses_nothing(command, monkeypatch, tmp_path):
    """Training goes on from the last validation, and ends with the weights of an uninterrupted run."""
    run = ["experiment=debug", "trainer.val_check_interval=1"]
    expected = command(*run, f"output={tmp_path}/a").results
    forward, calls = DigitFeatures.forward, []

    def crash(self, images):
        calls.append(1)
        if len(calls) > 136:  # 130 blocks of the reference, 4 of the first validation, 2 of the second
            raise RuntimeError("a crash")
        return forward(self, images)

    monkeypatch.setattr(DigitFeatures, "forward", crash)
    with pytest.raises(RuntimeError, match="a crash"):
        command(*run, f"output={tmp_path}/b")
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert (tmp_path / "b" / "checkpoints" / "last.ckpt").exists()
    results = command(*run, f"output={tmp_path}/b").results
    assert [results[name] for name in SCORES] == [expected[name] for name in SCORES]
