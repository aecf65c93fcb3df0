"""Says how a checkpoint is damaged in ways that torch does not notice, or crashes on during training."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from enat.checkpoints.limits import has_numbers
from enat.files import by_full_name
from enat.training.module import AveragedModule

# Of the optimisers of torch, as large as their weight.
MOMENTS = ["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg"]
MOMENTS += ["acc_delta", "sum", "variance", "prev", "step_size", "ax"]
LARGEST_RATE = 10  # times the configured learning rate, in a checkpoint whose schedule has another rate


def _fault_of(tensor: Tensor) -> str | None:
    """Says why training can't go on with a tensor; None if it can."""
    if not has_numbers(tensor):
        return "is sparse, quantised or without content"
    return None if tensor.isfinite().all() else "holds NaN or infinite values"


def fault_of_weights(content: Mapping[str, Any]) -> str | None:
    """Names the first weight, or average of weights, that holds NaN or infinite values, or no numbers at all."""
    average = content.get("callbacks", {}).get("EMA", {}).get("net", {})
    for kind, state in {"weights": content["state_dict"], "EMA weights": average}.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and (fault := _fault_of(value)):
                return f"{name} of its {kind} {fault}"
    return None


def fault_of_optimizer(content: Mapping[str, Any], module: AveragedModule) -> str | None:
    """Says how the state of the optimiser is damaged, which torch would take as it is, or crash on.

    It is for moments that are missing, not finite or of another shape than their weight, and for a learning rate far
    above the configured one that is not the one of the schedule.
    """
    parameters = [weight for weight in module.parameters() if weight.requires_grad]
    configured = by_full_name(content.get("settings", {})).get("module.optimizer.lr", math.inf)
    try:
        of_schedules = [rate for part in content.get("lr_schedulers", ()) for rate in part.get("_last_lr", ())]
        for optimizer in content["optimizer_states"]:
            numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
            if numbers != list(range(len(parameters))):
                raise ValueError("other parameters")
            for group in optimizer["param_groups"]:
                rate = group["lr"]
                if not 0 <= rate < math.inf or (rate > LARGEST_RATE * configured and rate not in of_schedules):
                    raise ValueError(f"the learning rate {rate}")
                if "betas" in group and content["global_step"] and not optimizer["state"]:
                    raise ValueError("no moments")
            # Some optimisers keep other moments of vectors than of matrices.
            kinds = {(parameters[number].ndim, frozenset(kept)) for number, kept in optimizer["state"].items()}
            if len(kinds) > len({dimensions for dimensions, _ in kinds}):
                raise ValueError("moments that some weights lack")
            for number, moments in optimizer["state"].items():
                _check_moments(moments, parameters[number])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return f"the state of its optimiser is damaged ({error})"
    return None


def _check_moments(moments: Mapping[str, Any], parameter: Tensor) -> None:
    """Raises ValueError for moments that do not fit a parameter."""
    shape = parameter.shape
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(MOMENTS, shape)
    if len(shape) > 1:  # of Adafactor: means over the last dimension, and over the one before it
        shapes |= {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}
    for name, value in moments.items():
        if name in shapes and value is not None and value.shape != shapes[name]:
            raise ValueError(f"{name} of shape {list(value.shape)} for a weight of shape {list(shape)}")
        if isinstance(value, Tensor) and (fault := _fault_of(value)):
            raise ValueError(f"{name} {fault}")
