"""The examples of the offline suite, and a reader that needs neither TFDS nor TensorFlow.

`builders.py` gives the same examples to TFDS, which serves mock data and the tests.
"""

import functools
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from etils import epath
from jaxtyping import UInt8, UInt16
from PIL import Image

from fact_jax.data.labels import Example
from fact_jax.data.offline import scenes, solids, sprites

NUM_TRAIN, NUM_VAL = 800, 200
VERSION = "1.0.0"
DIGITS, FASHION, EMOJI, TEXTILE, SCRIPT = (
    Path(__file__).with_name(f"{name}.npz")
    for name in ("digits", "fashion", "emoji", "textile", "script")
)
_GARMENTS = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_DIGITS = [str(digit) for digit in range(10)]
EMOJI_CATEGORIES = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols", "Flags"),
)
TEXTILES = ("nominal", "local", "global")
SCRIPTS = (
    *("Latin", "Greek", "Cyrillic", "Hebrew", "Arabic"),
    *("Devanagari", "Thai", "Malayalam", "Hangul", "Kana"),
)


def _stored(path: Path) -> list[Example]:
    """The images [n, y, x] and labels [n] of a file, uint8."""
    with np.load(path, allow_pickle=False) as arrays:
        pairs = zip(arrays["images"][..., None], arrays["labels"], strict=True)
    return [{"image": image, "label": int(label)} for image, label in pairs]


def _packed(path: Path) -> list[Example]:
    """The pictures of a file of PNGs (`tools/packing.py`), uint8 [y, x, c], and their labels."""
    with np.load(path, allow_pickle=False) as arrays:
        files, labels = np.split(arrays["png"], arrays["ends"][:-1]), arrays["labels"]
    images = map(_decoded, files)
    return [
        {"image": image.reshape(*image.shape[:2], -1), "label": int(label)}
        for image, label in zip(images, labels, strict=True)
    ]


def _decoded(file: UInt8[np.ndarray, " bytes"]) -> UInt8[np.ndarray, "y x *c"]:
    image = Image.open(io.BytesIO(file.tobytes()))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def identities(path: Path) -> UInt16[np.ndarray, " n"]:
    """The number of the thing on each picture of a file of PNGs, in the order of the splits."""
    with np.load(path, allow_pickle=False) as arrays:
        return np.asarray(arrays["identities"])


def _sprites() -> list[Example]:
    """2,000 sprites, of pixels 0 and 1, with their factors."""
    return [
        {"image": sprites.draw(**factors), **factors}
        for factors in map(sprites.latents, sprites.sample(2000, seed=0))
    ]


def _scenes() -> list[Example]:
    """2,000 scenes, with the number of solids and the class of the nearest one's depth."""
    return [
        {
            "image": scene.image,
            "label_count": len(scene.solids) - scenes.LEAST,
            "label_distance": scenes.distance_class(scene),
        }
        for scene in scenes.sample(2000, seed=0)
    ]


def _solids() -> list[Example]:
    """20 pictures of each of 100 solids; the parts have 40, 10 and 50 of them."""
    return [
        {"image": picture.image, "label_azimuth": picture.azimuth, "label_kind": picture.kind}
        for picture in solids.sample((8, 2, 10), seed=0)
    ]


@dataclass(frozen=True)
class Bundled:
    """A data set that comes with the package.

    Attributes:
      examples: makes all examples, in the order of the splits; images are uint8 of the `shape`.
      shape: height, width, channels.
      classes: class names of each label.
      fingerprint: from TFDS 4.9.10's record of its copy, so that results stay comparable.
    """

    examples: Callable[[], list[Example]]
    shape: tuple[int, int, int]
    classes: Mapping[str, Sequence[str]]
    fingerprint: str


SETS = {
    "offline_digits": Bundled(
        functools.partial(_stored, DIGITS), (8, 8, 1), {"label": _DIGITS}, "1b56a838483dbd94"
    ),
    "offline_fashion": Bundled(
        functools.partial(_stored, FASHION), (28, 28, 1), {"label": _GARMENTS}, "c2306a39bf9562ae"
    ),
    "offline_sprites": Bundled(
        _sprites,
        (sprites.SIDE, sprites.SIDE, 1),
        {factor: [str(i) for i in range(count)] for factor, count in sprites.FACTORS.items()},
        "8abb357399ce0a62",
    ),
    "offline_emoji": Bundled(
        functools.partial(_packed, EMOJI),
        (48, 48, 3),
        {"label": EMOJI_CATEGORIES},
        "46e8764b7949034e",
    ),
    "offline_textile": Bundled(
        functools.partial(_packed, TEXTILE), (32, 32, 1), {"label": TEXTILES}, "15cf704d6c246721"
    ),
    "offline_script": Bundled(
        functools.partial(_packed, SCRIPT), (48, 48, 1), {"label": SCRIPTS}, "0fb44131dc4b2937"
    ),
    "offline_scenes": Bundled(
        _scenes,
        (scenes.SIDE, scenes.SIDE, 3),
        {"label_count": scenes.COUNTS, "label_distance": scenes.DISTANCES},
        "43d397e5cf691f32",
    ),
    "offline_solids": Bundled(
        _solids,
        (solids.SIDE, solids.SIDE, 1),
        {"label_azimuth": solids.AZIMUTHS, "label_kind": solids.KINDS},
        "55c252574396d5c2",
    ),
}


@functools.cache
def splits_of(name: str) -> dict[str, list[tuple[int, Example]]]:
    """The examples of each split of a data set, with their numbers in the whole set."""
    numbered, stop = list(enumerate(SETS[name].examples())), NUM_TRAIN + NUM_VAL
    return {
        "train": numbered[:NUM_TRAIN],
        "validation": numbered[NUM_TRAIN:stop],
        "test": numbered[stop:],
    }


class BundledBuilder:
    """Stands for a TFDS builder, for a data set that comes with the package."""

    version = VERSION

    def __init__(self, name: str, data_dir: str):
        self._name = name
        self.data_path = epath.Path(data_dir).expanduser() / name / VERSION
        labels = {
            label: SimpleNamespace(num_classes=len(names), names=names)
            for label, names in SETS[name].classes.items()
        }
        sizes = {split: len(rows) for split, rows in splits_of(name).items()}
        sizes["train+validation"] = NUM_TRAIN + NUM_VAL
        self.info = SimpleNamespace(
            full_name=f"{name}/{VERSION}",
            features={"image": SimpleNamespace(), **labels},
            splits={split: SimpleNamespace(num_examples=n) for split, n in sizes.items()},
            file_format=None,
        )

    @property
    def fingerprint(self) -> str:
        """The fingerprint of a copy that TFDS prepared for an earlier version, if there is one."""
        record = self.data_path / "dataset_info.json"
        if record.is_file():
            return hashlib.sha256(record.read_bytes()).hexdigest()[:16]
        return SETS[self._name].fingerprint

    def read(self, instruction: str) -> Iterator[Example]:
        """The examples of 'train', 'validation', 'test' or several with '+', images as PNG.

        They come in the order of TFDS, which sorts a split by the MD5 of its name and the number.
        """
        for split in instruction.split("+"):
            rows = splits_of(self._name)[split]
            for _, example in sorted(rows, key=functools.partial(_place, split)):
                yield {**example, "image": _png(example["image"])}


def _place(split: str, row: tuple[int, Example]) -> bytes:
    return hashlib.md5(f"{split}{row[0]}".encode(), usedforsecurity=False).digest()


def _png(image: UInt8[np.ndarray, "y x c"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
