"""Compiles parts of a network by `torch.compile`, within torch's limits on how often it may compile a function."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from enat.net import ENAT

# One, or any number, of tokens; no, one, or any number of context tokens; with gradient, without, in inference mode.
VARIANTS_OF_A_BLOCK = 2 * 3 * 3


def compile_blocks(*nets: ENAT) -> None:
    """Compiles the blocks of networks in place, once for all of them and any number of tokens; weights keep names."""
    limit = max(torch.compiler.config.recompile_limit, VARIANTS_OF_A_BLOCK)
    torch.compiler.config.recompile_limit = limit
    # Private in torch, without a public equivalent yet: DDP would split the blocks, which are small enough to overlap.
    torch._dynamo.config.optimize_ddp = False
    for net in nets:
        for block in net.blocks:
            block.compile(dynamic=True)


def compile_step(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compiles a function of fixed shapes that returns a NamedTuple of tensors; on GPUs, as CUDA graphs."""
    if device.type != "cuda":
        return _with_limits(torch.compile(step, dynamic=False))
    compiled = _with_limits(torch.compile(step, dynamic=False, mode="reduce-overhead"))

    def run(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        result = compiled(*arguments)
        # The next call overwrites the memory in which a graph returns its results.
        return type(result)(*(x.clone() if isinstance(x, Tensor) else x for x in result))

    return run


def _with_limits(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a compiled function have a variant for each of many steps and batch sizes."""

    def run(*arguments: Any) -> Any:
        with torch.compiler.config.patch(recompile_limit=1024, accumulated_recompile_limit=8192):  # type: ignore[attr-defined]
            return compiled(*arguments)

    return run
