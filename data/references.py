"""Images in memory or in an `.npz` file, and what generated images are compared with."""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.arrays import check_member, is_packed, read_npy_header, read_npz
from data.scored_images import ShardImages
from enat.errors import InputError
from enat.features.network import FeatureNetwork
from enat.files import sha256_of, sha256_of_bytes
from enat.images import Block, Images
from enat.metrics.accumulation import refuse_other_size
from enat.metrics.scores import FrechetDistance, KeptFeatures, frechet_distance
from enat.metrics.view import OnView

SUFFIXES = {"pool": "", "spatial": "_s"}  # of `mu` and `sigma` in ADM's files, by view
# What an .npz file of statistics may hold for each protocol, and once; all else in it is not read.
STATISTICS = {"mu", "sigma", "mu_s", "sigma_s", "features", "protocol", "features_sha256", "size", "num_images"}

FLOATS = (np.float16, np.float32, np.float64)  # of features, in either order of the bytes
MAX_IMAGES = 2**26  # in an archive; more than that is a damaged number
MAX_PACKED_IMAGE = 2**24  # bytes of a compressed image, so that a small file can't fill the memory with a block of them


class TensorImages:
    """Images (n, channels, H, W), in [0, 1], that are in memory, and their class ids (n,)."""

    read_together = 1

    def __init__(self, images: Tensor, class_ids: Tensor | None = None):
        self.images = images
        self.class_ids = class_ids
        self.num_images = len(images)
        content = [tensor.cpu().numpy().tobytes() for tensor in (images, class_ids) if tensor is not None]
        self.identity: Mapping[str, Any] = {"kind": "tensor", "sha256": sha256_of_bytes(b"".join(content))}

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        for place in places:
            numbers = torch.tensor(place)
            class_ids = None if self.class_ids is None else self.class_ids[numbers].to(device)
            yield Block(numbers, self.images[numbers].to(device), class_ids)


class ArchivedImages:
    """Images of an `.npz` file in the format of ADM's suite: `arr_0`, uint8 (n, H, W, 3), read in parts.

    Raises:
        InputError: if there is no such file, it has no such images, or `read` finds it damaged.
    """

    read_together = 1

    def __init__(self, path: str):
        self.path = path
        if Path(path).is_dir():
            raise InputError(f"{path}: this is a folder; expected an .npz file, or scored=folder (reference=images).")
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file.")
        try:
            with zipfile.ZipFile(path) as archive:
                member = archive.getinfo("arr_0.npy")
                check_member(member, Path(path))
                with archive.open(member) as file:
                    (self.num_images, *self.shape), is_fortran, dtype = read_npy_header(file)
                    self.offset = file.tell()
            if is_fortran or dtype != np.uint8 or len(self.shape) != 3 or self.shape[2] != 3:
                raise ValueError(f"{dtype} {self.shape}")
            self.image_bytes = math.prod(self.shape)
            is_huge = is_packed(member) and self.image_bytes > MAX_PACKED_IMAGE
            if is_huge or not self.image_bytes or self.num_images > MAX_IMAGES:
                raise ValueError(f"{self.num_images} {self.shape}")
        except (OSError, KeyError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: expected an .npz file with arr_0, uint8 images (n, H, W, 3).") from error
        self.identity: Mapping[str, Any] = {"kind": "images of an npz file", "path": path, "sha256": sha256_of(path)}

    def read(self, places: Sequence[range], device: torch.device) -> Iterator[Block]:
        image_bytes = self.image_bytes
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
    """Reads an `.npz` file: ADM's statistics or reference batch, one of task=statistics, or any with `mu` and `sigma`.

    Args:
        path: the file. `mu` (D,) and `sigma` (D, D) belong to pool features; `mu_s` and `sigma_s`, if they are there,
            to spatial ones; `arr_0`, if it is there, holds images for scores that need more than statistics. Files of
            task=statistics say how they were made, may have `features` (n, D), and may have further protocols under
            `PROTOCOL/mu` and so on.
        protocol: the protocol that made the statistics of a file that does not say so.

    Raises:
        InputError: if there is no such file, or something else in it.
    """

    def __init__(self, path: str, protocol: str = "adm"):
        self.path = path
        self.option = "path"  # how errors name it; whoever builds this puts the name of the reference before it
        if Path(path).is_dir():
            raise self._error("this is a folder; expected a file of statistics, or reference=images beside it.")
        if not Path(path).is_file():
            raise self._error("there is no such file.")
        try:
            self.content, names = read_npz(Path(path), STATISTICS)
        except (OSError, ValueError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
            sentence = "expected an .npz file with mu and sigma, such as ADM's or one of task=statistics."
            raise self._error(sentence) from error
        self.protocol = self._text("protocol", protocol)
        archive = ArchivedImages(path) if "arr_0" in names else None
        self.images: Images | None = archive
        self.size: Sequence[int] | None = archive.shape[:2] if archive else None
        if "size" in self.content:
            self.size = self._integers("size", 2)
        if "num_images" in self.content:
            self._integers("num_images", 1)
        self.identity: Mapping[str, Any] = {
            "kind": "statistics",
            "path": path,
            "sha256": sha256_of(path),
            "protocol": self.protocol,
        }
        if "mu" not in self.content and self.images is None:
            raise self._error(f"expected mu and sigma in it, found {', '.join(names)}.")
        self.option = "reference.path"

    def _integers(self, name: str, count: int) -> list[int]:
        values = self.content[name].reshape(-1)
        if values.dtype.kind not in "iu" or len(values) != count or values.min() < 1:
            raise self._error(f"{name} in it is damaged; expected {count} positive integers.")
        return [int(value) for value in values]

    def _text(self, name: str, otherwise: str) -> str:
        """Returns a text in the file, or another one if it has none of this name."""
        text = self.content.get(name, np.asarray(otherwise))
        try:
            if text.dtype.kind != "U" or text.size != 1:
                raise ValueError(f"{text.dtype} {text.shape}")
            return str(text.item())  # an error, for numbers that stand for no character
        except (ValueError, SystemError) as error:
            raise self._error(f"{name} in it is damaged; expected a text.") from error

    def _features(self, name: str, width: int) -> Tensor:
        """Returns features (n, D) of at least two images, in float32 as those of images are.

        Raises:
            InputError: for an array of other numbers.
        """
        features = self.content[name]
        is_known = features.dtype.newbyteorder("=") in FLOATS
        if not is_known or features.ndim != 2 or features.shape[1] != width or len(features) < 2:
            raise self._error(
                f"{name} in it is {features.dtype} {features.shape}; expected numbers such as float32 (n, {width}), n "
                "at least 2."
            )
        with np.errstate(over="ignore"):
            numbers = np.array(features, dtype=np.float32, order="C")
        if not np.isfinite(numbers).all():
            raise self._error(f"{name} in it holds NaN or infinite values.")
        return torch.from_numpy(numbers)

    def _error(self, sentence: str) -> InputError:
        return InputError(f"{self.option}={self.path}: {sentence}")

    def prefix(self, protocol: str, network: FeatureNetwork) -> str | None:
        """Returns what the names of a protocol's statistics begin with, or None if they have to come from images.

        The official evaluation of ENAT compares with ADM's statistics, so these serve the protocol `enat` too.

        Raises:
            InputError: for statistics of another feature network, and for a protocol without statistics or images.
        """
        features_sha256 = self._text("features_sha256", network.sha256)
        if features_sha256 != network.sha256:
            raise self._error(
                f"made with other features (sha256 {features_sha256[:8]}...); "
                f"expected those of the options of features ({network.sha256[:8]}...)."
            )
        for name in (protocol, "adm") if protocol == "enat" else (protocol,):
            if f"{name}/mu" in self.content:
                return f"{name}/"
            if "mu" in self.content and name == self.protocol:
                return ""
        if self.images is None:
            is_chosen = isinstance(network.protocols, Mapping)  # others have one, of the name of the network
            raise self._error(
                f"its statistics are of protocol {self.protocol}, not {protocol}; "
                f"expected a file of task=statistics {'protocol' if is_chosen else 'features'}={protocol}."
            )
        return None

    def fill(self, score: OnView, protocol: str, network: FeatureNetwork) -> bool:
        prefix = self.prefix(protocol, network)
        if prefix is None or score.view not in SUFFIXES:
            return False
        if isinstance(score.metric, FrechetDistance) and f"{prefix}mu{SUFFIXES[score.view]}" in self.content:
            score.metric.set_real_statistics(*self.statistics(prefix, score.view, network))
            return True
        is_own = (prefix.removesuffix("/") or self.protocol) == protocol  # features of another one do not serve
        has_features = is_own and score.view == "pool" and f"{prefix}features" in self.content
        if not isinstance(score.metric, KeptFeatures) or not has_features:
            return False
        score.metric.set_real_features(self._features(f"{prefix}features", network.widths["pool"]))
        return True

    def statistics(self, prefix: str, view: str, network: FeatureNetwork) -> tuple[Tensor, Tensor]:
        """Returns the mean (D,) and the covariance (D, D) of a view, in float64.

        Raises:
            InputError: for a mean and a covariance that do not fit each other or the network.
        """
        names = [f"{prefix}{name}{SUFFIXES[view]}" for name in ("mu", "sigma")]
        try:
            mu, sigma = (self.content[name].astype(np.float64, casting="same_kind") for name in names)
        except (KeyError, ValueError, TypeError) as error:
            raise self._error(f"expected both {names[0]} and {names[1]} in it, as real numbers.") from error
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise self._error(f"mu {mu.shape} and sigma {sigma.shape} do not fit.")
        if network.widths[view] != len(mu):
            raise self._error(f"{names[0]} has {len(mu)} features; the network has {network.widths[view]}.")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise self._error("mu or sigma holds NaN or infinite values.")
        if sigma.diagonal().min() < 0 or not np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-6 * np.abs(sigma).max()):
            raise self._error(f"{names[1]} is no covariance: it is not symmetric, or has negative variances.")
        return torch.from_numpy(mu), torch.from_numpy(sigma)

    def num_images(self, protocol: str) -> int | None:
        return self._integers("num_images", 1)[0] if "num_images" in self.content else None

    def own_scores(self, protocol: str, scores: Mapping[str, OnView], network: FeatureNetwork) -> dict[str, float]:
        return {}  # statistics have none


class DecodedShards:
    """Real images as the tokenizer gives them back, so that a network does not pay for the tokenizer.

    With the statistics `real` of the real images, the reconstruction FID says what the tokenizer costs.
    """

    def __init__(self, images: ShardImages, real: StatisticsFile | None):
        self.images = images
        self.real = real
        self.class_names = getattr(images, "class_names", None)
        side = images.tokenizer.resolution
        self.size: Sequence[int] | None = (side, side)
        if real is not None:
            real.option = "reference.real.path"
            refuse_other_size(self.size, real.size)
        self.identity: Mapping[str, Any] = {**images.identity, "real": None if real is None else dict(real.identity)}

    def fill(self, score: OnView, protocol: str, network: FeatureNetwork) -> bool:
        if self.real is not None:
            self.real.fill(deepcopy(score), protocol, network)  # an error of these statistics comes before any image
        return False  # scores have to see the decoded images

    def num_images(self, protocol: str) -> int | None:
        return None  # the images are counted when they are seen

    def own_scores(self, protocol: str, scores: Mapping[str, OnView], network: FeatureNetwork) -> dict[str, float]:
        """Returns the reconstruction FID of the decoded images, which the metrics have seen, if FID is among these."""
        if self.real is None or (prefix := self.real.prefix(protocol, network)) is None:
            return {}
        for score in scores.values():
            if score.view == "pool" and isinstance(score.metric, FrechetDistance):
                real = self.real.statistics(prefix, "pool", network)
                return {"reconstruction_fid": frechet_distance(*score.metric.statistics(real=True), *real)}
        return {}
