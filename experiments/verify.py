"""task=verify: compares what this project computes with tensors that the official program produced.

Shapes: `B` batch, `L` tokens, `V` visible and `M` masked tokens, `D` width, `K` codebook size.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import from_official, to_official
from enat.checkpoints.weights import load_exactly
from enat.errors import InputError
from enat.images import center_crop
from enat.loss import MaskedCrossEntropy
from enat.masking import num_masked
from enat.metrics.scores import FrechetDistance
from enat.net import ENAT
from enat.sampler import Sampler
from enat.schedules import cosine, falling, rising
from enat.tokenizers.vqgan import VQGAN


class Row(NamedTuple):
    """Holds a quantity, its worst error, and the largest error that is allowed."""

    quantity: str
    error: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN


class Golden:
    """Reads a folder of golden tensors, as its README describes it.

    Raises:
        InputError: if the folder or one of its files is missing or broken.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder)
        try:
            self.description = json.loads((self.folder / "golden.json").read_text())
            self.config = self.description["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"golden={folder}: expected a folder with a readable golden.json ({error}).") from error

    def load(self, name: str) -> dict[str, Tensor]:
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"golden={self.folder}: {path.name} is missing or broken.") from error

    def net(self, name: str) -> ENAT:
        """Makes a network with the weights of a file, in evaluation mode."""
        config = self.config
        encoder_depth, decoder_depth = config["depth"]
        net = ENAT(
            codebook_size=config["codebook"],
            num_classes=config["classes"],
            num_tokens=config["grid"] ** 2,
            width=config["width"],
            num_heads=config["heads"],
            encoder_depth=encoder_depth,
            decoder_depth=decoder_depth,
        )
        state = split_blocks(from_official(self.load(name)), encoder_depth)
        load_exactly(net, state, self.folder / f"{name}.safetensors")
        return net.eval()


def positions(chosen: Tensor) -> Tensor:
    """Returns the positions (B, number) of the tokens that a mask (B, L) chooses, as many in each row."""
    counts = chosen.sum(dim=1)
    if (counts != counts[0]).any():
        raise InputError(f"golden: rows with unequal numbers of tokens ({counts.tolist()}); expected equal ones.")
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def worst(ours: Tensor, official: Tensor) -> float:
    """Returns the worst absolute error, which is infinite for another shape."""
    if ours.shape != official.shape:
        return float("inf")
    return float((ours.double() - official.double()).abs().max()) if ours.numel() else 0.0


def step(
    net: ENAT, token_ids: Tensor, class_ids: Tensor, cached: Tensor, cached_features: Tensor | None
) -> tuple[Tensor, Tensor, int]:
    """Computes one step on token ids (B, L), with the features of the tokens at the positions `cached` (B, P).

    Returns:
        The positions of all tokens (B, L), visible ones first, their features (B, L, D), and `V`.
    """
    is_masked = token_ids == net.mask_token_id
    masked = positions(is_masked)
    new = positions((~is_masked).scatter(1, cached, False))
    modulations = net.modulations(class_ids)
    visible = net.encode(token_ids.gather(1, new), new, modulations, cached_features)
    features = torch.cat([visible, net.decode(visible, masked, modulations)], dim=1)
    return torch.cat([cached, new, masked], dim=1), features, visible.shape[1]


def compare_step(
    net: ENAT, golden: dict[str, Tensor], name: str, title: str, place: Tensor, features: Tensor
) -> Iterator[Row]:
    """Compares features and logits of all tokens, the visible ones included; `name` is that of the tensors."""
    for kind, ours in {"features": features, "logits": net.logits(features)}.items():
        official = golden[f"{name}.{kind}"]
        official = official.gather(1, place.unsqueeze(2).expand(-1, -1, official.shape[2]))
        yield Row(f"{title}: {kind}", worst(ours, official), 1e-4)


@torch.no_grad()
def verify_forward(golden: Golden) -> Iterator[Row]:
    """Compares steps with all tokens masked, with visible tokens and no reuse, and in a chain of steps with reuse."""
    net, forward = golden.net("model"), golden.load("forward")
    labels, nothing = forward["labels"], forward["tokens"][:, :0]
    place, features, _ = step(net, torch.full_like(forward["tokens"], net.mask_token_id), labels, nothing, None)
    yield from compare_step(net, forward, "all_masked", "all tokens masked", place, features)
    steps = sorted(name.split(".")[0].removeprefix("plain") for name in forward if name.endswith(".input"))
    cached, cached_features = nothing, None
    for number in steps:
        token_ids = forward[f"plain{number}.input"]
        place, features, _ = step(net, token_ids, labels, nothing, None)
        yield from compare_step(net, forward, f"plain{number}", f"step {number} without reuse", place, features)
        place, features, visible = step(net, token_ids, labels, cached, cached_features)
        yield from compare_step(net, forward, f"chain{number}", f"step {number} with reuse", place, features)
        cached, cached_features = place[:, :visible], features[:, :visible]


def verify_training(golden: Golden) -> Iterator[Row]:
    """Compares the loss with and without reuse, and every gradient of both."""
    net, ema = golden.net("model"), golden.net("ema")
    forward, gradients = golden.load("forward"), golden.load("gradients")
    labels, token_ids, nothing = forward["labels"], forward["plain2.input"], forward["tokens"][:, :0]
    cached = positions(forward["plain1.input"] != net.mask_token_id)
    with torch.no_grad():
        cached_features = ema.encode(forward["plain1.input"].gather(1, cached), cached, ema.modulations(labels))
    cases = [("plain", "without reuse", nothing, None), ("reuse", "with reuse", cached, cached_features)]
    for kind, title, reused, reused_features in cases:
        net.zero_grad(set_to_none=True)
        place, features, visible = step(net, token_ids, labels, reused, reused_features)
        targets = forward["loss.target"].gather(1, place[:, visible:])
        loss = MaskedCrossEntropy()(net.logits(features[:, visible:]), targets)
        loss.backward()
        yield Row(f"loss {title}", worst(loss.detach(), forward[f"loss.{kind}"]), 1e-5)
        official = {name.removeprefix(f"{kind}."): x for name, x in gradients.items() if name.startswith(f"{kind}.")}
        ours = to_official({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        ours = {name: gradient for name, gradient in ours.items() if not name.startswith("prev_embedder.")}
        yield Row(f"gradients that only one program has, {title}", len(set(ours) ^ set(official)), 0)
        relative = [
            worst(ours[name], official[name]) / max(float(official[name].abs().max()), 1e-12)
            for name in sorted(set(ours) & set(official))
        ]
        yield Row(f"{len(relative)} relative gradients {title}", max(relative, default=float("inf")), 1e-4)


def greedy(num_steps: int) -> Sampler:
    """Makes a sampler with the official schedules and without noise."""
    return Sampler(
        num_steps=num_steps,
        guidance_scale=2.5,
        sampling_temperature=0.0,
        gumbel_temperature=0.0,
        mask_schedule=cosine,
        guidance_schedule=rising,
        sampling_temperature_schedule=falling,
        gumbel_temperature_schedule=falling,
    )


def verify_generation(golden: Golden) -> Iterator[Row]:
    """Compares the token ids that each step of a generation starts from, and its result."""
    generation = golden.load("generation")
    for num_steps in golden.config["steps"]:
        net = golden.net(f"generator_{num_steps}")
        record: list[Tensor] = []
        tokens = greedy(num_steps)(net, generation[f"{num_steps}.labels"], record=record)
        different = int((torch.stack(record) != generation[f"{num_steps}.inputs"]).sum())
        yield Row(f"{num_steps} steps, different tokens given to a step", different, 0)
        different = int((tokens != generation[f"{num_steps}.tokens"]).sum())
        yield Row(f"{num_steps} steps, different tokens of the result", different, 0)


def bfloat16_agreement(golden: Golden) -> dict[str, float]:
    """Returns the share of official tokens that weights in bfloat16 give, by number of steps; it is not checked."""
    generation, shares = golden.load("generation"), {}
    for num_steps in golden.config["steps"]:
        net = golden.net(f"generator_{num_steps}").bfloat16()
        tokens = greedy(num_steps)(net, generation[f"{num_steps}.labels"])
        shares[str(num_steps)] = (tokens == generation[f"{num_steps}.tokens"]).float().mean().item()
    return shares


@torch.no_grad()
def verify_tokenizer(golden: Golden) -> Iterator[Row]:
    """Compares latents, indices and decoded images of the VQGAN."""
    sizes, io = golden.config["vqgan"], golden.load("vqgan_io")
    vqgan = VQGAN(
        codebook_size=sizes["n_embed"],
        code_width=sizes["embed_dim"],
        channels=sizes["ch"],
        multipliers=sizes["ch_mult"],
        num_blocks=sizes["num_res_blocks"],
        resolution=sizes["resolution"],
    )
    load_exactly(vqgan, golden.load("vqgan"), golden.folder / "vqgan.safetensors")
    latents = vqgan.latents(io["images"])
    yield Row("vqgan latents", worst(latents, io["latents"].flatten(2).mT), 1e-4)
    different = vqgan.quantize(latents) != io["indices"].view(len(latents), -1)
    yield Row("vqgan, different indices", int(different.sum()), 0)
    decoded = vqgan.pixels(vqgan.quantize.codes(io["codes"].flatten(1)))
    yield Row("vqgan decoded images", worst(decoded, io["decoded"]), 1e-4)


def verify_fid(golden: Golden) -> Iterator[Row]:
    """Compares the FID, from features and from statistics."""
    tensors = golden.load("fid")
    official = float(tensors["fid"])
    by_features, by_statistics = FrechetDistance(), FrechetDistance()
    by_features.update(tensors["real"], real=True)
    by_statistics.set_real_statistics(tensors["real.mu"].double(), tensors["real.sigma"].double())
    for source, metric in {"features": by_features, "statistics": by_statistics}.items():
        metric.update(tensors["generated"], real=False)
        yield Row(f"FID by {source}, relative", abs(float(metric.compute()) - official) / official, 1e-8)


def verify_crops(golden: Golden) -> Iterator[Row]:
    """Compares ADM's crop, byte by byte."""
    crops = golden.load("center_crop")
    for number, (width, height, side) in enumerate(golden.config["crops"]):
        cropped = center_crop(Image.fromarray(crops[f"{number}.image"].numpy()), side)
        different = worst(torch.tensor(np.asarray(cropped)), crops[f"{number}.cropped"])
        yield Row(f"crop of {width}x{height} to {side}, grey levels", different, 0)


def verify_mask_counts(golden: Golden) -> Iterator[Row]:
    """Compares the numbers of masked tokens for given mask ratios."""
    table = golden.description["mask_counts"]
    for num_tokens, counts in table["counts"].items():
        wrong = sum(num_masked(p, int(num_tokens)) != n for p, n in zip(table["probabilities"], counts, strict=True))
        yield Row(f"wrong mask counts of {num_tokens} tokens", wrong, 0)


PARTS: list[Callable[[Golden], Iterator[Row]]] = [
    verify_mask_counts,
    verify_forward,
    verify_training,
    verify_generation,
    verify_tokenizer,
    verify_crops,
    verify_fid,
]


def verify(golden: str) -> dict[str, Any]:
    """Compares every quantity with the official program's, in float32 on the CPU.

    Args:
        golden: a folder of golden tensors.

    Returns:
        `passed`, which also sets the exit status, a row for each quantity, and the agreement in bfloat16.

    Raises:
        InputError: if the folder lacks a file.
    """
    opened = Golden(golden)
    try:
        rows, agreement = [row for part in PARTS for row in part(opened)], bfloat16_agreement(opened)
    except (KeyError, IndexError, RuntimeError) as error:
        raise InputError(f"golden={golden}: the tensors do not fit golden.json or each other: {error}.") from error
    table = Table("quantity", "worst error", "allowed", "")
    for row in rows:
        table.add_row(row.quantity, f"{row.error:.3g}", f"{row.allowed:.3g}", "pass" if row.passed else "[red]FAIL")
    Console().print(table)
    for num_steps, share in agreement.items():
        print(f"{num_steps} steps with weights in bfloat16: {share:.1%} of the official tokens.")
    print(f"{sum(row.passed for row in rows)} of {len(rows)} pass.")
    return {
        "passed": all(row.passed for row in rows),
        "worst": [{**row._asdict(), "passed": row.passed} for row in rows],
        "bfloat16_agreement": agreement,
    }
