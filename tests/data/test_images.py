"""Image files: which are listed, how they become RGB, how views are cut."""

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.images import ImageList, Plain, PlainAndFlipped, TenCrop, load_rgb
from enat.errors import InputError
from enat.images import center_crop


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))


def test_formats_become_what_pillow_makes_of_them(picture, tmp_path):
    variants = {
        "grey.png": picture.convert("L"),
        "palette.png": picture.convert("P"),
        "alpha.png": picture.convert("RGBA"),
        "plain.webp": picture,
        "cmyk.jpg": picture.convert("CMYK"),
    }
    for name, image in variants.items():
        image.save(tmp_path / name)
        with Image.open(tmp_path / name) as reopened:
            expected = np.asarray(reopened.convert("RGB"))
        loaded = load_rgb(tmp_path / name)
        assert loaded.mode == "RGB"
        assert np.array_equal(np.asarray(loaded), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated: ADM's loader does not care
    picture.save(tmp_path / "rotated.jpg", exif=exif)
    assert load_rgb(tmp_path / "rotated.jpg").size == (90, 60)


def test_unreadable_images_say_why(picture, tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: more than 8 bits a channel"):
        load_rgb(tmp_path / "deep.png")
    picture.save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    (tmp_path / "text.jpg").write_text("no picture")
    for name in ("half.png", "text.jpg"):
        with pytest.raises(InputError, match=f"{name}: unreadable"):
            load_rgb(tmp_path / name)


@given(width=st.integers(1, 150), height=st.integers(1, 150), side=st.integers(1, 40), grey=st.integers(0, 255))
def test_views_have_their_size_and_keep_colours(width, height, side, grey):
    image = Image.new("RGB", (width, height), (grey, 0, 255))
    for views, count in ((PlainAndFlipped(side), 2), (TenCrop(side), 10)):
        assert np.array_equal(views(image), np.full((count, side, side, 3), (grey, 0, 255)))


def test_views(picture):
    plain, flipped = PlainAndFlipped(32)(picture)
    assert np.array_equal(plain, np.asarray(center_crop(picture, 32)))
    assert np.array_equal(flipped, plain[:, ::-1])
    assert np.array_equal(Plain(32)(picture), plain[None])
    ten = TenCrop(30)
    crops = ten(picture)
    large = np.asarray(center_crop(picture, 33))
    assert crops.shape == (10, 30, 30, 3) == (len(ten.names), 30, 30, 3)
    assert np.array_equal(crops[0], large[:30, :30])
    assert np.array_equal(crops[3], large[3:, 3:])
    assert np.array_equal(crops[9], crops[4][:, ::-1])


def test_class_folders_and_lists(picture, tmp_path):
    for name in ("b/2.png", "b/1.png", "a/x.JPG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture.save(tmp_path / name, format="png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    images = ImageList.find(tmp_path)
    assert images.files == ["a/x.JPG", "b/1.png", "b/2.png"]
    assert images.class_ids.tolist() == [0, 1, 1]
    assert images.class_names == ["a", "b"]
    labels = tmp_path / "labels.csv"
    labels.write_text("file,class\nb/1.png,10\na/x.JPG, 9\nb/2.png,10 \n")
    listed = ImageList.find(tmp_path, labels)
    assert listed.class_ids.tolist() == [10, 9, 10]  # names that are numbers are ids
    assert listed.class_names == [str(class_id) for class_id in range(11)]


def test_folders_that_do_not_serve(picture, tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        ImageList.find(tmp_path / "none")
    with pytest.raises(InputError, match="expected a folder of images for each class"):
        ImageList.find(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="the class folder empty has no images"):
        ImageList.find(tmp_path)
    labels = tmp_path / "labels.csv"
    with pytest.raises(InputError, match=r"labels=.*labels\.csv: can't be read: No such file or directory\."):
        ImageList.find(tmp_path, labels)
    labels.write_text("name,label\nx,1\n")
    with pytest.raises(InputError, match="expected a CSV file with the columns file and class"):
        ImageList.find(tmp_path, labels)
    labels.write_text("file,class\nx.png,1\n")
    with pytest.raises(InputError, match=r"x\.png is not in .*; expected files of this folder"):
        ImageList.find(tmp_path, labels)


@pytest.mark.parametrize(
    ("rows", "missing"),
    [("cat,a.png\ndog", "file"), ("cat,a.png\ndog,", "file"), (",a.png", "class"), ("  ,a.png", "class")],
)
def test_rows_of_labels_that_lack_something(picture, tmp_path, rows, missing):
    picture.save(tmp_path / "a.png")
    labels = tmp_path / "labels.csv"
    labels.write_text(f"class,file\n{rows}\n")
    with pytest.raises(InputError, match=rf"labels\.csv: row \d has no {missing}; expected a file and a class"):
        ImageList.find(tmp_path, labels)
    labels.write_text("file,class\na.png\n")
    with pytest.raises(InputError, match=r"row 1 has no class"):
        ImageList.find(tmp_path, labels)


@pytest.mark.parametrize(("typed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_that_look_the_same_are_the_same(picture, tmp_path, typed, stored):
    """Those of a list of classes and of a table, which are typed, and those of folders and files, which stay."""
    in_list, on_disk = (unicodedata.normalize(form, "Käse") for form in (typed, stored))
    (tmp_path / "images" / on_disk).mkdir(parents=True)
    (tmp_path / "images" / "ant").mkdir()
    for name in (f"{on_disk}/{on_disk}.png", "ant/1.png"):
        picture.save(tmp_path / "images" / name)
    (tmp_path / "classes.txt").write_text(f"{in_list}\nant\n")
    (tmp_path / "labels.csv").write_text(f"file,class\n{in_list}/{in_list}.png,{on_disk}\nant/1.png,ant\n")
    for labels in (None, tmp_path / "labels.csv"):
        listed = ImageList.find(tmp_path / "images", labels, tmp_path / "classes.txt")
        assert listed.class_names == [in_list, "ant"]
        assert dict(zip(listed.files, listed.class_ids.tolist(), strict=True)) == {
            f"{on_disk}/{on_disk}.png": 0,
            "ant/1.png": 1,
        }


def test_two_folders_that_look_the_same_are_two_classes_of_a_list_with_both(picture, tmp_path):
    both = [unicodedata.normalize(form, "Käse") for form in ("NFD", "NFC")]
    for name in both:
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "1.png")
    (tmp_path / "classes.txt").write_text("\n".join(both))
    listed = ImageList.find(tmp_path, classes=tmp_path / "classes.txt")
    assert [listed.class_names[one] for one in listed.class_ids] == [name.split("/")[0] for name in listed.files]
    assert len(set(listed.class_ids.tolist())) == 2


@pytest.mark.parametrize("as_folders", [True, False])
def test_classes_that_look_the_same_are_refused_without_a_list(picture, tmp_path, as_folders):
    """A table from two sources would divide a class into two, of which one could not be asked for by its name."""
    both = [unicodedata.normalize(form, "Käse") for form in ("NFD", "NFC")]
    for name in both:
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "1.png")
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(["file,class\n", *(f"{name}/1.png,{name}\n" for name in both)]))
    with pytest.raises(
        InputError, match=r"the class Käse is there in two forms of Unicode that look the same; expected"
    ):
        ImageList.find(tmp_path, None if as_folders else labels)


def test_rows_of_labels_with_commas(picture, tmp_path):
    """A class of which a part would be lost."""
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name)
    labels = tmp_path / "labels.csv"
    labels.write_text('file,class\na.png,"cat, small"\nb.png,cat, large\n')
    with pytest.raises(InputError, match=r"labels\.csv: row 2 has more values than there are columns; expected quotes"):
        ImageList.find(tmp_path, labels)


def test_images_that_labels_do_not_list_are_counted(picture, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        picture.save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,class\na.png,cat\n")
    listed = ImageList.find(tmp_path, tmp_path / "labels.csv")
    assert listed.files == ["a.png"]
    assert listed.ignored == [f"{tmp_path}: images that {tmp_path}/labels.csv does not list: 2, such as b.png"]


def test_a_class_can_not_have_the_name_of_no_class(picture, tmp_path):
    (tmp_path / "unconditional").mkdir()
    picture.save(tmp_path / "unconditional" / "a.png")
    with pytest.raises(InputError, match="a class is named unconditional, which stands for images of no class"):
        ImageList.find(tmp_path)
