"""Lists the classes and functions that a configuration may name as `_target_`. Nothing else is imported or called.

A configuration, a checkpoint or a folder of shards may come from anybody. To use a class of your own, add it here and
name it in a YAML file.
"""

import importlib
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from enat.errors import InputError

NAMES: Mapping[str, str] = MappingProxyType(
    {
        "callbacks.checkpoints": "Checkpoints LeaveOnSignal",
        "callbacks.ema": "EMA",
        "callbacks.generation_metrics": "GenerationMetrics",
        "callbacks.guard": "NonFiniteGuard",
        "callbacks.loggers": "StepWandbLogger",
        "callbacks.progress": "TrainingProgress",
        "callbacks.reconstructions": "ReconstructionGrid ReconstructionMetrics",
        "callbacks.sample_grid": "SampleGrid",
        "callbacks.throughput": "Throughput",
        "callbacks.training_log": "TrainingLog",
        "data.image_module": "HeldOutImages ImageDataModule RandomCrop",
        "data.images": "Plain PlainAndFlipped TenCrop",
        "data.module": "ShardsDataModule",
        "data.references": "ArchivedImages DecodedShards StatisticsFile TensorImages",
        "data.scored_images": "ClassFolderImages FolderImages ShardImages",
        "data.shards": "ShardPacks map_packs",
        "data.toy.digits": "DigitFeatures DigitsDataModule classify_digits digit_images digit_labels",
        "data.toy.photos": "PhotosDataModule",
        "enat.corrections": "ConfidenceRemasking LeastConfident Remasking no_correction",
        "enat.features.inception": "InceptionFeatures adm clean enat",
        "enat.features.lite0": "Lite0Features",
        "enat.kernels": "auto sdpa xformers",
        "enat.loss": "MaskedCrossEntropy",
        "enat.masking": "RandomMasking",
        "enat.metrics.evaluation": "Evaluation no_evaluation",
        "enat.metrics.neighbours": "DensityCoverage LinearProbe Memorization",
        "enat.metrics.scores": "ClassAccuracy Copies FrechetDistance InceptionScore KernelDistance PrecisionRecall",
        "enat.metrics.view": "AsTheyAre OnView",
        "enat.module": "MaskedTokenModule",
        "enat.net": "ENAT",
        "enat.orders": "Confidence Entropy EntropyBound Fixed Halton Moment Random",
        "enat.packed": "PerSampleMasking",
        "enat.reuse": "AllTokensReuse LayerToLayerReuse ReuseWithoutProjection",
        "enat.sampler": "Sampler",
        "enat.schedules": (
            "PerStep arccos constant cosine exponential falling interval plateau power_cosine rising square square_root"
        ),
        "enat.tokenizers.diffusers": "DiffusersTokenizer TamingTokenizer",
        "enat.tokenizers.losses": "Adversarial GradientL1 L1 Perceptual TokenizerLoss",
        "enat.tokenizers.module": "TokenizerModule",
        "enat.tokenizers.pixels": "PixelTokenizer",
        "enat.tokenizers.quantizers": "AveragedCodebook FSQ LFQ",
        "enat.tokenizers.vqgan": "ConvTokenizer VQGAN",
        "enat.training.learning_rates": "warmup_cosine",
        "enat.variants": "ContextReuse KeyValueReuse NAT SeparateBlock",
        "experiments.benchmark": "Curves",
        "experiments.edit": "Region",
        "experiments.runtime.checkpoint": "Checkpoint",
        "experiments.runtime.launch": "ddp launch",
        "lightning.pytorch": "Trainer",
        "lightning.pytorch.callbacks": "EarlyStopping LearningRateMonitor DeviceStatsMonitor ModelSummary Timer",
        "lightning.pytorch.loggers": "CSVLogger TensorBoardLogger",
    }
)
TASKS = tuple(
    f"experiments.{name}.{name}"
    for name in (
        *("benchmark", "dashboard", "data_benchmark", "download", "edit", "emoji", "evaluate", "export", "latency"),
        *("neighbours", "page", "report", "sample", "score", "similarity", "stages", "statistics", "tokenize", "train"),
        *("train_tokenizer", "verify"),
    )
)
TARGETS = frozenset(f"{module}.{name}" for module, names in NAMES.items() for name in names.split())
# Families of classes. Each is a pattern of a name and the base class of what it may stand for. Metrics of texts, sounds
# and several media are left out, since their constructors load models by name.
FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        r"torch\.optim\.[A-Za-z]\w*": "torch.optim.Optimizer",
        r"torch\.optim\.lr_scheduler\.[A-Za-z]\w*": "torch.optim.lr_scheduler.LRScheduler",
        r"torchmetrics\.([A-Za-z]\w*|(image|classification|regression|aggregation)(\.[a-z]\w*)*\.[A-Za-z]\w*)": (
            "torchmetrics.Metric"
        ),
    }
)
# Classes that put variables of the environment, and a user's folder, in the place of `$NAME` and `~` in a path.
EXPANDING = ("lightning.pytorch.loggers.TensorBoardLogger",)
NOT_IMAGES = ("torchmetrics.text", "torchmetrics.audio", "torchmetrics.multimodal")


def is_allowed(target: Any, modules: Iterable[str] = ("",)) -> bool:
    """Says whether a node other than `task` may name this target; with `modules`, of these modules only."""
    if not isinstance(target, str) or not target.startswith(tuple(modules)):
        return False
    return target in TARGETS or any(re.fullmatch(pattern, target) for pattern in FAMILIES)


def import_target(option: str, target: Any) -> Any:
    """Imports what a `_target_` names.

    Args:
        option: the name of the node. Only the node `task` may name a task, since building it would run it.
        target: the value of its `_target_`.

    Raises:
        InputError: if it is not allowed, or a package that it needs is missing.
    """
    named = f"{option}._target_={target}"
    refusal = InputError(
        f"{named}: a configuration may not name this; expected a class or function of the list in "
        "experiments/runtime/targets.py, to which you can add your own."
    )
    if not (target in TASKS if option == "task" else is_allowed(target)):
        raise refusal
    try:
        called = _import(target)
        for pattern, base in FAMILIES.items():
            # A module of a library has what it imports among its names, so that the class decides and not its name.
            if target not in TARGETS and re.fullmatch(pattern, target):
                is_of_family = isinstance(called, type) and issubclass(called, _import(base))
                if not is_of_family or called.__module__.startswith(NOT_IMAGES):
                    raise refusal
    except ImportError as error:
        if package := _missing_package(error):
            raise InputError(
                f"{named}: needs the package {package}, which is not installed; the README says which extra brings it."
            ) from error
        raise InputError(f"{named}: there is nothing of this name to import.") from error
    return called


def refuse_variables(option: str, target: str, options: Mapping[str, Any]) -> None:
    """Refuses texts in which a class would put variables of the environment.

    Raises:
        InputError: naming the option.
    """
    for name, value in options.items():
        if target in EXPANDING and isinstance(value, str) and ("$" in value or value.startswith("~")):
            raise InputError(
                f"{option}.{name}={value}: this logger may not read the environment, whose values are secret at "
                "times; expected a text that has no $ and does not begin with ~."
            )


def _import(target: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(target) from error


def _missing_package(error: BaseException | None) -> str:
    """Returns the package whose absence caused an error; empty if the error had another cause."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    package = (error.name or "").partition(".")[0] if error else ""
    return "" if package in ("torch", "torchmetrics") else package
