"""Quantisers: ids and codes belong together, gradients reach the latents, and drawing tokens changes no codebook."""

from copy import deepcopy

import pytest
import torch

from enat.tokenizers.quantizers import FSQ, LFQ, AveragedCodebook, Codebook
from enat.tokenizers.vqgan import ConvTokenizer

KINDS = {
    "codebook": lambda: Codebook(30, 6),
    "fsq": lambda: FSQ([4, 3, 3]),
    "lfq": lambda: LFQ(5),
    "averaged": lambda: AveragedCodebook(30, 6),
}


@pytest.fixture(params=KINDS)
def quantizer(request):
    torch.manual_seed(0)
    return KINDS[request.param]()


def latents_for(quantizer):
    torch.manual_seed(1)
    return (2 * torch.randn(3, 20, quantizer.code_width)).requires_grad_()


def test_ids_and_codes_belong_together(quantizer):
    latents = latents_for(quantizer)
    token_ids = quantizer(latents)
    assert token_ids.shape == (3, 20)
    assert token_ids.dtype == torch.int64
    assert 0 <= token_ids.min() <= token_ids.max() < quantizer.codebook_size
    codes = quantizer.codes(token_ids)
    assert codes.shape == latents.shape
    assert len(quantizer.codes(torch.arange(quantizer.codebook_size)).unique(dim=0)) == quantizer.codebook_size
    quantized = quantizer.quantize_with_gradient(latents)
    assert torch.equal(quantized.token_ids, token_ids)
    torch.testing.assert_close(quantized.codes, codes)


def test_gradients_reach_the_latents(quantizer):
    latents = latents_for(quantizer)
    quantizer.quantize_with_gradient(latents).codes.sum().backward()
    assert latents.grad.abs().sum() > 0


def test_drawing_token_ids_changes_nothing(quantizer):
    before = deepcopy(quantizer.state_dict())
    quantizer.train()
    quantizer(latents_for(quantizer).detach())
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_trained_weights_are_read_again(tmp_path, kind):
    """A codebook has state that is no floating-point number, such as whether it has begun."""
    torch.manual_seed(0)
    trained = ConvTokenizer(KINDS[kind](), 32, [1], 1, 8)
    trained.quantize.quantize_with_gradient(torch.randn(2, 64, trained.quantize.code_width))
    loss = {"loss.adversarial.discriminator.0.bias": torch.zeros(3)}
    torch.save(
        {"state_dict": {**{f"net.{k}": v for k, v in trained.state_dict().items()}, **loss}}, tmp_path / "a.ckpt"
    )
    torch.manual_seed(1)
    read = ConvTokenizer(KINDS[kind](), 32, [1], 1, 8, weights=str(tmp_path / "a.ckpt"))
    assert read.fingerprint() == trained.fingerprint()
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(read.encode(images), trained.encode(images))


def test_the_loss_of_a_codebook():
    """Both terms are the mean squared distance; they differ in what they move."""
    codebook = Codebook(2, 1, commitment=0.5)
    codebook.embedding.weight.data = torch.tensor([[0.0], [10.0]])
    latents = torch.tensor([[[1.0], [8.0]]], requires_grad=True)
    quantized = codebook.quantize_with_gradient(latents)
    assert quantized.token_ids.tolist() == [[0, 1]]
    assert quantized.loss.item() == pytest.approx(1.5 * (1 + 4) / 2)
    quantized.loss.backward()
    assert latents.grad.flatten().tolist() == pytest.approx([0.5, -1.0])  # 0.5 * 2 (z - e) / 2
    assert codebook.embedding.weight.grad.flatten().tolist() == pytest.approx([-1.0, 2.0])  # 2 (e - z) / 2


def test_unused_entries_start_again():
    torch.manual_seed(0)
    codebook = AveragedCodebook(8, 2, decay=0.5, restart_below=0.5)
    latents = torch.randn(1, 64, 2) + 100  # far from all entries but one
    for _ in range(20):
        used = codebook.quantize_with_gradient(latents).token_ids.unique()
    assert len(used) == 8
    torch.manual_seed(0)
    without = AveragedCodebook(8, 2, decay=0.5, restart_below=0)
    for _ in range(20):
        used = without.quantize_with_gradient(latents).token_ids.unique()
    assert len(used) < 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_changes_no_entry(quantizer, bad):
    """The guard skips the step of such a batch; no later batch would mend averages of it."""
    before = deepcopy(quantizer.state_dict())
    latents = latents_for(quantizer).detach()
    latents[0, 0, 0] = bad
    quantized = quantizer.quantize_with_gradient(latents)
    assert all(torch.equal(before[name], tensor) for name, tensor in quantizer.state_dict().items())
    if isinstance(quantizer, AveragedCodebook | Codebook):
        assert not (quantized.codes.sum() + quantized.loss).isfinite()  # by which the guard knows it
    quantizer.quantize_with_gradient(latents_for(quantizer))
    assert quantizer(latents_for(quantizer)).unique().numel() > 1
