"""A file of taming-transformers gives the tokens and the images that its own program has computed.

`taming.json` holds names and shapes of the weights of a small VQGAN of taming-transformers-rom1504 0.0.6, and what that
program computed with the weights of `fill`.
"""

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from enat.errors import InputError
from enat.tokenizers.diffusers import DiffusersTokenizer, TamingTokenizer

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "taming.json").read_text())


def fill(shapes):
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name in sorted(shapes):
        drawn = torch.randn(shapes[name], generator=generator)
        if "norm" in name and name.endswith("weight"):
            weights[name] = 1 + 0.1 * drawn
        elif "embedding" in name:
            weights[name] = drawn
        else:
            weights[name] = drawn / drawn[0].numel() ** 0.5 if drawn.ndim > 1 else 0.1 * drawn
    return weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("taming") / "last.ckpt"
    torch.save({"epoch": 3, "state_dict": {**fill(GOLDEN["shapes"]), "loss.logvar": torch.zeros(())}}, path)
    return path


def test_tokens_and_images_are_those_of_taming(weights):
    tokenizer = TamingTokenizer(str(weights), resolution=32, batch_size=1)
    assert (tokenizer.codebook_size, tokenizer.grid) == (40, (8, 8))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    token_ids = tokenizer.encode(images)
    assert token_ids.tolist() == GOLDEN["token_ids"]
    drawn = tokenizer.decode(token_ids)[0, :, ::8, ::8].flatten()
    assert drawn.tolist() == pytest.approx(GOLDEN["pixels"], abs=2e-5)


def test_a_file_of_lightning_1(weights, monkeypatch, tmp_path):
    """The released files have classes of callbacks as keys, of a library that nobody has any more."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    content = torch.load(weights, weights_only=True)
    callbacks = {module.ModelCheckpoint: {"best": module.ModelCheckpoint()}}
    torch.save({**content, "callbacks": callbacks}, tmp_path / "old.ckpt")
    monkeypatch.undo()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "old.ckpt", weights_only=True)
    tokenizer = TamingTokenizer(str(tmp_path / "old.ckpt"), resolution=32)
    assert tokenizer.fingerprint() == TamingTokenizer(str(weights), resolution=32).fingerprint()


def test_a_missing_package_is_named(weights, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text("{}")
    for make in (lambda: TamingTokenizer(str(weights)), lambda: DiffusersTokenizer(str(tmp_path))):
        with pytest.raises(InputError, match=r"^this tokenizer needs the package diffusers; `pip install -e"):
            make()


def changed(weights, change):
    content = torch.load(weights, weights_only=True)
    change(content["state_dict"])
    path = weights.with_name("changed.ckpt")
    torch.save(content, path)
    return str(path)


def test_files_that_do_not_serve(weights):
    with pytest.raises(InputError, match="expected weights of a VQGAN of taming-transformers"):
        TamingTokenizer(None)
    with pytest.raises(InputError, match=r"tokenizer\.resolution=33: expected a multiple of the stride 4"):
        TamingTokenizer(str(weights), resolution=33)
    other = {"quantize.embedding.weight": "quantize.embed.weight"}  # of a VQGAN with Gumbel softmax
    gumbel = changed(weights, lambda state: state.update({new: state.pop(old) for old, new in other.items()}))
    with pytest.raises(
        InputError, match=r"these are no weights of a VQGAN of taming-transformers \('quantize\.embedding"
    ):
        TamingTokenizer(gumbel)
    with pytest.raises(InputError, match=r"weight quant_conv\.bias is missing"):
        TamingTokenizer(changed(weights, lambda state: state.pop("quant_conv.bias")))
    with pytest.raises(InputError, match=r"weight mine is unknown"):
        TamingTokenizer(changed(weights, lambda state: state.update(mine=torch.zeros(3))))


def test_its_weights_are_stored_under_the_names_that_it_reads(weights, tmp_path):
    tokenizer = TamingTokenizer(str(weights), resolution=32)
    save_file({name: x.contiguous() for name, x in tokenizer.stored_weights().items()}, tmp_path / "again.safetensors")
    again = TamingTokenizer(str(tmp_path / "again.safetensors"), resolution=32)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_width_that_the_weights_do_not_have(weights, tmp_path):
    """An empty weight may have any shape; memory is not taken for a network of that width."""

    def widen(state):
        state["encoder.down.0.block.0.conv2.weight"] = torch.zeros(32 * 10**7, 0, 3, 3)

    with pytest.raises(InputError, match="has shape"):
        TamingTokenizer(changed(weights, widen))
