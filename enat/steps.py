"""What a sampling step hands to the next, and what only some steps do: they start guidance, or mask tokens again.

Shapes: `B` batch, `L` tokens of an image, `D` width, `M` masked tokens, `N` tokens to be encoded, `P` cached tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from enat.corrections import Remasking, choose
from enat.draws import ImageOptions
from enat.errors import InputError
from enat.net import ENAT
from enat.plan import Step
from enat.randomness import Generators


class State(NamedTuple):
    """Holds the tokens and the cached features between two steps."""

    token_ids: Tensor  # (B, L), [MASK] where masked
    masked_positions: Tensor  # of the tokens that are still masked, (B, M)
    new_positions: Tensor  # of the visible tokens without cached features, (B, N)
    cached_positions: Tensor  # of the tokens with cached features, (B, P)
    cached_features: Tensor | None  # of both branches if there are two, (B or 2B, P, D)
    probabilities: Tensor  # of the tokens when they were drawn, (B, L), NaN if they were not; or (B, 0)


def begin(net: ENAT, batch: int, device: torch.device, given: Tensor | None, keeps_probabilities: bool) -> State:
    """Returns the state before the first step.

    Args:
        net: the network.
        batch, device: of the token ids.
        given: token ids that are kept, (B, L), with the mask id where tokens are drawn; None to draw all.
        keeps_probabilities: whether a correction needs them.

    Raises:
        InputError: if the images have different numbers of given tokens, or none is left to draw.
    """
    positions = torch.arange(net.num_tokens, device=device).repeat(batch, 1)
    probabilities = torch.full((batch, net.num_tokens if keeps_probabilities else 0), torch.nan, device=device)
    if given is None:
        token_ids = torch.full_like(positions, net.mask_token_id)
        return State(token_ids, positions, positions[:, :0], positions[:, :0], None, probabilities)
    is_masked = given == net.mask_token_id
    counts = is_masked.sum(dim=1)
    if not counts.numel() or counts.min() != counts.max() or not counts[0]:
        raise InputError("given: expected as many masked tokens in each image of a batch, and one at least.")
    masked, known = positions[is_masked].view(batch, -1), positions[~is_masked].view(batch, -1)
    return State(given, masked, known, known[:, :0], None, probabilities)


def one_at_a_time(
    sample: Callable[..., Tensor],
    net: ENAT,
    class_ids: Tensor,
    generator: Generators,
    record: list[Tensor] | None,
    given: Tensor | None,
    options: ImageOptions,
) -> Tensor:
    """Generates the images of a batch one after the other by `sample`, a sampler, whose arguments are the others."""
    generators = list(generator) if isinstance(generator, Sequence) else [generator]
    images, records = [], []
    for row in range(len(class_ids)):
        own = slice(row, row + 1)
        own_record: list[Tensor] = []
        own_generator = generators[row * len(generators) // len(class_ids)]
        own_given = None if given is None else given[own]
        images.append(sample(net, class_ids[own], own_generator, own_record, own_given, options.rows(own)))
        records.append(own_record)
    if record is not None:
        record += [torch.cat(step) for step in zip(*records, strict=True)]
    return torch.cat(images)


def features_of(features: Tensor | None, rows: int) -> Tensor | None:
    """Returns the features of the first rows: of the conditional branch alone, where guidance has ended."""
    return None if features is None else features[:rows]


def predict_step(
    net: ENAT,
    state: State,
    visible: Tensor,
    new: Tensor,
    modulations: Sequence[Tensor],
    cached_features: Tensor | None,
    step: Step,
) -> tuple[Tensor, Tensor]:
    """Computes logits of the masked tokens and features of the visible ones, both branches in one batch.

    The tokens at `new` are encoded. An unconditional branch without cached features encodes all at `visible`.
    """
    batch = len(state.token_ids)
    if not step.starts_guidance:
        inputs = [x.repeat(step.branches, 1) for x in (state.token_ids, new, state.masked_positions)]
        return net(*inputs, modulations, features_of(cached_features, len(inputs[0])))
    own, unconditional = [x[:batch] for x in modulations], [x[batch:] for x in modulations]
    results = [
        net(state.token_ids, new, state.masked_positions, own, features_of(cached_features, batch)),
        net(state.token_ids, visible, state.masked_positions, unconditional),
    ]
    return torch.cat([logits for logits, _ in results]), torch.cat([features for _, features in results])


def mask_again(
    state: State,
    revealed: tuple[Tensor, Tensor],
    step: Step,
    correction: Remasking,
    noise: Tensor,
    mask_token_id: int,
) -> State:
    """Masks some of the tokens again that were visible before a step, and notes how likely the new tokens are.

    Args:
        state: after the step. Its cached positions are those that were visible before it, in the order of the features.
        revealed: positions and log-probabilities of the tokens that the step revealed, (B, N) each.
        step: says how many tokens are masked again.
        correction: says which.
        noise: Gumbel noise, (B, V).
        mask_token_id: the id of a masked token.
    """
    positions, log_probs = revealed
    probabilities = state.probabilities
    state = state._replace(probabilities=probabilities.scatter(1, positions, log_probs.exp()))
    if not step.masked_again:
        return state
    visible = state.cached_positions
    before = probabilities.gather(1, visible)
    chosen, kept = choose(correction.scores(before, noise), before.isfinite(), step.masked_again)
    again, kept_positions = visible.gather(1, chosen), visible.gather(1, kept)
    state = state._replace(
        token_ids=state.token_ids.scatter(1, again, mask_token_id),
        masked_positions=torch.cat([state.masked_positions, again], dim=1),
        probabilities=state.probabilities.scatter(1, again, torch.nan),
    )
    if correction.recompute:
        new_positions = torch.cat([kept_positions, state.new_positions], dim=1)
        return state._replace(new_positions=new_positions, cached_positions=visible[:, :0], cached_features=None)
    assert state.cached_features is not None
    rows = kept.repeat(len(state.cached_features) // len(kept), 1).unsqueeze(2)
    features = state.cached_features.take_along_dim(rows, dim=1)
    return state._replace(cached_positions=kept_positions, cached_features=features)
