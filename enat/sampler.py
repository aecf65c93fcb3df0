"""Sampling in a few steps: from all tokens masked to the token ids of an image (docs/method.md, Sampling).

Shapes: `B` batch, `L` tokens of an image, `K` codebook size, `D` width; at the current step, `M` masked tokens,
`N` newly revealed tokens, `P` tokens with cached features, `V = P + N` visible tokens.
"""

import torch
from torch import Tensor

from enat.compilation import compile_step
from enat.draws import ImageOptions, at_least, likely, over_codebook, scaled
from enat.errors import InputError
from enat.net import ENAT
from enat.orders import Candidates, EntropyBound
from enat.plan import SamplerOptions, Step
from enat.randomness import Generators, gumbel
from enat.steps import State, begin, mask_again, one_at_a_time, predict_step

EVERY_IMAGE_ALIKE = ImageOptions()


class Sampler(SamplerOptions):
    """Generates token ids by iterative parallel decoding with guidance and reuse of features.

    It computes only what the result needs: the logits of masked tokens, both branches of the guidance in one batch, and
    adaLN once. The numbers of tokens are known in advance, so that the CPU never waits for a result of the GPU.
    `enat.plan.SamplerOptions` has the arguments and the schedules; `enat.plan.Step` says what a step computes, and
    `enat.steps.State` what it hands to the next one.
    """

    @torch.no_grad()
    def __call__(
        self,
        net: ENAT,
        class_ids: Tensor,
        generator: Generators = None,
        record: list[Tensor] | None = None,
        given: Tensor | None = None,
        options: ImageOptions = EVERY_IMAGE_ALIKE,
    ) -> Tensor:
        """Generates token ids, (B, L), int64; a token whose probability is NaN remains the mask.

        Args:
            net: the network, in evaluation mode.
            class_ids: (B,), on the network's device; the null class is allowed.
            generator: draws the noise, on the network's device. Several generators share the rows evenly, and each
                draws the same noise as if its rows were the whole batch.
            record: a list to which each step adds the token ids (B, L) that it starts from.
            given: token ids (B, L) that are kept, with the mask id where tokens are drawn; each image has as many.
            options: of each image.
        """
        if net.training:
            raise InputError(
                "the network is in training mode, so that dropout would change the images; call net.eval()."
            )
        if self.is_adaptive and len(class_ids) > 1:
            return one_at_a_time(self, net, class_ids, generator, record, given, options)
        batch, device = len(class_ids), class_ids.device
        if self.is_guided(net):
            negative_ids = options.negative_class_ids
            null_ids = torch.full_like(class_ids, net.null_class_id) if negative_ids is None else negative_ids
            class_ids = torch.cat([class_ids, null_ids])
        modulations = net.modulations(class_ids)  # conditional rows first
        run_step = compile_step(self._step, device) if self.compile else self._step
        state = begin(net, batch, device, given, keeps_probabilities=self.correction is not None)
        counts = [state.masked_positions.shape[1]]  # masked tokens at the start of each step so far
        plan = self.plan(net, [*counts, *self.mask_counts(counts[0])])
        for index in range(self.num_steps):
            if record is not None:
                record.append(state.token_ids)
            if not state.masked_positions.shape[1]:
                continue  # all tokens are revealed already
            if self.is_adaptive:
                # How many tokens this step starts from is known only now. Of this plan, only this step is used; the 0
                # stands for what it leaves masked, which it decides itself.
                counts[index:] = [state.masked_positions.shape[1]]
                plan = self.plan(net, [*counts, 0])
            step = plan[index]
            noise = [
                gumbel((batch, step.masked, net.codebook_size), device, generator),
                gumbel((batch, step.masked), device, generator),
                gumbel((batch, step.visible if step.masked_again else 0), device, generator),
            ]
            rows = [modulation[: step.branches * batch] for modulation in modulations]  # the null class's last, or not
            state = run_step(net, state, rows, noise, step, options)
        return state.token_ids

    def _step(
        self, net: ENAT, state: State, modulations: list[Tensor], noise: list[Tensor], step: Step, options: ImageOptions
    ) -> State:
        token_noise, order_noise, correction_noise = noise  # Gumbel noise, (B, M, K), (B, M), and (B, V) or (B, 0)
        guidance_scale = scaled(self.guidance_scales[step.number], options.guidance_factors)
        gumbel_temperature = scaled(self.gumbel_temperatures[step.number], options.gumbel_factors)
        sampling_temperature = scaled(self.sampling_temperatures[step.number], options.sampling_factors)

        # 1. Choose the visible tokens whose features are reused; the others are encoded.
        end = None if step.reuses_all else step.reused  # None: all, with masked tokens where a variant caches them
        reused = state.cached_positions[:, :end]
        new = torch.cat([state.cached_positions[:, reused.shape[1] :], state.new_positions], dim=1)
        visible = torch.cat([reused, new], dim=1)  # in the order of the features
        cached_features = None if state.cached_features is None else state.cached_features[:, :end]

        # 2. Predict the masked tokens, both branches in one batch (in two, where guidance begins at a later step).
        logits, features = predict_step(net, state, visible, new, modulations, cached_features, step)

        # 3. Guide: l = l_c + w (l_c - l_null), in float32.
        logits = logits.float()
        if step.branches == 2:
            conditional, unconditional = logits.chunk(2)
            logits = conditional + over_codebook(guidance_scale) * (conditional - unconditional)
        log_probs = logits.log_softmax(dim=2)  # (B, M, K)

        # 4. Draw each masked token from softmax(log p / temperature), by the Gumbel-max trick.
        temperature = at_least(self.order.draw_temperature(sampling_temperature, gumbel_temperature))
        drawable = likely(log_probs / over_codebook(temperature), self.top_k, self.top_p)
        drawn = (drawable + token_noise).argmax(dim=2)  # (B, M)
        drawn_log_probs = log_probs.gather(2, drawn.unsqueeze(2)).squeeze(2)
        drawn = drawn.where(drawn_log_probs.isfinite(), net.mask_token_id)  # not token 0 for NaN; callers find the mask

        # 5. Score the masked tokens; by default, by confidence: their log-probability plus Gumbel noise.
        temperatures = sampling_temperature, gumbel_temperature
        scores = self.order(
            Candidates(log_probs, drawn_log_probs, order_noise, state.masked_positions, net.num_tokens, *temperatures)
        )

        # 6. Reveal the tokens of the highest scores; the others stay masked.
        num_revealed = step.revealed
        if isinstance(self.order, EntropyBound) and step.number < self.num_steps - 1:
            num_revealed = self.order.num_revealed(scores)
        order = scores.argsort(dim=1, descending=True)
        revealed, masked = order.split([num_revealed, order.shape[1] - num_revealed], dim=1)  # of masked_positions
        revealed_positions = state.masked_positions.gather(1, revealed)
        state = State(
            token_ids=state.token_ids.scatter(1, revealed_positions, drawn.gather(1, revealed)),
            masked_positions=state.masked_positions.gather(1, masked),
            new_positions=revealed_positions,
            cached_positions=visible,
            cached_features=features,
            probabilities=state.probabilities,
        )
        if self.correction is None:
            return state

        # 7. Correct (not in the paper; `enat.corrections`): mask some tokens again that were visible before this step.
        just_revealed = revealed_positions, drawn_log_probs.gather(1, revealed)
        return mask_again(state, just_revealed, step, self.correction, correction_noise, net.mask_token_id)
