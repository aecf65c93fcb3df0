"""ENAT: token-based image synthesis with disentangled computation and feature reuse.

The method of "ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis"
(NeurIPS 2024, arXiv 2411.06959), in plain torch. Only `enat.module` needs Lightning.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from enat.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]


def __getattr__(name: str) -> Any:
    """Imports `load` and `Pipeline` when they are first used, since torch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module 'enat' has no attribute {name!r}")
    from enat import pipeline

    return getattr(pipeline, name)
