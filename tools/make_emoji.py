"""Makes emoji.npz, the emoji of the offline suite, from a package of the npm registry.

    npm pack emoji-datasource-twitter@16.0.0
    python -m tools.make_emoji emoji-datasource-twitter-16.0.0.tgz

The pictures are Twemoji's (Twitter, Inc. and other contributors, CC BY 4.0), which the pre-training
of vit_mini did not use. They are laid on white, and reduced from 64 to 48 pixels and to 64
colours each.
"""

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fact_jax.data.offline.bundled import EMOJI, EMOJI_CATEGORIES, NUM_TRAIN, NUM_VAL
from tools.packing import Picture, argument, check_source, unlike, write

SHA256 = "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
_SIDE, _COLOURS = 48, 64
# Marks of gender, direction and hair, and people who differ by gender or hair only.
_MARKS = re.compile("-200D-(2640|2642|27A1|1F9B[0-3])(-FE0F)?")
_PEOPLE = {
    **dict.fromkeys(("1F468", "1F469", "1F9D1", "1F471", "1F9D4"), "adult"),
    **dict.fromkeys(("1F466", "1F467", "1F9D2"), "child"),
    **dict.fromkeys(("1F474", "1F475", "1F9D3"), "adult"),
    **dict.fromkeys(("1F385", "1F936"), "adult-200D-1F384"),
    **dict.fromkeys(("1F934", "1F478"), "adult-200D-1F451"),
    **dict.fromkeys(("1F57A", "1F483"), "dancer"),
}
# Series: sub-categories, and patterns of short names.
_SERIES = ("heart", "alphanum", "geometric", "family", "arrow", "av-symbol", "keycap")
_NAMED_SERIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"clock\d+",
        r".*(^|_)(moon|moon_with_face)",
        r"family.*",
        r"mailbox.*",
        r"(closed|green|blue|orange)_book",
        r"earth_.*",
        r".*_medal",
        r"flag-(ro|td)",
        r"snowman.*",
        r"(open_)?file_folder",
        r"(un)?lock",
        r"mute|speaker|(loud_)?sound",
        r"(page|newspaper|bookmark|notebook|mailbox|envelope|e-mail|email|incoming).*",
        r".*_umbrella.*|umbrella.*",
        r".*wards_(pushing_)?hand",
        r"point_.*",
        r"(oncoming_)?(car|automobile|taxi|bus|police_car)|blue_car|minibus|trolleybus",
        r"(bullet)?train.*|metro|tram|light_rail|railway_car|monorail|mountain_railway",
        r".*_keycap|keycap_.*",
        r"(large|small)_.*_(circle|square|diamond)",
        r"(female|male|mx|mrs)?_?(santa|claus)",
        r".*_family|family_.*",
    )
)


def identity_of(entry: dict[str, Any]) -> str:
    """The identity of an emoji: what it shows, whatever its gender and direction, or its series."""
    if entry["subcategory"] in _SERIES:
        return str(entry["subcategory"])
    for pattern in _NAMED_SERIES:
        if pattern.fullmatch(entry["short_name"]):
            return pattern.pattern
    codes = _MARKS.sub("", entry["unified"]).split("-")
    return "-".join(_PEOPLE.get(code, code) for code in codes if code != "FE0F")


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    """The bytes of a file of the package; ends the program if it has none of this name."""
    if (file := archive.extractfile(name)) is None:
        sys.exit(f"The package has no file {name}.")
    return file.read()


def read(package: Path) -> Iterator[Picture]:
    """The pictures of all categories but skin tones, in the order of the package's list."""
    with tarfile.open(package) as archive:
        entries = json.loads(_content(archive, "package/emoji.json"))
        numbers: dict[str, int] = {}
        for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
            if entry["category"] not in EMOJI_CATEGORIES:
                continue
            file = _content(archive, f"package/img/twitter/64/{entry['image']}")
            image = Image.open(io.BytesIO(file)).convert("RGBA")
            page = Image.new("RGBA", image.size, "white")
            page.alpha_composite(image)
            small = page.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            pixels = np.asarray(small.quantize(_COLOURS, dither=Image.Dither.NONE).convert("RGB"))
            number = numbers.setdefault(identity_of(entry), len(numbers))
            yield Picture(pixels, EMOJI_CATEGORIES.index(entry["category"]), number)


def deal(pictures: list[Picture], random: np.random.RandomState) -> list[Picture]:
    """The pictures in the order train, validation, test, with no identity in two of them.

    Classes have the same shares in all parts. Identities of a class are dealt out in random order:
    to each part until it is full, or to the next one if they do not fit. The program ends if an
    identity has pictures of two classes.
    """
    if len({(p.identity, p.label) for p in pictures}) > len({p.identity for p in pictures}):
        sys.exit("An identity has pictures of two categories; mend the patterns of identity_of.")
    shares = np.bincount([picture.label for picture in pictures]) / len(pictures)
    parts: list[list[Picture]] = [[], [], []]
    ends = np.rint(np.cumsum(shares)[:, None] * [NUM_TRAIN, NUM_VAL]).astype(int)
    for label, quotas in enumerate(np.diff(ends, axis=0, prepend=0).tolist()):
        room = [*quotas, len(pictures)]
        identities = sorted({p.identity for p in pictures if p.label == label})
        for identity in random.permutation(identities).tolist():
            group = [p for p in pictures if p.identity == identity and p.label == label]
            part = next(i for i, left in enumerate(room) if left >= len(group))
            parts[part] += group
            room[part] -= len(group)
        if any(room[:2]):
            sys.exit(f"Class {label}: {room[:2]} pictures are missing in training and validation.")
    return [part[i] for part in parts for i in random.permutation(len(part)).tolist()]


def make(package: Path, target: Path = EMOJI) -> None:
    """Writes the data set."""
    check_source(package, SHA256)
    write(target, deal(unlike(list(read(package))), np.random.RandomState(0)))


if __name__ == "__main__":
    make(argument(__doc__, "package"))
