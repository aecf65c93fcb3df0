"""ENAT: token-based image synthesis with disentangled computation and feature reuse.

The method of "ENAT: Rethinking Spatial-temporal Interactions in Token-based Image Synthesis"
(NeurIPS 2024, arXiv 2411.06959), in plain torch. Only `enat.module` needs Lightning.
"""

from enat.pipeline import Pipeline, load

__all__ = ["Pipeline", "load"]
