"""The terms of a tokenizer's loss, by hand; and that the discriminator learns from its own loss only."""

import pytest
import torch
from torch import nn

from enat.errors import InputError
from enat.tokenizers.losses import L1, Adversarial, GradientL1, Perceptual, TokenizerLoss


def test_differences_of_pixels_and_of_gradients():
    images = torch.zeros(1, 3, 2, 2)
    ours = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).expand(1, 3, 2, 2)
    assert L1()(images, ours).item() == 0.5
    assert GradientL1()(images, ours).item() == 1.0  # 0 from row to row, 1 from column to column


class Views(nn.Module):
    """Gives the mean of each channel, and the sum."""

    protocols = ("toy",)
    widths = {"pool": 3, "spatial": 1}  # noqa: RUF012

    def forward(self, images):
        pool = images.mean((2, 3))
        return {"toy": {"pool": pool, "spatial": pool.sum(1, keepdim=True)}}


def test_features_are_compared_by_their_length():
    loss = Perceptual(Views(), ["pool"])
    images = torch.ones(2, 3, 4, 4)
    assert loss(images, 1.5 * images).item() == pytest.approx(0.25)
    assert loss(images, images).item() == 0
    ours = (1.5 * images).requires_grad_()
    loss(images, ours).backward()
    assert ours.grad.abs().sum() > 0
    assert not loss.state_dict()  # checkpoints do not hold the feature network
    with pytest.raises(InputError, match="views: logits is none of pool, spatial"):
        Perceptual(Views(), ["logits"])


@pytest.fixture
def decoded():
    """Images, and what a decoder with one layer makes of latents."""
    torch.manual_seed(0)
    decoder = nn.Conv2d(4, 3, 1)
    return torch.rand(2, 3, 16, 16), decoder(torch.randn(2, 4, 16, 16)), decoder


def test_the_discriminator_learns_from_its_own_loss_only(decoded):
    images, ours, decoder = decoded
    adversarial = Adversarial(weight=1.0, channels=4, num_layers=2)
    reconstruction = (images - ours).abs().mean()
    values = adversarial(images, ours, reconstruction, decoder.weight, step=0)
    values["adversarial"].backward(retain_graph=True)
    assert all(p.grad is None for p in adversarial.parameters())
    assert decoder.weight.grad.abs().sum() > 0
    decoder.zero_grad()
    values["discriminator"].backward()
    assert all(p.grad.abs().sum() > 0 for p in adversarial.parameters() if p.ndim > 1)
    assert decoder.weight.grad is None
    assert all(p.requires_grad for p in adversarial.parameters())


def test_both_losses_have_gradients_of_equal_length_at_the_last_layer(decoded):
    images, ours, decoder = decoded
    adversarial = Adversarial(weight=0.5, channels=4, num_layers=2)
    reconstruction = (images - ours).abs().mean()
    (of_reconstruction,) = torch.autograd.grad(reconstruction, decoder.weight, retain_graph=True)
    value = adversarial(images, ours, reconstruction, decoder.weight, step=0)["adversarial"]
    (of_adversarial,) = torch.autograd.grad(value, decoder.weight, retain_graph=True)
    assert of_adversarial.norm().item() == pytest.approx(0.5 * of_reconstruction.norm().item(), rel=0.01)


def test_the_discriminator_starts_before_the_tokenizer_listens(decoded):
    images, ours, decoder = decoded
    adversarial = Adversarial(first_step=3, channels=4, num_layers=2)
    early, late = (adversarial(images, ours, ours.mean(), decoder.weight, step) for step in (2, 3))
    assert early["adversarial"] == 0
    assert late["adversarial"] != 0
    assert early["discriminator"] == late["discriminator"] > 0


def test_terms_are_added_by_their_weights(decoded):
    images, ours, decoder = decoded
    loss = TokenizerLoss({"l1": L1(2.0), "gradient": GradientL1(3.0), "perceptual": None})
    values = loss(images, ours, torch.tensor(0.25), decoder.weight, 0)
    assert set(values) == {"loss", "l1", "gradient", "quantizer"}
    assert values["loss"].item() == pytest.approx((2 * values["l1"] + 3 * values["gradient"] + 0.25).item())
    with pytest.raises(InputError, match=r"module\.loss\.terms: expected at least one"):
        TokenizerLoss({"l1": None})


def test_values_beyond_black_and_white_cost_nothing_there():
    """Decoding clamps them. In the middle of the range, they cost what they always do, and have a gradient."""
    loss = TokenizerLoss({"l1": L1()})
    zero, weight = torch.zeros(()), torch.ones(())
    images = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    values = torch.tensor([-0.4, 1.3, 1.3, 0.7, 0.2]).view(1, 1, 1, 5).expand(1, 3, 1, 5).clone().requires_grad_()
    computed = loss(images, values, zero, weight, 0)["loss"]
    assert computed.item() == pytest.approx((0.8 + 0.3 + 0.2) / 5)
    computed.backward()
    assert values.grad[0, 0, 0].sign().tolist() == [0, 0, 1, -1, 1]
