"""Makes textile.npz, the textile of the offline suite, from a package of PyPI.

    pip download --no-deps conformal-clip-data==0.1.4
    python -m tools.make_textile conformal_clip_data-0.1.4-py3-none-any.whl

The package (Megahed et al., MIT) has 1,000 simulated pictures of textile without a fault, 500 with
a local fault and 500 with a global one, 250 x 250 pixels. A local fault is about 15 pixels high and
would vanish in 32 x 32 pixels, so that the data set holds a part of that size of each picture.
"""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from fact_jax.data.offline.bundled import TEXTILE, TEXTILES
from tools.packing import Picture, argument, check_source, write

SHA256 = "00144ccc179a887dbea15923be8cf236d0c0f49bf7fb6f7bb288e40b53fb1bcb"
SIDE = 32
_EDGE, _WINDOW = 6, 12  # pixels: a fault is at least so far inside the part; size of the search
_FRAME = 5  # pixels of white at the edges of some pictures
_FOLDER = "conformal_clip_data/data/textile_images/simulated"


def rough(pixels: Int[np.ndarray, "y x"]) -> Int[np.ndarray, "y x"]:
    """How much the pixels of each window of 12 x 12 differ from their neighbours.

    A local fault is a patch of dark and bright grains, which are rougher than the cloth.
    """
    across = np.abs(pixels[:-1, :-1] + pixels[1:, 1:] - pixels[1:, :-1] - pixels[:-1, 1:])
    sums = np.pad(across, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    w = _WINDOW
    return sums[w:, w:] - sums[:-w, w:] - sums[w:, :-w] + sums[:-w, :-w]


def part(
    pixels: UInt8[np.ndarray, "y x"], random: np.random.RandomState
) -> UInt8[np.ndarray, "32 32"]:
    """A part of a picture that holds the roughest window, in 32 greys; its place is drawn.

    Pictures of all classes are cut like this, so that the cut tells nothing.
    """
    found = rough(pixels.astype(int))
    middle = [m + _WINDOW // 2 for m in np.unravel_index(found.argmax(), found.shape)]
    corner = []
    for place, length in zip(middle, pixels.shape, strict=True):
        first = place - _EDGE - int(random.randint(SIDE - 2 * _EDGE))
        corner.append(min(max(first, 0), length - SIDE))
    cut = pixels[corner[0] : corner[0] + SIDE, corner[1] : corner[1] + SIDE]
    return (cut // 8 * 8 + 4).astype(np.uint8)


def read(package: Path, random: np.random.RandomState) -> Iterator[tuple[int, Picture]]:
    """The number of each picture in its class, from 1, and the picture."""
    with zipfile.ZipFile(package) as archive:
        for label, name in enumerate(TEXTILES):
            for number in range(1, 1001 if name == "nominal" else 501):
                file = archive.read(f"{_FOLDER}/{name}/textile_{number:04d}.jpg")
                whole = np.asarray(Image.open(io.BytesIO(file)).convert("L"))
                pixels = whole[_FRAME:-_FRAME, _FRAME:-_FRAME]
                yield number, Picture(part(pixels, random), label, number)


def make(package: Path, target: Path = TEXTILE) -> None:
    """Writes the data set: even numbers are the test part, a fifth of the odd ones validation.

    A number is an identity, in case that pictures of several classes have one origin.
    """
    check_source(package, SHA256)
    random = np.random.RandomState(0)
    parts: list[list[Picture]] = [[], [], []]
    for number, picture in read(package, random):
        parts[2 if number % 2 == 0 else 1 if number % 10 == 9 else 0].append(picture)
    dealt = [part[i] for part in parts for i in random.permutation(len(part)).tolist()]
    write(target, dealt)


if __name__ == "__main__":
    make(argument(__doc__, "package"))
