"""task=statistics: reference statistics of a folder of real images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset

from data.images import SUFFIXES, center_crop, load_rgb
from enat.errors import InputError
from enat.metrics.statistics import Statistics
from experiments.device import device_for


class _Crops(Dataset[torch.Tensor | str]):
    """Image files as cropped (3, S, S) in [0, 1], or the reason why one can't be read."""

    def __init__(self, files: list[Path], side: int):
        self.files, self.side = files, side

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> torch.Tensor | str:
        try:
            pixels = np.asarray(center_crop(load_rgb(self.files[item]), self.side))
        except InputError as error:
            return str(error)
        return torch.tensor(pixels).permute(2, 0, 1).float() / 255


def accumulate(features: nn.Module, batches: Iterable[list[torch.Tensor | str]]) -> tuple[Statistics, list[str]]:
    """Mean and covariance of the features of batches of images, and the reasons that stand in place of images.

    Raises:
        InputError: if fewer than two images are left.
    """
    width, device = int(features.num_features), next(features.parameters()).device  # type: ignore[arg-type]
    total = torch.zeros(width, dtype=torch.float64, device=device)
    products = torch.zeros(width, width, dtype=torch.float64, device=device)
    count, skipped = 0, []
    for batch in track(batches, description="features"):
        readable = [image for image in batch if not isinstance(image, str)]
        skipped += [reason for reason in batch if isinstance(reason, str)]
        if readable:
            with torch.no_grad():
                extracted = features(torch.stack(readable).to(device))[0].double()
            total += extracted.sum(0)
            products += extracted.T @ extracted
            count += len(readable)
    for reason in skipped:
        print(f"Skipped {reason}")
    if count < 2:
        raise InputError(f"images: found {count} readable ones; expected at least 2.")
    return Statistics.of(total, products, count), skipped


def statistics(
    images: str | None,
    features: nn.Module,
    resolution: int,
    batch_size: int,
    num_workers: int,
    output: str,
    accelerator: str,
) -> dict[str, Any]:
    """Computes mean and covariance of the features of all images below a folder.

    Args:
        images: the folder.
        features: the feature network, with the attributes `protocol` and `sha256`.
        resolution: images are cropped to this side as for training.
        batch_size, num_workers: of the reading.
        output: folder of `statistics.npz`, which has the keys of ADM's: `mu` and `sigma`, and provenance.
        accelerator: where the feature network runs.

    Returns:
        The file, the number of images, and the protocol.

    Raises:
        InputError: if there are fewer than two readable images; others are named and left out.
    """
    if min(batch_size, resolution) < 1 or num_workers < 0:
        raise InputError(
            f"batch_size={batch_size}, resolution={resolution}, num_workers={num_workers}: expected at least 1, 1, 0."
        )
    if images is None or not Path(images).is_dir():
        raise InputError(f"images={images}: expected a folder of images.")
    files = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise InputError(f"images={images}: found {len(files)} images; expected at least 2.")
    loader = DataLoader(_Crops(files, resolution), batch_size, num_workers=num_workers, collate_fn=list)
    result, skipped = accumulate(features.to(device_for(accelerator)).eval(), loader)
    count = len(files) - len(skipped)
    path = Path(output) / "statistics.npz"
    provenance: dict[str, Any] = {
        "num_images": count,
        "protocol": features.protocol,
        "features_sha256": features.sha256,
    }
    np.savez(path, mu=result.mu.cpu().numpy(), sigma=result.sigma.cpu().numpy(), **provenance)
    return {"statistics": str(path), "resolution": resolution, "skipped": skipped, **provenance}
