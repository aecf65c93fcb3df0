"""Image files as ADM's loader sees them: RGB, and cropped to a square."""

from PIL import Image


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """ADM's crop (SPEC 7): halve with a box filter while possible, bicubic to the short side, cut the centre."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
