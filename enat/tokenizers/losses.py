"""What a tokenizer is trained by. Shapes: `B` images, `H` and `W` their height and width."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, MinLen
from torch import Tensor, nn

from enat.errors import InputError
from enat.features.network import FeatureNetwork


class L1(nn.Module):
    """Computes the mean absolute difference of the pixels.

    Args:
        weight: of this term in the loss.
    """

    def __init__(self, weight: Annotated[float, Ge(0)] = 1.0):
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        """Images (B, 3, H, W) and their reconstruction -> a scalar, without the weight."""
        return F.l1_loss(reconstructed, images)


class GradientL1(L1):
    """Computes the mean absolute difference of the gradients of both images, which makes edges sharp; see `L1`."""

    def forward(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        difference = reconstructed - images
        return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()


class Perceptual(nn.Module):
    """Computes how far features of both images lie apart, as a share of the length of those of the real image.

    Args:
        features: any feature network whose first protocol lets gradients through.
        views: those of its views that are compared.
        weight: of this term in the loss.

    Raises:
        InputError: for a view that the network does not have.
    """

    def __init__(
        self,
        features: FeatureNetwork,
        views: Annotated[Sequence[str], MinLen(1)] = ("spatial", "pool"),
        weight: Annotated[float, Ge(0)] = 1.0,
    ):
        super().__init__()
        if unknown := sorted(set(views) - set(features.widths)):
            raise InputError(f"views: {unknown[0]} is none of {', '.join(features.widths)}.")
        self.__dict__["features"] = features  # past nn.Module: checkpoints do not hold it
        self.views = list(views)
        self.weight = weight

    def forward(self, images: Tensor, reconstructed: Tensor) -> Tensor:
        network: Any = self.features
        network.to(images.device)
        protocol = next(iter(network.protocols))
        with torch.no_grad():
            real = network(images)[protocol]
        ours = network(reconstructed)[protocol]
        parts = []
        for view in self.views:
            target = real[view].float()
            distance = (ours[view].float() - target).square().sum(1)
            parts.append((distance / target.square().sum(1).clamp(min=1e-6)).mean())
        return torch.stack(parts).mean()


class Adversarial(nn.Module):
    """Trains a discriminator of patches beside the tokenizer, as VQGAN does (arXiv 2012.09841, section 3.1).

    The tokenizer's term is weighted by the ratio of the gradients of both losses at the decoder's last layer, so that
    neither drowns the other. Both networks take their step at the same time, by the same optimiser.

    Args:
        weight: of the tokenizer's term, beside the ratio.
        first_step: the optimiser step at which it starts; the discriminator learns from the start of training.
        channels: of the discriminator's first layer; each further layer has twice as many, and half the sides.
        num_layers: of such layers.
        largest_ratio: an upper limit of the ratio.
    """

    def __init__(
        self,
        weight: Annotated[float, Ge(0)] = 0.1,
        first_step: Annotated[int, Ge(0)] = 0,
        channels: Annotated[int, Ge(1)] = 64,
        num_layers: Annotated[int, Ge(1)] = 3,
        largest_ratio: Annotated[float, Gt(0)] = 1e4,
    ):
        super().__init__()
        self.weight = weight
        self.first_step = first_step
        self.largest_ratio = largest_ratio
        widths = [3, *(channels * 2**number for number in range(num_layers))]
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Conv2d(width_in, width_out, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(
        self, images: Tensor, reconstructed: Tensor, reconstruction_loss: Tensor, last_weight: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Returns the losses `adversarial`, of the tokenizer and weighted, and `discriminator`.

        Args:
            images, reconstructed: (B, 3, H, W).
            reconstruction_loss: the other terms, a scalar.
            last_weight: the weight of the decoder's last layer.
            step: the number of the optimiser step.
        """
        ours = self.discriminator(reconstructed.detach())
        discriminator_loss = (F.relu(1 - self.discriminator(images)).mean() + F.relu(1 + ours).mean()) / 2
        if step < self.first_step:
            return {"adversarial": discriminator_loss.new_zeros(()), "discriminator": discriminator_loss}
        with without_gradient(self.discriminator):
            fooled = -self.discriminator(reconstructed).mean()
        (of_others,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
        (of_this,) = torch.autograd.grad(fooled, last_weight, retain_graph=True)
        ratio = (of_others.norm() / (of_this.norm() + 1e-4)).clamp(max=self.largest_ratio).detach()
        return {"adversarial": self.weight * ratio * fooled, "discriminator": discriminator_loss}


@contextmanager
def without_gradient(module: nn.Module) -> Iterator[None]:
    """Keeps a module's weights out of the graph of what is computed within."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _free_beyond_range(images: Tensor, reconstructed: Tensor) -> Tensor:
    """Clamps values beyond [0, 1] where the pixel is at that end: decoding clamps them too, so they are no error."""
    clamped = torch.where(images <= 0, reconstructed.clamp(min=0), reconstructed)
    return torch.where(images >= 1, clamped.clamp(max=1), clamped)


class TokenizerLoss(nn.Module):
    """Adds up the terms of a tokenizer's loss.

    Args:
        terms: of the reconstruction, by name, each with a `weight`; None leaves one out.
        adversarial: the discriminator; None for none.

    Raises:
        InputError: if there are no terms.
    """

    def __init__(self, terms: Mapping[str, L1 | Perceptual | None], adversarial: Adversarial | None = None):
        super().__init__()
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if term is not None})
        self.adversarial = adversarial
        if not self.terms:
            raise InputError("module.loss.terms: expected at least one, such as l1.")

    def forward(
        self, images: Tensor, reconstructed: Tensor, quantizer_loss: Tensor, last_weight: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Returns each term and their weighted sum, `loss`, as scalars; see `Adversarial.forward`."""
        reconstructed = _free_beyond_range(images, reconstructed)
        values = {name: term(images, reconstructed) for name, term in self.terms.items()}
        total = torch.stack([self.terms[name].weight * value for name, value in values.items()]).sum()
        values["quantizer"] = quantizer_loss
        loss = total + quantizer_loss
        if self.adversarial is not None and torch.is_grad_enabled():
            further = self.adversarial(images, reconstructed, total, last_weight, step)
            values |= further
            loss = loss + further["adversarial"] + further["discriminator"]
        return {"loss": loss, **values}
