"""Tokenizers that are a `VQModel` of diffusers: folders in its own format, such as aMUSEd's, and files of taming.

Shapes: `B` images, `h, w` sides of the token grid, `L = h*w` tokens.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from einops import rearrange
from torch import Tensor

from enat.checkpoints.selection import state_of
from enat.checkpoints.weights import load_exactly, read_file, refuse_other_shapes, without_loss
from enat.errors import InputError
from enat.precision import finite
from enat.tokenizers.base import Tokenizer, as_weights


class VQModelTokenizer(Tokenizer):
    """Encodes and decodes by a `VQModel` of diffusers.

    Args:
        model: the `VQModel`.
        resolution: side of the images in pixels, a multiple of the model's stride.
        symmetric: whether the model's pixels go from -1 to 1, instead of from 0 to 1.
        batch_size: number of images that are computed at a time, to limit memory.

    Raises:
        InputError: if the resolution does not fit.
    """

    def __init__(self, model: Any, resolution: int, symmetric: bool, batch_size: int):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        stride = 2 ** (len(model.config.block_out_channels) - 1)
        if resolution % stride:
            raise InputError(f"tokenizer.resolution={resolution}: expected a multiple of the stride {stride}.")
        self.codebook_size = int(model.config.num_vq_embeddings)
        self.resolution = resolution
        self.grid = (resolution // stride, resolution // stride)
        self.symmetric = symmetric
        self.batch_size = batch_size

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        parts = []
        for part in as_weights(images, self.model).split(self.batch_size):
            latents = finite(self.model.encode(part * 2 - 1 if self.symmetric else part).latents)
            token_ids = self.model.quantize(latents)[2][2]
            parts.append(token_ids.view(len(part), -1))
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, token_ids: Tensor) -> Tensor:
        parts = []
        for part in token_ids.split(self.batch_size):
            codes = self.model.quantize.embedding(part)  # (B, L, E)
            codes = rearrange(codes, "b (h w) e -> b e h w", h=math.isqrt(part.shape[1]))
            pixels = finite(self.model.decode(codes, force_not_quantize=True).sample)
            parts.append((pixels + 1) / 2 if self.symmetric else pixels)
        return torch.cat(parts).clamp(0, 1)


class DiffusersTokenizer(VQModelTokenizer):
    """Reads a `VQModel` in the format of diffusers, whose weights are safetensors, so that no code in them runs.

    Args:
        folder: has `config.json` and `diffusion_pytorch_model.safetensors`.
        resolution, batch_size: see `VQModelTokenizer`.
        symmetric: see `VQModelTokenizer`; the pixels of aMUSEd go from 0 to 1.

    Raises:
        InputError: if the folder holds no such model, or sizes do not fit.
    """

    def __init__(
        self,
        folder: str | None,
        resolution: Annotated[int, Ge(1)] = 256,
        symmetric: bool = False,
        batch_size: Annotated[int, Ge(1)] = 32,
    ):
        if folder is None or not (Path(folder) / "config.json").is_file():
            raise InputError(f"tokenizer.folder={folder}: expected a folder with the config.json of a VQModel.")
        model_class = _vq_model()
        try:
            model, loaded = model_class.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,
                device_map=None,
                output_loading_info=True,
            )
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"tokenizer.folder={folder}: no VQModel of diffusers: {reason}") from error
        for kind in ("missing", "unexpected"):  # diffusers would draw the first at random, and leave out the second
            if names := sorted(loaded[f"{kind}_keys"]):
                raise InputError(f"tokenizer.folder={folder}: no such VQModel: the weight {names[0]} is {kind}.")
        for name, weight in model.named_parameters():
            if not weight.isfinite().all():
                raise InputError(f"tokenizer.folder={folder}: weight {name} holds NaN or infinite values.")
        super().__init__(model, resolution, symmetric, batch_size)
        self.folder = folder

    def stored_weights(self) -> dict[str, Tensor]:
        raise InputError(
            f"tokenizer.folder={self.folder}: a folder of diffusers is not copied; expected python run.py task=export "
            "with_tokenizer=false, and tokenizer.folder=DIR beside the weights later."
        )


class TamingTokenizer(VQModelTokenizer):
    """Reads a VQGAN of taming-transformers (arXiv 2012.09841), whose sizes follow from the shapes of its weights.

    Args:
        weights: a checkpoint, with or without the networks of the loss.
        resolution, batch_size: see `VQModelTokenizer`.

    Raises:
        InputError: if the file holds other weights, such as a VQGAN with Gumbel softmax, or sizes do not fit.
    """

    def __init__(
        self,
        weights: str | None,
        resolution: Annotated[int, Ge(1)] = 256,
        batch_size: Annotated[int, Ge(1)] = 32,
    ):
        if weights is None:
            raise InputError("tokenizer.weights=null: expected weights of a VQGAN of taming-transformers.")
        try:
            state = state_of(without_loss(read_file(weights)))
            sizes = _taming_sizes(state)
        except InputError as error:
            reason = str(error).removeprefix(f"weights={weights}: ")
            raise InputError(f"tokenizer.weights={weights}: {reason}") from error
        with torch.device("meta"):  # a file must not make memory be taken for weights that it does not have
            own = _vq_model()(**sizes).state_dict()
        depth = len(sizes["block_out_channels"])
        renamed = {_from_taming(name, depth): tensor for name, tensor in state.items()}
        for name, tensor in renamed.items():
            if name in own and own[name].ndim == 2 and tensor.ndim == 4:  # a convolution of 1x1 there, a matrix here
                renamed[name] = tensor.flatten(1)
        hint = "The name is that of a VQModel of diffusers."
        refuse_other_shapes(own, renamed, f"tokenizer.weights={weights}", hint)
        model = _vq_model()(**sizes)
        load_exactly(model, renamed, f"tokenizer.weights={weights}", hint)
        super().__init__(model, resolution, True, batch_size)
        self.names_in_file = {_from_taming(name, depth): name for name in state}

    def stored_weights(self) -> dict[str, Tensor]:
        return {self.names_in_file[name]: tensor for name, tensor in self.model.state_dict().items()}


def _vq_model() -> Any:
    """Returns the class of diffusers, which is imported here because most runs have another tokenizer."""
    try:
        from diffusers import VQModel
    except ImportError as error:
        sentence = "this tokenizer needs the package diffusers; `pip install -e '.[diffusers]'` installs it."
        raise InputError(sentence) from error
    return VQModel


def _taming_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the options of a `VQModel` from the shapes of weights with taming's names.

    Raises:
        InputError: if a weight that shows a size is missing.
    """
    levels = {int(match[1]) for name in state if (match := re.match(r"encoder\.down\.(\d+)\.", name))}
    blocks = [name for name in state if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)]
    try:
        widths = [state[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in range(len(levels))]
        codebook_size, code_width = state["quantize.embedding.weight"].shape
        latent_channels = state["encoder.conv_out.weight"].shape[0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"these are no weights of a VQGAN of taming-transformers ({error}).") from error
    if not blocks or any(width % 32 for width in widths):
        raise InputError(f"these are no weights of a VQGAN of taming-transformers (its widths are {widths}).")
    attention = ["Attn" if f"encoder.down.{level}.attn.0.norm.weight" in state else "" for level in range(len(levels))]
    return {
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in attention],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(attention)],
        "block_out_channels": widths,
        "layers_per_block": len(blocks),
        "latent_channels": latent_channels,
        "num_vq_embeddings": codebook_size,
        "vq_embed_dim": code_width,
    }


def _from_taming(name: str, depth: int) -> str:
    """Translates the name of a weight of taming to that of a `VQModel` with `depth` resolutions."""
    name = re.sub(r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets.", name)
    name = re.sub(r"\bdown\.(\d+)\.attn\.", r"down_blocks.\1.attentions.", name)
    name = re.sub(r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0.", name)
    if match := re.match(r"decoder\.up\.(\d+)\.(block|attn|upsample)\.", name):  # taming counts from the highest down
        kind = {"block": "resnets", "attn": "attentions", "upsample": "upsamplers.0"}[match[2]]
        name = f"decoder.up_blocks.{depth - 1 - int(match[1])}.{kind}.{name[match.end() :]}"
    name = re.sub(r"\bmid\.block_([12])\.", lambda found: f"mid_block.resnets.{int(found[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    name = name.replace(".nin_shortcut.", ".conv_shortcut.").replace("coder.norm_out.", "coder.conv_norm_out.")
    if ".attentions." in name:
        name = re.sub(r"\.(q|k|v)\.(\w+)$", r".to_\1.\2", name)
        name = name.replace(".norm.", ".group_norm.").replace(".proj_out.", ".to_out.0.")
    return name
