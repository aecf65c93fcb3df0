"""A checkpoint alone draws images, and what its settings name is taken from a closed list."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import enat
from enat.building import BUILDABLE
from enat.checkpoints.official import to_official
from enat.errors import InputError
from enat.generation import sample_classes, sample_images
from enat.images import center_crop
from enat.net import ENAT
from enat.tokenizers.vqgan import VQGAN

EMOJI = Path(__file__).parents[2] / "examples" / "emoji"


@pytest.fixture
def checkpoint(make_net, compose_config):
    """The content of a checkpoint of a digits run, with random weights."""
    config = compose_config("experiment=debug")
    net = make_net(codebook_size=17, num_classes=10, num_tokens=64, width=32, encoder_depth=2, decoder_depth=1)
    from omegaconf import OmegaConf

    settings = {name: OmegaConf.to_container(config[name], resolve=True) for name in ("sampler", "tokenizer")}
    settings["module"] = {"net": OmegaConf.to_container(config.module.net, resolve=True)}
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    return {"state_dict": state, "settings": settings, "net_sizes": net.sizes}


def test_a_checkpoint_draws_what_its_parts_draw(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "last.ckpt")
    model = enat.load(tmp_path / "last.ckpt")
    images = model.generate(classes=[3, 7], images_per_class=2, seed=5)
    expected, _ = sample_classes(model.net, model.sampler, model.tokenizer, [3, 7], 2, 5)
    assert [np.asarray(image).tolist() for image in images] == (expected[:, 0] * 255).round().int().tolist()
    assert not model.net.training
    alone = model.generate(classes=[7], images_per_class=2, seed=5)
    assert [image.tobytes() for image in alone] == [image.tobytes() for image in images[2:]]
    with pytest.raises(
        InputError, match=r"classes=11: expected class ids from 0 to 9, or names; names such as 0, 1, 2"
    ):
        model.generate(classes=[11])
    assert len(model.generate(classes=["unconditional"])) == 1
    assert len(model.generate("unconditional")) == len(model.generate(3)) == len(model.generate("3")) == 1
    assert len(model.generate()) == 10
    with pytest.raises(InputError, match=r"classes=\[\]: expected at least one class"):
        model.generate([])


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "enat.checkpoints.weights.torch.load", None])
@pytest.mark.parametrize("place", [("tokenizer",), ("sampler", "mask_schedule"), ("module", "net", "attention")])
def test_settings_that_name_something_else_are_refused(checkpoint, tmp_path, place, target):
    *way, last = place
    node = checkpoint["settings"]
    for name in way:
        node = node[name]
    node[last] = {"_target_": target}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=rf"_target_={target}: expected one of ENAT, NAT"):
        enat.load(tmp_path / "last.ckpt")


def test_an_official_file_needs_its_tokenizer(monkeypatch, tmp_path):
    sizes = {"codebook_size": 1024, "num_classes": 5, "num_tokens": 256, "width": 32, "num_heads": 16}
    net = ENAT(**sizes, encoder_depth=22, decoder_depth=2)
    torch.save(to_official(net.state_dict()), tmp_path / "nnet_ema.pth")
    with pytest.raises(InputError, match="or an official one with tokenizer=FILE, the VQGAN"):
        enat.load(tmp_path / "nnet_ema.pth")
    seen = []

    def tiny(weights, resolution):  # the real one takes seconds
        seen.append((weights, resolution))
        return VQGAN(1024, 32, 32, (1, 1), 1, 32)

    monkeypatch.setitem(BUILDABLE, "VQGAN", tiny)
    model = enat.load(tmp_path / "nnet_ema.pth", tokenizer="vqgan.ckpt")
    assert seen == [("vqgan.ckpt", 256)]
    assert (len(model.net.encoder), model.sampler.guidance_scales[1]) == (22, 2.5 / 8)
    model.save(tmp_path / "folder")
    for one in (model, enat.load(tmp_path / "folder")):
        assert all(torch.equal(one.net.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
        assert one.sampler_settings["guidance_schedule"] == "rising"
    assert seen[-1] == (str(tmp_path / "folder" / "tokenizer.safetensors"), 256)
    other = ENAT(**sizes, encoder_depth=2, decoder_depth=1)
    torch.save(to_official(other.state_dict()), tmp_path / "other.pth")
    with pytest.raises(InputError, match="3 blocks; expected the 24 of ENAT-L or the 16 of ENAT-B"):
        enat.load(tmp_path / "other.pth", tokenizer="vqgan.ckpt")


def test_a_file_with_names_for_other_classes(checkpoint, tmp_path):
    torch.save({**checkpoint, "class_names": ["cat", "dog"]}, tmp_path / "edited.ckpt")
    with pytest.raises(InputError, match="class_names: 2 names for the 10 classes of the network"):
        enat.load(tmp_path / "edited.ckpt")


def test_editing_in_python():
    """A mask and a box say the same; kept pixels stay with a hard blend; another seed gives another result."""
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    picture = model.generate("face", seed=5)[0]
    mask = Image.new("L", picture.size)
    mask.paste(255, (16, 0, 32, 32))
    by_mask, by_box, other = (
        model.edit(picture, "face", region, seed=seed, results_per_class=2, soft_blend=0)
        for region, seed in ((mask, 0), ([0.5, 0, 1, 1], 0), ([0.5, 0, 1, 1], 1))
    )
    assert [image.tobytes() for image in by_mask] == [image.tobytes() for image in by_box]
    assert len({image.tobytes() for image in [*by_box, *other]}) == 4
    kept = (0, 0, 16, 32)
    assert all(image.crop(kept).tobytes() == picture.crop(kept).tobytes() for image in [*by_box, *other])


def test_an_image_does_not_depend_on_what_is_drawn_beside_it():
    """Not by one bit on a CPU: a decoder of convolutions rounds its sums in another way in a batch of another size."""
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    parts = (model.net, model.sampler, model.tokenizer)
    together = sample_images(*parts, [(class_id, 0) for class_id in range(6)], seed=0)
    for class_id in range(6):
        assert torch.equal(sample_images(*parts, [(class_id, 0)], seed=0)[0], together[class_id])


@pytest.mark.parametrize("size", [(101, 67), (300, 310), (20, 33)])
def test_an_image_is_cropped_as_in_training(size):
    """Pixels that are kept with a hard blend are those that a network is trained on."""
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    edited = model.edit(image, "face", [0, 0, 0.5, 1], soft_blend=0)[0]
    assert np.array_equal(np.asarray(edited)[:, 16:], np.asarray(center_crop(image, 32))[:, 16:])


BOXES = [[0, 0, 0.5, 1], np.array([0, 0, 0.5, 1]), torch.tensor([0, 0, 0.5, 1])]


def closed(image):
    image.close()
    return image


def test_bad_edits_end_in_a_sentence():
    model = enat.load(EMOJI)
    picture = Image.new("RGB", (40, 30))
    for options, sentence in [
        ({"classes": "dog"}, "classes=dog"),
        ({"region": [0, 0, 0, 1]}, "box="),
        ({"region": Image.new("L", (40, 30))}, "nothing in the mask is white"),
        ({"region": Image.new("LA", (40, 30), (255, 0))}, "nothing in the mask is white"),
        ({"region": Image.new("L", (30, 30), 255)}, "region: the mask has 30 x 30 pixels and the image 40 x 30"),
        ({"region": Image.new("I;16", (40, 30))}, r"region: more than 8 bits a channel \(mode I;16\); convert it"),
        ({"scale": 0}, "scale=0: expected more than 0"),
        ({"region": [0, 0, 1, 1], "scale": 0.5}, "expected one of mask, box and scale"),
        ({"keep": 2}, "keep=2"),
        ({"keep": "a"}, "keep=a: expected a share from 0 to 1"),
        ({"scale": 0.99}, r"scale=0\.99: this leaves no pixel of 32 around the image; expected 0\.969 or less"),
        ({"region": ["a", 0, 1, 1]}, r"box=\['a', 0, 1, 1\]: expected left, top"),
        ({"region": np.ones((32, 32), bool)}, r"region: an array of shape \(32, 32\); expected an image of Pillow"),
        ({"region": torch.ones(1, 32, 32)}, r"region: an array of shape \(1, 32, 32\)"),
        ({"region": np.array([0, 0, 2, 1])}, r"box=\[0, 0, 2, 1\]: expected left, top"),
        ({"region": list(range(1000))}, r"box=\[0, 1, 2, 3, 4, 5, \.\.\.\]: expected left, top"),
        ({"region": Image.new("L", (0, 10))}, "region: "),
        ({"region": Image.new("L", (0, 0))}, "region: 0 x 0 pixels; expected an image with some"),
        ({"region": closed(Image.new("L", (40, 30)))}, "region: can't be read: .*; expected an image that is whole"),
        ({"region": 3}, r"box=\[3\]: expected left, top"),
        ({"results_per_class": 1.5}, r"results_per_class=1\.5: expected an integer of at least 1"),
        ({"seed": -1}, "seed=-1: expected an integer of at least 0"),
        ({"soft_blend": -1}, "soft_blend=-1: expected an integer of at least 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            model.edit(picture, **options)
    for mode in ("I;16", "I", "F"):  # Pillow would clip them to white
        with pytest.raises(InputError, match=rf"image: more than 8 bits a channel \(mode {mode}\); convert it first"):
            model.edit(Image.new(mode, (32, 32)))
    with pytest.raises(InputError, match="image: expected an image of Pillow, and no str"):
        model.edit("a.png")
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, format="PNG")
    damaged = Image.open(io.BytesIO(file.getvalue()[:900]))
    for bad, sentence in [
        (closed(Image.new("RGB", (32, 32))), "image: can't be read: .*; expected an image that is whole"),
        (damaged, "image: can't be read: .*; expected an image that is whole"),
        (Image.new("RGB", (0, 10)), "image: 0 x 10 pixels; expected an image with some"),
    ]:
        with pytest.raises(InputError, match=sentence):
            model.edit(bad)


def test_a_box_may_be_an_array():
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    results = [model.edit(Image.new("RGB", (40, 30)), region=box)[0] for box in BOXES]
    assert len({result.tobytes() for result in results}) == 1


def test_weights_that_are_no_path():
    for arguments, sentence in [
        ((None,), "weights=None: expected the path of a file or a folder"),
        ((3,), "weights=3: expected the path"),
        ((EMOJI, 3), "tokenizer=3: expected the path"),
        (("",), "weights=: expected the path of a file or a folder"),
        ((EMOJI, ""), "tokenizer=: expected the path"),
    ]:
        with pytest.raises(InputError, match=sentence):
            enat.load(*arguments)


def test_the_home_folder(make_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_pipeline().save("~/a")
    assert (tmp_path / "a" / "config.json").is_file()
    for path in ("~/a", Path("~/a")):
        assert len(enat.load(path, tokenizer="~/a/tokenizer.safetensors").generate([0])) == 1
    with pytest.raises(InputError, match="folder=: expected the path of a file or a folder"):
        make_pipeline().save("")
    with pytest.raises(InputError, match="weights=~nobody/a: there is no such file"):
        enat.load("~nobody/a")


def test_a_tokenizer_in_place_of_a_network():
    with pytest.raises(
        InputError, match=r"tokenizer\.safetensors: the checkpoint of a tokenizer; expected that of a net"
    ):
        enat.load(EMOJI / "tokenizer.safetensors")


def test_options_of_a_sampler_may_be_of_numpy(make_pipeline, tmp_path):
    options = {"num_steps": np.int64(2), "guidance_scale": np.float32(0.5), "mask_schedule": np.array([0.5, 0.0])}
    model = make_pipeline().with_sampler(**options)
    model.save(tmp_path)
    expected = {"num_steps": 2, "guidance_scale": 0.5, "mask_schedule": [0.5, 0.0]}
    assert enat.load(tmp_path).sampler_settings.items() >= expected.items()


def test_parts_of_a_sampler_by_their_names(make_pipeline):
    """The sentence says what to write, and that works."""
    for option, text, node in [
        ("order", "halton", {"_target_": "enat.orders.Halton"}),
        ("order", "spiral", {"_target_": "enat.orders.Halton"}),
        ("mask_schedule", "cosine", {"_target_": "enat.schedules.cosine", "_partial_": True}),
        ("mask_schedule", "arccos", {"_target_": "enat.schedules.arccos", "_partial_": True}),
        ("correction", "no_correction", {"_target_": "enat.corrections.no_correction"}),
    ]:
        with pytest.raises(InputError, match=f"{option}={text}: Input should be .*; expected settings such as {node}"):
            make_pipeline().with_sampler(**{option: text})
        assert make_pipeline().with_sampler(**{option: node}).sampler.num_steps == 3
    function = {"_target_": "enat.schedules.constant", "_partial_": True}
    with pytest.raises(InputError, match="order=constant: Input should be an instance of Order"):
        make_pipeline().with_sampler(order=function)
    with pytest.raises(InputError, match="mask_schedule=constant: expected one that falls from 1 to 0, such as cosine"):
        make_pipeline().with_sampler(mask_schedule=function)


def test_integers_of_numpy_and_wrong_arguments(make_pipeline):
    model = make_pipeline()
    expected = [image.tobytes() for image in model.generate([1, 3])]
    for classes in ([np.int64(1), np.int64(3)], np.array([1, 3]), torch.tensor([1, 3]), (1, "dog")):
        assert [image.tobytes() for image in model.generate(classes)] == expected
    assert model.generate(np.int64(3), np.int64(1), np.int64(0))[0].tobytes() == expected[1]
    assert len(model.generate(np.arange(2))) == 2
    for arguments, sentence in [
        ({"classes": 1.0}, r"classes=1\.0: expected class ids from 0 to 4"),
        ({"classes": [True]}, "classes=True: expected class ids from 0 to 4"),
        ({"classes": [[1]]}, r"classes=\[1\]: expected class ids"),
        ({"images_per_class": 1.5}, r"images_per_class=1\.5: expected an integer of at least 1"),
        ({"images_per_class": 0}, "images_per_class=0: expected an integer of at least 1"),
        ({"seed": -1}, "seed=-1: expected an integer of at least 0"),
        ({"seed": 0.5}, r"seed=0\.5: expected an integer of at least 0"),
    ]:
        with pytest.raises(InputError, match=sentence):
            model.generate(**arguments)
    with pytest.raises(InputError, match="seed=-1: expected an integer"):
        model.reveal([1], seed=-1)


def test_devices_and_types_that_are_not_there(make_pipeline):
    for options, sentence in [
        ({"device": "cuda:77"}, "device=cuda:77: .*; expected one that is there, such as cpu"),
        ({"device": "toaster"}, "device=toaster: "),
        ({"dtype": torch.int64}, r"dtype=torch\.int64: expected a type such as torch\.bfloat16"),
        ({"dtype": torch.float8_e4m3fn}, r"dtype=torch\.float8_e4m3fn: expected a type such as torch\.bfloat16"),
        ({"device": "meta"}, "device=meta: it computes nothing; expected one that does, such as cpu"),
        ({"device": [3]}, r"device=\[3\]: .*; expected one that is there, such as cpu"),
    ]:
        with pytest.raises(InputError, match=sentence):
            make_pipeline().to(**options)
    with pytest.raises(InputError, match="device=cuda:77: "):
        enat.load(EMOJI, device="cuda:77")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_edit_turns_image_and_mask_as_viewers_show_them(orientation):
    """Both as files of a camera, with pixels that lie on their side, and as they look upright."""
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    shown = Image.effect_noise((48, 64), 50).convert("RGB")
    mask = Image.new("L", shown.size)
    mask.paste(255, (0, 0, 24, 40))
    (expected,) = model.edit(shown, "face", mask, soft_blend=0)
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    taken = []
    for upright in (shown, mask):
        file = io.BytesIO()
        turned = upright.transpose(turns[orientation]) if orientation in turns else upright
        turned.save(file, format="PNG", exif=exif)
        taken.append(Image.open(file))
    for image, region in ((taken[0], taken[1]), (taken[0], mask), (shown, taken[1])):
        assert model.edit(image, "face", region, soft_blend=0)[0].tobytes() == expected.tobytes()


def test_an_image_whose_exif_is_damaged_is_edited_as_it_is():
    model = enat.load(EMOJI).with_sampler(num_steps=2)
    image = Image.effect_noise((48, 64), 50).convert("RGB")
    (expected,) = model.edit(image, "face")
    image.info["exif"] = b"Exif\0\0no exif"
    assert model.edit(image, "face")[0].tobytes() == expected.tobytes()
