"""Runs the way from images to shards in miniature, on photos that scikit-image ships."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.images import ImageList, PlainAndFlipped
from data.module import ShardsDataModule
from data.sources import ImageSource
from data.tokenization import write_shards
from enat.errors import InputError

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
CROPS = 60  # of each photo


def cut_photos(folder: Path) -> None:
    """Writes a class folder for each photo, with 60 square cuts of it as JPEG files. Every call makes the same cuts.

    Raises:
        InputError: if scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise InputError("experiment=photos: needs scikit-image; `pip install -e '.[test]'` installs it.") from error
    rng = np.random.default_rng(0)
    for name in PHOTOS:
        with Image.open(Path(skimage.data.__file__).parent / name) as photo:
            rgb = photo.convert("RGB")
        class_folder = folder / Path(name).stem
        class_folder.mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            side = int(rng.integers(100, min(rgb.size)))
            left = int(rng.integers(rgb.width - side + 1))
            top = int(rng.integers(rgb.height - side + 1))
            rgb.crop((left, top, left + side, top + side)).save(class_folder / f"{number:03d}.jpg", quality=95)


class PhotosDataModule(ShardsDataModule):
    """Cuts and tokenises the photos once, then reads the shards; its arguments are the ones of the base class."""

    def prepare_data(self) -> None:
        assert self.shards is not None
        folder = Path(self.shards)
        if not (folder / "manifest.json").exists():
            cut_photos(folder / "images")
            views = PlainAndFlipped(self.tokenizer.resolution)
            source = ImageSource(ImageList.find(folder / "images"), views, batch_size=60, num_workers=0)
            write_shards(source, self.tokenizer, folder, held_out=0.1, shard_size=100, pack_size=20, seed=self.seed)
        super().prepare_data()
