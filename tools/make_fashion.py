"""Makes fashion.npz, the part of Fashion-MNIST that is shipped, from the four published files.

    python -m tools.make_fashion FOLDER

FOLDER holds the IDX files, as under /usr/share/datasets/fashion-mnist with Debian's package
dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from fact_jax.data.offline.bundled import FASHION
from tools.packing import argument

_PER_PART = 1000


def _idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def make(folder: Path, target: Path = FASHION) -> None:
    """Writes images uint8 [2000, 28, 28] and labels uint8 [2000]: training part, then test part."""
    images, labels = [], []
    for part in ("train", "t10k"):
        pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        images.append(pixels[:_PER_PART])
        labels.append(_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)[:_PER_PART])
    np.savez_compressed(target, images=np.concatenate(images), labels=np.concatenate(labels))


if __name__ == "__main__":
    make(argument(__doc__, "folder"))
