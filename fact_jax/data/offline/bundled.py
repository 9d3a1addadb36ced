"""The examples of the offline suite, and a reader that needs neither TFDS nor TensorFlow.

`builders.py` gives the same examples to TFDS, which serves mock data and the tests.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from fact_jax.data.labels import Example
from fact_jax.data.offline import sprites

NUM_TRAIN, NUM_VAL = 800, 200
VERSION = "1.0.0"
FASHION = Path(__file__).with_name("fashion.npz")
FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def digits() -> list[Example]:
    """scikit-learn's 1,797 digits: image uint8 [8, 8, 1], 17 grey levels spread over 0..255."""
    from sklearn.datasets import load_digits

    stored = load_digits()
    images = np.rint(stored.images * (255 / 16)).astype(np.uint8)[..., None]
    return [
        {"image": image, "label": int(label)}
        for image, label in zip(images, stored.target, strict=True)
    ]


def fashion() -> list[Example]:
    """2,000 images of Fashion-MNIST: image uint8 [28, 28, 1]."""
    with np.load(FASHION, allow_pickle=False) as arrays:
        return [
            {"image": image[..., None], "label": int(label)}
            for image, label in zip(arrays["images"], arrays["labels"], strict=True)
        ]


def drawn_sprites() -> list[Example]:
    """2,000 sprites with their factors: image uint8 [64, 64, 1] of 0 and 1."""
    return [
        {"image": sprites.draw(**factors), **factors}
        for factors in map(sprites.latents, sprites.sample(2000, seed=0))
    ]


class _Set(SimpleNamespace):
    """One data set.

    Attributes:
      examples: makes all examples, in the order of the splits.
      features: class names of each label.
      fingerprint: of TFDS 4.9.10's record of its copy, so that results stay comparable.
    """

    examples: Callable[[], list[Example]]
    features: dict[str, list[str]]
    fingerprint: str


SETS = {
    "offline_digits": _Set(
        examples=digits,
        features={"label": [str(i) for i in range(10)]},
        fingerprint="1b56a838483dbd94",
    ),
    "offline_fashion": _Set(
        examples=fashion, features={"label": list(FASHION_NAMES)}, fingerprint="c2306a39bf9562ae"
    ),
    "offline_sprites": _Set(
        examples=drawn_sprites,
        features={name: [str(i) for i in range(n)] for name, n in sprites.FACTORS.items()},
        fingerprint="8abb357399ce0a62",
    ),
}


class BundledBuilder:
    """Stands for a TFDS builder, for a data set that comes with the package."""

    version = VERSION

    def __init__(self, name: str, data_dir: str):
        self._set = SETS[name]
        self._name = name
        self.data_dir_root = data_dir
        self.data_path = epath.Path(data_dir).expanduser() / name / VERSION
        labels = {
            feature: SimpleNamespace(num_classes=len(names), names=names)
            for feature, names in self._set.features.items()
        }
        total = len(_examples(name))
        sizes = {"train": NUM_TRAIN, "validation": NUM_VAL, "test": total - NUM_TRAIN - NUM_VAL}
        sizes["train+validation"] = NUM_TRAIN + NUM_VAL
        self.info = SimpleNamespace(
            full_name=f"{name}/{VERSION}",
            features={"image": SimpleNamespace(num_classes=None), **labels},
            splits={split: SimpleNamespace(num_examples=n) for split, n in sizes.items()},
            file_format=None,
        )

    @property
    def fingerprint(self) -> str:
        """That of the copy that TFDS prepared for an earlier version, if there is one."""
        record = self.data_path / "dataset_info.json"
        if record.is_file():
            return hashlib.sha256(record.read_bytes()).hexdigest()[:16]
        return self._set.fingerprint

    def read(self, instruction: str) -> Iterator[Example]:
        """The examples of 'train', 'validation', 'test' or several with '+', images as PNG.

        Their order is that of TFDS, which sorts each split by the MD5 of its name and the key.
        """
        examples = _examples(self._name)
        stops = {"train": NUM_TRAIN, "validation": NUM_TRAIN + NUM_VAL, "test": len(examples)}
        starts = dict(zip(stops, (0, *stops.values()), strict=False))
        for split in instruction.split("+"):
            salt = hashlib.md5(split.encode(), usedforsecurity=False)
            keys = range(starts[split], stops[split])
            for key in sorted(keys, key=functools.partial(_hash, salt)):
                yield {**examples[key], "image": _png(examples[key]["image"])}


@functools.lru_cache(maxsize=3)
def _examples(name: str) -> list[Example]:
    return SETS[name].examples()


def _hash(salt: Any, key: int) -> int:
    md5 = salt.copy()
    md5.update(str(key).encode())
    return int(md5.hexdigest(), 16)


def _png(image: UInt8[np.ndarray, "y x 1"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "PNG")
    return buffer.getvalue()
