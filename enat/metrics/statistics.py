"""Reference statistics of real images: mean and covariance of their features. Shapes: `D` features."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from enat.errors import InputError


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) over n-1, in float64."""

    mu: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, total: Tensor, products: Tensor, count: int) -> "Statistics":
        """From the sum of features (D,), the sum of their outer products (D, D), and their number."""
        mu = total / count
        return cls(mu, (products - count * torch.outer(mu, mu)) / (count - 1))


def load_statistics(path: str) -> Statistics:
    """Reads an `.npz` with `mu` and `sigma`: ADM's, or one of task=statistics.

    Raises:
        InputError: if there is no such file, or something else in it.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as content:
            mu, sigma = (torch.from_numpy(content[name].astype(np.float64)) for name in ("mu", "sigma"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"reference {path}: expected an .npz file with mu and sigma, such as ADM's or one of task=statistics."
        ) from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise InputError(f"reference {path}: mu {tuple(mu.shape)} and sigma {tuple(sigma.shape)} do not fit.")
    return Statistics(mu, sigma)
