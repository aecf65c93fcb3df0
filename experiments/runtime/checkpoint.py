"""A checkpoint that a task draws images with, on the devices and in the precision of a fabric."""

from contextlib import nullcontext

from lightning.fabric import Fabric

from enat.checkpoints.weights import load_weights, read_file
from enat.generation import GeneratedImages
from enat.metrics.evaluation import Evaluation
from enat.net import ENAT
from enat.processes import Processes
from enat.sampler import Sampler
from enat.tokenizers.base import Tokenizer


class Checkpoint:
    """A network with a file's weights on the device of this process, and the processes that share the work.

    Args:
        net, tokenizer: make images, in the fabric's precision; features and scores are always in full precision.
        weights: a checkpoint of ours, with its EMA weights, or an official one, or safetensors.
        fabric: the processes, launched.

    Raises:
        InputError: for weights that do not fit.
    """

    def __init__(self, net: ENAT, tokenizer: Tokenizer, weights: str | None, fabric: Fabric):
        tokenizer.check_sizes(net.codebook_size, net.num_tokens)
        self.source = load_weights(net, weights)
        self.device = fabric.device
        self.processes = Processes()
        content = read_file(str(weights))
        self.class_names: list[str] | None = content.get("class_names")
        if self.processes.rank == 0 and tokenizer.has_other_codes(content):
            print(f"Note: {weights} was trained on the tokens of another tokenizer, so that its images may be wrong.")
        precision = fabric.strategy.precision
        self.facts = {
            **self.source,
            "net": net.sizes,
            "network_precision": precision.precision,
            "tokenizer_sha256": tokenizer.fingerprint(),
        }
        self.net = net
        self.tokenizer = tokenizer
        for part in (net, tokenizer):
            precision.convert_module(part).to(self.device)
        # With weights that are cast once, Fabric's context would change the default type, and that of the noise.
        self.context = nullcontext if precision.precision.endswith("-true") else fabric.autocast

    def images(self, evaluation: Evaluation, sampler: Sampler, seed: int) -> GeneratedImages:
        """Returns the images of a seed."""
        sizes = (evaluation.num_images, seed, evaluation.block_size, evaluation.batch_size)
        return GeneratedImages(self.net, sampler, self.tokenizer, *sizes, evaluation.class_counts, self.context)
