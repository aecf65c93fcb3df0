"""Statistics of others whose arrays are of other types, or no numbers at all."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.references import ArchivedImages, DecodedShards, StatisticsFile
from enat.errors import InputError
from enat.metrics.scores import FrechetDistance, KernelDistance, PrecisionRecall
from enat.metrics.view import OnView
from experiments.runtime.building import Call, build


class Network:
    """What a reference asks of a feature network."""

    sha256 = "0" * 64
    widths = {"pool": 4}  # noqa: RUF012
    protocols = {"adm": None, "clean": None}  # noqa: RUF012


def filled(path, features, score=KernelDistance, **facts):
    """A score after it has taken the features of a file."""
    np.savez(path, mu=np.zeros(4), sigma=np.eye(4), features=features, **{"protocol": "adm", **facts})
    metric = score()
    assert StatisticsFile(str(path)).fill(OnView("pool", metric), "adm", Network())
    return metric


NUMBERS = np.random.default_rng(0).random((9, 4))
TYPES = {
    "integers": np.zeros((9, 4), "i8"),
    "texts": np.full((9, 4), "abc"),
    "dates": np.zeros((9, 4), "M8[s]"),
    "complex numbers": np.zeros((9, 4), "c8"),
    "truth values": np.zeros((9, 4), "?"),
    "long numbers": np.zeros((9, 4), "g"),
    "one image": np.zeros((1, 4), "f4"),
    "no image": np.zeros((0, 4), "f4"),
    "another width": np.zeros((9, 5), "f4"),
    "one row": np.zeros(4, "f4"),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("score", [KernelDistance, PrecisionRecall])
def test_features_of_other_types(tmp_path, kind, score):
    sentence = (
        r"reference\.path=.*x\.npz: features in it is .*; expected numbers such as float32 \(n, 4\), n at least 2"
    )
    with pytest.raises(InputError, match=sentence):
        filled(tmp_path / "x.npz", TYPES[kind], score)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_features_that_are_no_numbers(tmp_path, value):
    features = NUMBERS.copy()
    features[8, 3] = value
    with pytest.raises(InputError, match=r"x\.npz: features in it holds NaN or infinite values\."):
        filled(tmp_path / "x.npz", features)


@pytest.mark.parametrize("kind", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("score", [KernelDistance, PrecisionRecall])
def test_features_in_any_precision(tmp_path, kind, score):
    metric = filled(tmp_path / "x.npz", np.asfortranarray(NUMBERS.astype(kind)), score)
    metric.update(torch.rand(9, 4), False, torch.arange(9), 9)
    assert torch.equal(metric.real_features[0], torch.from_numpy(NUMBERS.astype(kind).astype("f4")))
    assert all(np.isfinite(value) for value in metric.compute().values())


WRONG_TEXTS = {
    "a number": np.zeros(3),
    "two texts": np.array(["adm", "enat"]),
    "bytes": np.array(b"adm"),
    "no characters": np.array(2**31 - 1, "<i4").view("<U1"),
}


@pytest.mark.parametrize("kind", WRONG_TEXTS)
@pytest.mark.parametrize("name", ["protocol", "features_sha256"])
def test_facts_that_are_no_texts(tmp_path, kind, name):
    with pytest.raises(InputError, match=rf"x\.npz: {name} in it is damaged; expected a text\."):
        filled(tmp_path / "x.npz", NUMBERS, **{name: WRONG_TEXTS[kind]})


def test_as_many_features_are_taken_as_the_score_says(tmp_path):
    """`max_real` counts for features of a file as it does for images."""
    taken = filled(tmp_path / "a.npz", NUMBERS, lambda: PrecisionRecall(max_real=3)).real_features[0]
    assert torch.equal(taken, torch.from_numpy(NUMBERS[[0, 4, 8]]).float())


def test_every_protocol_of_a_file_serves_as_the_first_does(tmp_path):
    """The statistics of `adm` are those for `enat`, too; its features are not."""
    of_adm = {"adm/mu": np.ones(4), "adm/sigma": np.eye(4), "adm/features": NUMBERS}
    np.savez(tmp_path / "a.npz", mu=np.zeros(4), sigma=np.eye(4), protocol="clean", **of_adm)
    file = StatisticsFile(str(tmp_path / "a.npz"))
    assert [file.prefix(name, Network()) for name in ("clean", "adm", "enat")] == ["", "adm/", "adm/"]
    filled_by = {name: file.fill(OnView("pool", KernelDistance()), name, Network()) for name in ("adm", "enat")}
    assert filled_by == {"adm": True, "enat": False}


def test_errors_name_the_option(tmp_path):
    """That of the statistics beside decoded images is another one."""
    for option in ("reference", "reference.real"):
        missing = Call(option, StatisticsFile, {"path": "none.npz"}, False)
        with pytest.raises(InputError, match=f"^{re.escape(option)}.path=none.npz: there is no such file"):
            build(missing)


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"protocol": "clean"}, r"reference\.real\.path=.* its statistics are of protocol clean, not adm"),
        ({"protocol": "adm", "size": [9, 9]}, "the images are 8x8, those of the reference 9x9"),
    ],
)
def test_statistics_beside_decoded_images_are_checked_before_any_image_is_made(tmp_path, facts, sentence):
    np.savez(tmp_path / "a.npz", mu=np.zeros(4), sigma=np.eye(4), **facts)
    shards = SimpleNamespace(identity={}, tokenizer=SimpleNamespace(resolution=8))
    with pytest.raises(InputError, match=sentence):
        DecodedShards(shards, StatisticsFile(str(tmp_path / "a.npz"))).fill(
            OnView("pool", FrechetDistance()), "adm", Network()
        )


def test_a_folder_in_place_of_an_archive(tmp_path):
    with pytest.raises(InputError, match=r"this is a folder; expected an \.npz file, or scored=folder"):
        ArchivedImages(str(tmp_path))
