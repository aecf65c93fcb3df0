"""Training a tokenizer on a folder of photos, going on with it, and training a network on its tokens."""

import shutil

import pandas as pd
import pytest
import torch
from hydra.utils import instantiate

import enat
from enat.checkpoints.weights import read_file
from enat.metrics.reconstruction import CodebookUse
from enat.tokenizers import module as tokenizer_module

TINY = ["experiment=tokenizer", "tokenizer.channels=32", "tokenizer.multipliers=[1,1]", "tokenizer.resolution=16"]
TINY += ["data.batch_size=8", "data.num_workers=0", "data.held_out=0.2", "trainer.val_check_interval=3"]
TINY += ["trainer.max_steps=6", "callbacks.reconstruction_grid.num_images=4", "callbacks.checkpoint.every_n_steps=2"]
VQ = ["quantizer@tokenizer.quantizer=vq", "tokenizer.quantizer.codebook_size=32"]
DISCRIMINATOR = [
    "+discriminator@module.loss.adversarial=patches",
    "module.loss.adversarial.first_step=2",
    "module.loss.adversarial.channels=4",
]


def test_it_learns_and_says_how_well(command, photos, tmp_path):
    options = [
        *TINY,
        f"data.images={photos}",
        f"output={tmp_path}",
        "trainer.max_steps=60",
        "module.optimizer.lr=0.003",
    ]
    trained = command(*options, "trainer.val_check_interval=60", "callbacks.ema.decay=0.9")
    assert trained.status == 0, trained.err
    results = trained.results
    assert results["psnr"] > 12  # a grey picture has about 11 here
    assert 0 < results["codes_used"] <= 1
    assert 1 <= results["perplexity"] <= 1000
    assert "48 training images and 12 held out, cropped to 16 px" in trained.out
    assert (tmp_path / "reconstructions" / "step_0000060.png").exists()
    again = command(*options, "trainer.val_check_interval=60", "callbacks.ema.decay=0.9")
    assert "is finished: 60 steps" in again.out
    assert again.results["psnr"] == results["psnr"]


def test_a_training_that_has_diverged_is_no_success(command, photos, tmp_path):
    diverging = ["callbacks.guard=null", "module.optimizer.lr=1e30", "metrics.evaluation=null"]
    outcome = command(*TINY, *diverging, f"data.images={photos}", f"output={tmp_path}")
    assert outcome.status == 1
    assert "training has diverged, for weights are NaN or infinite; they are not saved" in outcome.err
    for path in tmp_path.glob("checkpoints/*.ckpt"):
        assert all(weight.isfinite().all() for weight in read_file(path)["state_dict"].values())


@pytest.mark.parametrize("quantizer", [[], VQ], ids=["fsq", "vq"])
def test_a_training_that_has_diverged_with_finite_weights(quantizer, command, photos, tmp_path):
    """The weights are large, and what is computed with them is not finite: tokens of that are no numbers."""
    diverging = ["module.optimizer.lr=1e20", "trainer.max_steps=1", "trainer.val_check_interval=1"]
    diverging += ["callbacks.ema=null", f"data.images={photos}", f"output={tmp_path}"]
    outcome = command(*TINY, *quantizer, *diverging)
    assert outcome.status == 1
    assert "training has diverged, for the tokenizer turns held-out images into NaN or infinite values" in outcome.err


def test_a_killed_run_goes_on_with_the_same_bits(command, killed, same_training, photos, tmp_path):
    """With a codebook that restarts entries at random, and a discriminator."""
    run = [*TINY, *VQ, *DISCRIMINATOR, f"data.images={photos}", "tokenizer.quantizer.restart_below=50"]
    whole = command(*run, f"output={tmp_path}/whole")
    assert whole.status == 0, whole.err
    killed(*run, f"output={tmp_path}/parts", at="enat.tokenizers.module:TokenizerModule.training_step", number=6)
    goes_on = command(*run, f"output={tmp_path}/parts")
    assert "Going on from" in goes_on.out
    assert same_training(tmp_path / "whole", tmp_path / "parts")
    assert goes_on.results["psnr"] == whole.results["psnr"]


@pytest.mark.parametrize("quantizer", [[], VQ], ids=["fsq", "vq"])
def test_a_decoder_alone(quantizer, command, photos, tmp_path):
    """Encoder and codebook keep their bits, in the average too; the decoder does not."""
    run = [*TINY, *quantizer, f"data.images={photos}"]
    command(*run, f"output={tmp_path}/a")
    first = tmp_path / "a/checkpoints/last.ckpt"
    decoder = [*run, "module.decoder_only=true", f"output={tmp_path}/b"]
    decoder_of = [*decoder, f"tokenizer.weights={first}", "module.optimizer.weight_decay=0.1"]
    trained = command(*decoder_of)
    assert trained.status == 0, trained.err
    before, after = tokenizer_of(first), tokenizer_of(trained.results["checkpoint"])
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]) == (not name.startswith("decoder."))
    assert after.fingerprint() != before.fingerprint()
    after.resolution = 32
    assert after.has_other_codes(before.fingerprints())
    assert not after.has_other_codes(before.fingerprints(), resolution=16)  # as in the file
    (group,) = read_file(trained.results["checkpoint"])["optimizer_states"][0]["param_groups"]
    assert len(group["params"]) == len(list(after.decoder.parameters()))  # several processes wait for no others
    longer = command(*decoder_of, f"trainer.max_steps={trained.results['steps'] + 1}")
    assert "Going on from" in longer.out, longer.err
    other = tmp_path / "other.ckpt"
    torch.save({**read_file(first), "note": "of other content"}, other)
    refused = command(*decoder, f"tokenizer.weights={other}", "module.optimizer.weight_decay=0.1")
    assert "a run that started from other weights (tokenizer.weights.sha256: " in refused.err
    refused = command(*decoder, f"output={tmp_path}/c")
    assert "module.decoder_only=true: expected tokenizer.weights=FILE, whose decoder is trained." in refused.err


def test_training_goes_on_from_a_file_with_its_architecture(command, photos, tmp_path):
    """The command need not repeat the sizes of the tokenizer, and may change its resolution."""
    command(*TINY, f"data.images={photos}", f"output={tmp_path}/a")
    plain = [option for option in TINY if not option.startswith("tokenizer.")]
    run = [*plain, f"data.images={photos}", f"tokenizer.weights={tmp_path}/a/checkpoints/last.ckpt"]
    for name, options in {"b": [], "c": ["module.decoder_only=true"], "d": ["tokenizer.resolution=32"]}.items():
        trained = command(*run, *options, f"output={tmp_path}/{name}")
        assert trained.status == 0, trained.err
        sizes = read_file(trained.results["checkpoint"])["settings"]["tokenizer"]
        assert (sizes["channels"], sizes["resolution"]) == (32, 32 if name == "d" else 16)


def test_a_network_fits_another_decoder(command, photos, tmp_path):
    """Shards and networks of a tokenizer fit the same one with another decoder, and no other."""
    run = [*TINY, f"data.images={photos}"]
    command(*run, f"output={tmp_path}/1")
    weights = {name: f"tokenizer.weights={tmp_path}/{name}/checkpoints/last.ckpt" for name in "123"}
    assert command(*run, weights["1"], "module.decoder_only=true", f"output={tmp_path}/2").status == 0
    assert command(*run, "seed=1", f"output={tmp_path}/3").status == 0
    small = ["module.net.width=32", "module.net.encoder_depth=2", "module.net.num_heads=2", "data.batch_size=8"]
    small += ["trainer.max_steps=1", "trainer.val_check_interval=1", "data.num_workers=0", "callbacks.sample_grid=null"]
    shards = f"data.shards={tmp_path}/shards_1"
    for name, file in weights.items():
        made = [
            "task=tokenize",
            f"images={photos}",
            "held_out=0.2",
            "num_workers=0",
            f"output={tmp_path}/shards_{name}",
        ]
        assert command(*made, file).status == 0
    assert command(*small, shards, weights["2"], f"output={tmp_path}/network").status == 0
    other = command(*small, shards, weights["3"], f"output={tmp_path}/other")
    assert "made by another tokenizer than the one configured" in other.err
    network = f"weights={tmp_path}/network/checkpoints/last.ckpt"
    for name, fits in (("1", True), ("2", True), ("3", False)):
        drawn = ["task=sample", network, weights[name], "classes=0", "images_per_class=1", f"output={tmp_path}/s{name}"]
        assert ("of another tokenizer" not in command(*drawn).out) == fits
        options = ["experiment=finetune", network, f"data.shards={tmp_path}/shards_{name}", *small]
        tuned = command(*options, f"output={tmp_path}/tuned_{name}")
        assert tuned.status == 0, tuned.err
        assert ("drawn anew" not in tuned.out) == fits


def test_two_processes_train_as_one(command, separate_command, photos, tmp_path):
    run = [*TINY, f"data.images={photos}", "trainer=ddp", "trainer.precision=32-true", "trainer.accelerator=cpu"]
    one = command(*run, f"output={tmp_path}/one")
    two = separate_command(*run, f"output={tmp_path}/two", ranks=2)
    assert two.status == 0, two.err
    assert two.results["processes"] == 2
    first, second = (read_file(tmp_path / name / "checkpoints/last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-3, atol=1e-4)
    assert two.results["psnr"] == pytest.approx(one.results["psnr"], abs=0.01)


@pytest.mark.slow
def test_from_a_folder_of_images_to_pictures(command, photos, tmp_path):
    """The three commands of docs/data.md, then Python."""
    tokenizer = command(*TINY, f"data.images={photos}", f"output={tmp_path}/tokenizer")
    weights = f"tokenizer.weights={tmp_path}/tokenizer/checkpoints/last.ckpt"
    made = command(
        "task=tokenize", f"images={photos}", weights, "held_out=0.2", "num_workers=0", f"output={tmp_path}/shards"
    )
    assert made.status == 0, made.err
    assert made.results["samples"] == {"train": 48, "held_out": 12}
    small = ["module.net.width=32", "data.num_workers=0", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    trained = command(f"data.shards={tmp_path}/shards", *small, f"output={tmp_path}/run")
    assert trained.status == 0, trained.err
    drawn = enat.load(tmp_path / "run/checkpoints/last.ckpt").generate(classes=[0, 3])
    assert [image.size for image in drawn] == [(16, 16), (16, 16)]
    assert tokenizer.results["checkpoint"].endswith("tokenizer/checkpoints/last.ckpt")


def tokenizer_of(checkpoint):
    """Builds the tokenizer that a checkpoint of its training describes."""
    options = read_file(checkpoint)["settings"]["tokenizer"]
    return instantiate({**options, "weights": str(checkpoint)})


def test_the_average_is_what_tokenises(command, photos, tmp_path):
    """Of the weights. A codebook is an average already, and goes with the latents of the same step."""
    command(*TINY, *VQ, f"data.images={photos}", f"output={tmp_path}/a", "callbacks.ema.decay=1.0")
    content = read_file(tmp_path / "a/checkpoints/last.ckpt")
    trained, averaged = content["state_dict"], content["callbacks"]["EMA"]["net"]
    tokenizer = tokenizer_of(tmp_path / "a/checkpoints/last.ckpt")
    assert torch.equal(tokenizer.decoder.conv_out.bias, averaged["decoder.conv_out.bias"])
    assert not torch.equal(trained["net.decoder.conv_out.bias"], averaged["decoder.conv_out.bias"])
    codebook = "quantize.inner._codebook.embed"
    assert torch.equal(trained[f"net.{codebook}"], averaged[codebook])
    assert torch.equal(tokenizer.state_dict()[codebook], averaged[codebook])
    command(*TINY, f"data.images={photos}", f"output={tmp_path}/b", "callbacks.ema=null")
    tokenizer = tokenizer_of(tmp_path / "b/checkpoints/last.ckpt")
    trained = read_file(tmp_path / "b/checkpoints/last.ckpt")["state_dict"]
    assert torch.equal(tokenizer.decoder.conv_out.bias, trained["net.decoder.conv_out.bias"])


def test_reconstructions_are_scored(command, photos, tmp_path):
    run = [*TINY, f"data.images={photos}", "metrics=reconstruction", "metrics.evaluation.features.side=32"]
    scored = command(*run, f"output={tmp_path}")
    assert scored.status == 0, scored.err
    table = pd.concat(pd.read_csv(path) for path in tmp_path.glob("metrics/*/metrics.csv"))
    assert table["val/fid"].dropna().to_list()[-1] == pytest.approx(scored.results["scores"]["lite0"]["fid"])
    assert scored.results["scores"]["lite0"]["num_images"] == 12
    for name in ("psnr", "ssim", "codes_used", "perplexity"):  # of the last validation alone
        assert table[f"val/{name}"].dropna().to_list()[-1] == pytest.approx(scored.results[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("quantizer", "advice"),
    [
        ([*VQ, "tokenizer.quantizer.codebook_size=900"], "quantizer@tokenizer.quantizer=fsq, which learns no codebook"),
        (["tokenizer.quantizer.levels=[10,9,10]"], "fewer codes, by tokenizer.quantizer.levels"),
        (["quantizer@tokenizer.quantizer=lfq"], "a larger tokenizer.quantizer.entropy_weight"),
    ],
)
def test_a_collapse_is_named(command, monkeypatch, photos, tmp_path, quantizer, advice):
    """With what may help for the quantiser that is in use."""
    monkeypatch.setattr(tokenizer_module, "COLLAPSED", 1.1)
    outcome = command(*TINY, *quantizer, f"data.images={photos}", f"output={tmp_path}")
    assert "The codebook has collapsed at step 3:" in outcome.out
    assert f"of its {1024 if 'lfq' in advice + quantizer[0] else 900} entries are in use" in outcome.out
    assert f"What may help: a lower module.optimizer.lr or {advice}." in outcome.out


def test_few_images_are_no_collapse():
    """Of 1,000 codes, 48 tokens can show 48 at most."""
    use = CodebookUse(1000)
    use.update(torch.arange(40).repeat(2)[:48])
    values = use.compute()
    assert values["codes_used"] == 0.04
    assert values["codes_used_of_possible"] == pytest.approx(40 / 48)


def test_bad_input(command, photos, tmp_path):
    for change, sentence in {
        "data.images=null": "data.images=None: expected a folder of images.",
        "data.held_out=0": "holds none of the 60 images out; expected a larger share",
        "data.held_out=0.02 metrics=reconstruction": "data.held_out=0.02, data.at_most=1000: 1 image: expected at",
        "tokenizer.resolution=18": "resolution=18: expected a multiple of the stride 4.",
        "module.loss.terms.l1=null module.loss.terms.gradient=null": "module.loss.terms: expected at least one",
        "data.batch_size=0": "data.batch_size=0",
    }.items():
        refused = command(*TINY, f"data.images={photos}", *change.split(), f"output={tmp_path}/run")
        assert refused.status in (1, 2), change
        assert sentence in refused.err, refused.err
        assert not (tmp_path / "run").exists()


def test_going_on_longer_and_with_other_images(command, photos, tmp_path):
    command(*TINY, f"data.images={photos}", f"output={tmp_path}/run")
    shutil.copytree(photos, tmp_path / "moved")
    longer = command(*TINY, f"data.images={tmp_path}/moved", f"output={tmp_path}/run", "trainer.max_steps=9")
    assert longer.results["steps"] == 9
    refused = command(*TINY, f"data.images={photos / 'chelsea'}", f"output={tmp_path}/run", "trainer.max_steps=12")
    assert refused.status == 1
    assert "a run on other samples" in refused.err
