"""Makes script.npz, the letters of the offline suite, from fonts of Debian 12.

    apt-get download $(cut -f 3 tools/script_fonts.tsv | tail -n +2 | sort -u)
    for f in *.deb; do dpkg-deb -x $f fonts/${f%%_*}; done
    python -m tools.make_script fonts

The packages are free, and none of them was used in the pre-training of vit_mini. Letters that two
of the scripts share, such as A, are left out. A family of fonts is in one part only.
"""

import csv
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fontTools.ttLib import TTFont
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from fact_jax.data.offline.bundled import NUM_TRAIN, NUM_VAL, SCRIPT, SCRIPTS
from tools.packing import Picture, argument, write

SIDE = 48  # pixels of a picture
TABLE = Path(__file__).with_name("script_fonts.tsv")
_NUMBERS = {"train": NUM_TRAIN, "validation": NUM_VAL, "test": 1000}
_LEAST, _MOST = 24, 40  # pixels of a letter's longer side


def _range(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


LETTERS = {
    "Latin": "bdfghjlmqrtDFGJLQRSUVW",
    "Greek": "αβγδεζηθλμξπσςτψωΔΘΛΞΠΣΨΩ",
    "Cyrillic": "бвдёжзийлцчшщъыьэюяБДЖИЙЛУЦЧШЩЪЫЬЭЮЯ",
    "Hebrew": _range(0x5D0, 0x5EA),
    "Arabic": _range(0x628, 0x63A) + _range(0x641, 0x64A),
    "Devanagari": _range(0x905, 0x90B)
    + _range(0x90F, 0x910)
    + _range(0x915, 0x928)
    + _range(0x92A, 0x930)
    + _range(0x935, 0x939),
    "Thai": _range(0xE01, 0xE2E),
    "Malayalam": _range(0xD05, 0xD0A) + _range(0xD15, 0xD28) + _range(0xD2A, 0xD39),
    "Hangul": "가나다라마바사아자차카타파하고노도로모보소오조초코토포호구누두루무부수우주추"
    "한국글말집사랑물밤빛강산길달별꽃새봄",
    "Kana": "あいうえおかきくけこさしすせそたちつてとなにぬねのは"
    "ひふほまみむめもやゆよらりるれわをん"
    "アイウエオカキクケコサシスセソタチツテトナヌネノハヒフホマミムメモヤユヨラリルレワヲン",
}


class Family(NamedTuple):
    """A row of the table of fonts, which is an identity.

    Attributes:
      script: the script that it serves for; its other letters are not used.
      part: the part that it is in.
      files: its fonts, sorted by name.
    """

    script: str
    part: str
    files: list[Path]


def read_table(folder: Path) -> list[Family]:
    """The families, with their files under a folder that has one of its own for each package.

    Ends the program if a family has no file, or if two families share one.
    """
    with TABLE.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    families: list[Family] = []
    taken: set[str] = set()
    for row in rows:
        within = (folder / row["package"]).rglob(row["files"])
        found = sorted(path for path in within if path.suffix in (".ttf", ".otf", ".ttc"))
        if not found:
            sys.exit(f"{folder / row['package']} has no file {row['files']}.")
        if shared := taken & {path.name for path in found}:
            sys.exit(f"Two families of the table have {', '.join(sorted(shared))}.")
        taken |= {path.name for path in found}
        families.append(Family(row["script"], row["part"], found))
    return families


def draw(
    font: Path, letter: str, random: np.random.RandomState
) -> UInt8[np.ndarray, "48 48"] | None:
    """A letter in black on white, in 16 greys, its size and place drawn; None if it is missing."""
    size, right, down = random.random_sample(3).tolist()
    if ord(letter) not in _characters(font):
        return None
    left, top, end, bottom = ImageFont.truetype(font, 100).getbbox(letter)
    points = round(100 * (_LEAST + (_MOST - _LEAST) * size) / max(end - left, bottom - top))
    face = ImageFont.truetype(font, points)
    left, top, end, bottom = face.getbbox(letter)
    place = (right * (SIDE - end + left) - left, down * (SIDE - bottom + top) - top)
    page = Image.new("L", (SIDE, SIDE), 255)
    ImageDraw.Draw(page).text((round(place[0]), round(place[1])), letter, 0, font=face)
    return (np.asarray(page) // 16 * 17).astype(np.uint8)


@cache
def _characters(font: Path) -> frozenset[int]:
    """The characters that a font has."""
    with TTFont(font, fontNumber=0, lazy=True) as opened:
        return frozenset(opened.getBestCmap())


def sample(families: list[Family], random: np.random.RandomState) -> Iterator[Picture]:
    """Pictures that all differ: as many of each script, and each family of it in turn."""
    seen: set[bytes] = set()
    for part, number in _NUMBERS.items():
        pictures = []
        for label, script in enumerate(SCRIPTS):
            mine = [i for i, f in enumerate(families) if (f.script, f.part) == (script, part)]
            for turn in range(number // len(SCRIPTS)):
                identity, image = mine[turn % len(mine)], None
                while image is None or image.tobytes() in seen:
                    files, letters = families[identity].files, LETTERS[script]
                    font = files[random.randint(len(files))]
                    image = draw(font, letters[random.randint(len(letters))], random)
                seen.add(image.tobytes())
                pictures.append(Picture(image, label, identity))
        yield from (pictures[i] for i in random.permutation(len(pictures)).tolist())


def make(folder: Path, target: Path = SCRIPT) -> None:
    """Writes the data set."""
    write(target, list(sample(read_table(folder), np.random.RandomState(0))))


if __name__ == "__main__":
    make(argument(__doc__, "folder"))
