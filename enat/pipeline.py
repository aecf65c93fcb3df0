"""Loads a checkpoint with all that it needs to draw images: `enat.load(FILE).generate(classes=[3, 7])`.

Shapes: `n` images, `L` tokens of an image.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from enat import kernels, schedules
from enat.checkpoints.names import split_blocks
from enat.checkpoints.official import infer_sizes
from enat.checkpoints.weights import load_exactly, other_tokenizer, read_file, select_state, with_found_tokenizer
from enat.corrections import ConfidenceRemasking, LeastConfident, Remasking, no_correction
from enat.errors import InputError
from enat.generation import check_class_names, find_class_ids, sample_classes
from enat.images import to_pil
from enat.net import ENAT
from enat.orders import Confidence, Entropy, EntropyBound, Fixed, Halton, Moment, Random
from enat.reuse import AllTokensReuse, LayerToLayerReuse, ReuseWithoutProjection
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer
from enat.tokenizers.diffusers import DiffusersTokenizer, TamingTokenizer
from enat.tokenizers.pixels import PixelTokenizer
from enat.tokenizers.quantizers import FSQ, LFQ, AveragedCodebook, Codebook
from enat.tokenizers.vqgan import VQGAN, ConvTokenizer
from enat.variants import NAT, KeyValueReuse, SeparateBlock

# What the settings in a checkpoint may name, whatever module they say it is in. Nothing else is ever called.
NETS = (ENAT, NAT, KeyValueReuse, AllTokensReuse, LayerToLayerReuse, ReuseWithoutProjection)
TOKENIZERS = (PixelTokenizer, VQGAN, DiffusersTokenizer, TamingTokenizer, ConvTokenizer)
QUANTIZERS = (FSQ, LFQ, AveragedCodebook, Codebook)
CLASSES = (*NETS, SeparateBlock, Sampler, *TOKENIZERS, *QUANTIZERS)
KERNELS = (kernels.sdpa, kernels.auto, kernels.xformers)
SCHEDULES = (
    *(schedules.arccos, schedules.constant, schedules.cosine, schedules.exponential, schedules.falling),
    *(schedules.interval, schedules.plateau, schedules.power_cosine, schedules.rising, schedules.square),
    *(schedules.square_root, schedules.PerStep),
)
ORDERS = (Confidence, Entropy, EntropyBound, Fixed, Halton, Moment, Random)
CORRECTIONS = (Remasking, ConfidenceRemasking, LeastConfident, no_correction)
BUILDABLE: dict[str, Any] = {kind.__name__: kind for kind in (*CLASSES, *KERNELS, *SCHEDULES, *ORDERS, *CORRECTIONS)}
OFFICIAL_DEPTHS = {24: (22, 2, 16), 16: (15, 1, 8)}  # of ENAT-L and ENAT-B: encoder, decoder, heads


class Pipeline:
    """A network, a sampler and a tokenizer that draw images together.

    Args:
        net: the network, in evaluation mode.
        sampler: draws token ids from the network.
        tokenizer: makes images from token ids.
        class_names: one for each class id; None for the ids themselves.
    """

    def __init__(self, net: ENAT, sampler: Sampler, tokenizer: Tokenizer, class_names: Sequence[str] | None = None):
        tokenizer.check_sizes(net.codebook_size, net.num_tokens)
        self.net = net
        self.sampler = sampler
        self.tokenizer = tokenizer
        self.class_names = check_class_names(class_names, net.num_classes)

    def to(self, device: torch.device | str) -> "Pipeline":
        """Moves network and tokenizer to a device."""
        self.net.to(device)
        self.tokenizer.to(device)
        return self

    def generate(
        self, classes: Sequence[int | str] | int | str | None = None, images_per_class: int = 1, seed: int = 0
    ) -> list[Image.Image]:
        """Draws images, class by class.

        Args:
            classes: ids or names, or a single one, or `unconditional` for images of no class; None for all classes.
            images_per_class: the number of images of each class.
            seed: of the noise.

        Raises:
            InputError: for a class that the network does not have.
        """
        ids = find_class_ids(classes, self.class_names)
        images, _ = sample_classes(self.net, self.sampler, self.tokenizer, ids, images_per_class, seed)
        return to_pil(images)


def load(weights: str | Path, tokenizer: str | Path | None = None, device: torch.device | str = "cpu") -> Pipeline:
    """Loads a checkpoint of ours, or an official one, with its sampler and its tokenizer; runs no code of the file.

    Args:
        weights: a checkpoint of a training run, which says by itself what it needs, or an official ENAT-B or ENAT-L.
        tokenizer: the file of the VQGAN, such as `vqgan_jax_strongaug.ckpt`; None for the tokenizer of the run.
        device: where images are drawn.

    Raises:
        InputError: if a file is missing, holds something else, or does not say what it needs.
    """
    content = read_file(weights) if tokenizer else with_found_tokenizer(read_file(weights), weights)
    state, kind = select_state(content)
    settings = content.get("settings")
    if settings is not None:
        net = build_from_settings(settings["module"]["net"])
        if not isinstance(net, ENAT):
            raise InputError(f"{weights}: the checkpoint of a tokenizer; expected that of a network.")
        sampler = build_from_settings(settings["sampler"])
        chosen = settings["tokenizer"] if tokenizer is None else {**settings["tokenizer"], "weights": str(tokenizer)}
        built_tokenizer = build_from_settings(chosen)
    elif kind == "official" and tokenizer is not None:
        net = _official_net(state, weights)
        is_512 = net.num_tokens == 1024
        sampler = _official_sampler(is_512)
        built_tokenizer = VQGAN(weights=str(tokenizer), resolution=512 if is_512 else 256)
    else:
        raise InputError(
            f"{weights}: expected the checkpoint of a training run, or an official one with tokenizer=FILE, the VQGAN."
        )
    if other_tokenizer(content, built_tokenizer.fingerprint()):
        print(f"Note: {weights} was trained on the tokens of another tokenizer, so that its images may be wrong.")
    load_exactly(net, split_blocks(state, net.encoder_depth), weights)
    return Pipeline(net.eval(), sampler, built_tokenizer, content.get("class_names")).to(device)


def build_from_settings(node: Any) -> Any:
    """Builds what settings name, if it is one of `BUILDABLE`."""
    if isinstance(node, list):
        return [build_from_settings(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    name = str(node.get("_target_")).rpartition(".")[2]
    if name not in BUILDABLE:
        raise InputError(f"_target_={node.get('_target_')}: expected one of {', '.join(BUILDABLE)}.")
    options = {key: build_from_settings(value) for key, value in node.items() if not key.startswith("_")}
    return partial(BUILDABLE[name], **options) if node.get("_partial_") else BUILDABLE[name](**options)


def _official_net(state: Mapping[str, torch.Tensor], path: str | Path) -> ENAT:
    sizes: dict[str, Any] = dict(infer_sizes(state))
    depth = sizes.pop("depth")
    if depth not in OFFICIAL_DEPTHS:
        raise InputError(f"{path}: {depth} blocks; expected the 24 of ENAT-L or the 16 of ENAT-B.")
    encoder_depth, decoder_depth, num_heads = OFFICIAL_DEPTHS[depth]
    return ENAT(**sizes, encoder_depth=encoder_depth, decoder_depth=decoder_depth, num_heads=num_heads)


def _official_sampler(is_512: bool) -> Sampler:
    """Returns the sampler with the official settings (docs/method.md, Recipe)."""
    return Sampler(
        num_steps=8,
        guidance_scale=3.5 if is_512 else 2.5,
        sampling_temperature=4.0 if is_512 else 6.0,
        gumbel_temperature=1.5,
        mask_schedule=schedules.cosine,
        guidance_schedule=schedules.rising,
        sampling_temperature_schedule=schedules.falling,
        gumbel_temperature_schedule=schedules.falling,
    )
