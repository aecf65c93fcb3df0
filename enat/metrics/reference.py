"""What images are compared with: statistics from a file, or images."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from enat.errors import InputError
from enat.files import sha256_of
from enat.metrics.features import FeatureNetwork
from enat.metrics.images import Block, Images
from enat.metrics.statistics import Statistics
from enat.metrics.tally import Summary


class ArchivedImages:
    """Images of an `.npz` as ADM's suite has them: `arr_0`, uint8 (n, H, W, 3). Read in parts.

    Args:
        path: of the file.

    Raises:
        InputError: if there are none.
    """

    read_together = 1

    def __init__(self, path: str):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
                shape, self.offset = self._header(file)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: expected an .npz file with arr_0, uint8 images (n, H, W, 3).") from error
        self.num_images, self.shape = shape[0], shape[1:]
        self.identity: Mapping[str, Any] = {"kind": "images of an npz file", "path": path, "sha256": sha256_of(path)}

    @staticmethod
    def _header(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise ValueError(shape)
        return shape, file.tell()

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        """See `Images`."""
        image_bytes = int(np.prod(self.shape))
        with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            for place in places:
                try:
                    file.seek(self.offset + place.start * image_bytes)
                    content = file.read(len(place) * image_bytes)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise InputError(f"{self.path}: the file is damaged: {error}.") from error
                if len(content) != len(place) * image_bytes:
                    raise InputError(f"{self.path}: the file is truncated.")
                pixels = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(len(place), *self.shape)
                yield Block(torch.tensor(place), pixels.to(device).permute(0, 3, 1, 2).float() / 255)


class StatisticsFile:
    """An `.npz` file: ADM's statistics or reference batch, one of task=statistics, or any with `mu` and `sigma`.

    Args:
        path: of the file. `mu` (D,) and `sigma` (D, D) are of pool features; `mu_s`, `sigma_s`, if there are any, of
            spatial ones; `arr_0`, if there is one, holds images for what needs more than statistics. Those of
            task=statistics say how they were made, may have `features` (n, D), and further protocols under
            `PROTOCOL/mu`, and so on.
        protocol: by which the statistics of a file that does not say so were made.

    Raises:
        InputError: if there is no such file, or something else in it.
    """

    def __init__(self, path: str, protocol: str = "adm"):
        self.path = path
        try:
            if not zipfile.is_zipfile(path):
                raise ValueError("no archive")
            with np.load(Path(path), allow_pickle=False) as content:
                self.content = {name: content[name] for name in content.files if not name.startswith("arr_")}
                has_images = "arr_0" in content.files
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"reference.path={path}: expected an .npz file with mu and sigma, such as ADM's or one of "
                "task=statistics."
            ) from error
        marked = self.content.get("protocol")
        self.protocol = protocol if marked is None else str(marked)
        self.images: Images | None = ArchivedImages(path) if has_images else None
        self.identity: Mapping[str, Any] = {
            "kind": "statistics",
            "path": path,
            "sha256": sha256_of(path),
            "protocol": self.protocol,
        }
        if "mu" not in self.content and self.images is None:
            raise InputError(f"reference.path={path}: expected mu and sigma in it, found {', '.join(self.content)}.")

    def summaries(self, protocols: Sequence[str], network: FeatureNetwork) -> dict[str, Summary]:
        """What the file has for these protocols. ADM's statistics serve the official protocol too (SPEC 8).

        Raises:
            InputError: for statistics of another feature network, and for a protocol without statistics or images.
        """
        by = self.content.get("features_sha256")
        if by is not None and str(by) != network.sha256:
            raise InputError(
                f"reference.path={self.path}: made with other features (sha256 {str(by)[:8]}...); expected those of "
                f"features.weights ({network.sha256[:8]}...)."
            )
        found = {}
        for protocol in protocols:
            if f"{protocol}/mu" in self.content:
                prefix = f"{protocol}/"
            elif "mu" in self.content and (protocol == self.protocol or (protocol, self.protocol) == ("enat", "adm")):
                prefix = ""
            elif self.images is None:
                raise InputError(
                    f"reference.path={self.path}: its statistics are of protocol {self.protocol}, not {protocol}; "
                    f"expected a file of task=statistics protocol={protocol}."
                )
            else:
                continue
            same = prefix or protocol == self.protocol  # single features of another protocol do not serve
            features = self.content.get(f"{prefix}features") if same else None
            if features is not None and (features.ndim != 2 or features.shape[1] != network.num_features):
                raise InputError(f"reference.path={self.path}: {prefix}features has shape {features.shape}.")
            found[protocol] = Summary(
                self._statistics(prefix, "", network.num_features),
                self._statistics(prefix, "_s", network.num_spatial) if f"{prefix}mu_s" in self.content else None,
                None if features is None else torch.from_numpy(features),
            )
        return found

    def _statistics(self, prefix: str, suffix: str, width: int) -> Statistics:
        try:
            mu, sigma = (self.content[f"{prefix}{name}{suffix}"].astype(np.float64) for name in ("mu", "sigma"))
        except (KeyError, ValueError) as error:
            raise InputError(f"reference.path={self.path}: {prefix}mu{suffix} and its sigma are not both there.") from (
                error
            )
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise InputError(f"reference.path={self.path}: mu {mu.shape} and sigma {sigma.shape} do not fit.")
        if width != len(mu):
            raise InputError(
                f"reference.path={self.path}: {prefix}mu{suffix} has {len(mu)} features; the network has {width}."
            )
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise InputError(f"reference.path={self.path}: mu or sigma holds NaN or infinite values.")
        count = self.content.get("num_images")
        return Statistics(torch.from_numpy(mu), torch.from_numpy(sigma), None if count is None else int(count))


class DecodedShards:
    """Real images as the tokenizer gives them back, so that a network does not pay for the tokenizer.

    Args:
        images: decoded shards.
        real: statistics of the real images, which then say what the tokenizer costs: the reconstruction FID.
    """

    def __init__(self, images: Images, real: StatisticsFile | None):
        self.images, self.real = images, real
        self.identity: Mapping[str, Any] = {**images.identity, "real": None if real is None else dict(real.identity)}
