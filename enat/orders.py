"""Orders in which a sampler reveals tokens: each gives a score to every masked token, and the highest are revealed.

Shapes: `B` batch, `M` masked tokens, `L` tokens of an image, `K` codebook size.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from enat.draws import Value, at_least, over_codebook
from enat.errors import InputError


class Candidates(NamedTuple):
    """Holds what a step knows about the masked tokens when it decides which of them to reveal."""

    log_probs: Tensor  # of the network, guided, at temperature 1, (B, M, K)
    drawn_log_probs: Tensor  # of the tokens that were drawn, (B, M)
    noise: Tensor  # standard Gumbel noise, (B, M)
    positions: Tensor  # in the image, (B, M)
    num_tokens: int  # L
    sampling_temperature: Value
    gumbel_temperature: Value


class Order(ABC):
    """The base of all orders."""

    def draw_temperature(self, sampling_temperature: Value, gumbel_temperature: Value) -> Value:
        """Returns the temperature at which tokens are drawn."""
        return sampling_temperature

    @abstractmethod
    def __call__(self, candidates: Candidates) -> Tensor:
        """Returns a score for each masked token, (B, M)."""


class Confidence(Order):
    """Reveals the tokens of which the network is most sure: log-probability plus Gumbel noise (MaskGIT, and ENAT)."""

    def __call__(self, candidates: Candidates) -> Tensor:
        return candidates.drawn_log_probs + candidates.gumbel_temperature * candidates.noise


class Entropy(Order):
    """Reveals the tokens whose distribution has the least entropy, whatever was drawn; Gumbel noise is added."""

    def __call__(self, candidates: Candidates) -> Tensor:
        return -entropy(candidates.log_probs) + candidates.gumbel_temperature * candidates.noise


class Random(Order):
    """Reveals tokens in random order."""

    def __call__(self, candidates: Candidates) -> Tensor:
        return candidates.noise


class Moment(Order):
    """Chooses the tokens first and draws them then, as the moment sampler (arXiv 2510.04525).

    Where few of many tokens are revealed, `Confidence` reveals token x at position i with a probability proportional to
    q_i(x) p_i(x)^(1/g), for draws from q at temperature t and Gumbel temperature g. So this order chooses position i
    with the sum of that over x, and draws x at the temperature 1 / (1/t + 1/g).
    """

    def draw_temperature(self, sampling_temperature: Value, gumbel_temperature: Value) -> Value:
        return 1 / (1 / at_least(sampling_temperature) + 1 / at_least(gumbel_temperature))

    def __call__(self, candidates: Candidates) -> Tensor:
        sampling, gumbel = (
            over_codebook(at_least(x)) for x in (candidates.sampling_temperature, candidates.gumbel_temperature)
        )
        drawn = (candidates.log_probs / sampling).log_softmax(dim=2)  # log q
        return (drawn + candidates.log_probs / gumbel).logsumexp(dim=2) + candidates.noise


class EntropyBound(Entropy):
    """Reveals, of the tokens of least entropy, as many as are nearly independent (EB-Sampler, arXiv 2505.24857).

    These are the largest k for which the sum of the k least entropies without the largest of them is at most `bound`.
    A step reveals one token at least, and the last step all that are left. So each image has numbers of its own, and
    images are drawn one at a time.

    Args:
        bound: in nats.
    """

    def __init__(self, bound: Annotated[float, Ge(0)]):
        self.bound = bound

    def __call__(self, candidates: Candidates) -> Tensor:
        return -entropy(candidates.log_probs)

    def num_revealed(self, scores: Tensor) -> int:
        """Returns how many tokens of one image to reveal, from their scores (1, M)."""
        entropies = -scores[0].sort(descending=True).values
        return int((entropies.cumsum(dim=0) - entropies <= self.bound).sum().clamp_min(1))


class Fixed(Order):
    """Reveals positions in the order of a list.

    Args:
        positions: each position of an image once.
    """

    def __init__(self, positions: Sequence[int]):
        self.positions = list(positions)
        if sorted(self.positions) != list(range(len(self.positions))):
            raise InputError("sampler.order.positions: expected each number from 0 to the number of tokens - 1 once.")

    def ranks(self, num_tokens: int) -> list[int]:
        """Returns the place of each position in the order."""
        positions = self.list_positions(num_tokens)
        if len(positions) != num_tokens:
            raise InputError(f"sampler.order.positions: there are {len(positions)}; an image has {num_tokens} tokens.")
        return [place for _, place in sorted(zip(positions, range(num_tokens), strict=True))]

    def list_positions(self, num_tokens: int) -> list[int]:
        """Returns the positions in their order."""
        return self.positions

    def __call__(self, candidates: Candidates) -> Tensor:
        ranks = torch.tensor(self.ranks(candidates.num_tokens), device=candidates.positions.device)
        return -ranks[candidates.positions].float()


class Halton(Fixed):
    """Reveals positions in the order of the Halton sequence with bases 2 and 3, which spreads them over the image.

    Each point of the sequence in the unit square reveals the token on which it lies, unless that was revealed before
    (arXiv 2503.17076).

    Args:
        height, width: of the grid of tokens; None for a square.
    """

    def __init__(self, height: Annotated[int, Ge(1)] | None = None, width: Annotated[int, Ge(1)] | None = None):
        self.height = height
        self.width = width

    def list_positions(self, num_tokens: int) -> list[int]:
        height = self.height or math.isqrt(num_tokens)
        width = self.width or num_tokens // height
        if height * width != num_tokens:
            raise InputError(
                f"sampler.order.height={self.height} sampler.order.width={self.width}: expected sides of a grid of "
                f"{num_tokens} tokens."
            )
        return list(_halton_positions(height, width))


@lru_cache(maxsize=8)
def _halton_positions(height: int, width: int) -> tuple[int, ...]:
    seen: dict[int, None] = {}
    for number in count(1):
        row = int(radical_inverse(number, 2) * height)
        column = int(radical_inverse(number, 3) * width)
        seen.setdefault(row * width + column)
        if len(seen) == height * width:
            return tuple(seen)
    raise AssertionError


def radical_inverse(number: int, base: int) -> float:
    """Mirrors the digits of a number at the point: 6 is 110 in base 2, and gives 0.011, which is 0.375."""
    result, scale = 0.0, 1.0
    while number:
        scale /= base
        number, digit = divmod(number, base)
        result += digit * scale
    return result


def entropy(log_probs: Tensor) -> Tensor:
    """Computes entropies in nats, (B, M), from log-probabilities (B, M, K)."""
    return torch.special.entr(log_probs.exp()).sum(dim=2)
