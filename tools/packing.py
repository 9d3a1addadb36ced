"""Writing the data sets that `fact_jax/data/offline/` holds: small PNGs, one after the other."""

import argparse
import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image


class Picture(NamedTuple):
    """A picture, its class, and the number of the thing that is on it.

    Attributes:
      image: uint8 [y, x] or [y, x, 3].
      label: its class.
      identity: pictures with one identity are in one split.
    """

    image: UInt8[np.ndarray, "y x *c"]
    label: int
    identity: int


def argument(doc: str, name: str) -> Path:
    """The only argument of a program that makes a data set; --help shows its documentation."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(name, type=Path)
    path: Path = vars(parser.parse_args())[name]
    if not path.exists():
        parser.error(f"{path} does not exist.")
    return path


def check_source(path: Path, sha256: str) -> None:
    """Ends the program if a source is not the file that the data set was made from."""
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        sys.exit(f"{path} has SHA-256 {found}, expected {sha256}: it is another file or version.")


def unlike(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures without those that show what an earlier one shows, pixel by pixel."""
    first = {picture.image.tobytes(): picture for picture in reversed(pictures)}
    return [picture for picture in pictures if first[picture.image.tobytes()] is picture]


def write(path: Path, pictures: Sequence[Picture]) -> None:
    """Writes PNGs (uint8, one after the other), where each ends, labels and identities."""
    files = [_png(picture.image) for picture in pictures]
    np.savez_compressed(
        path,
        png=np.frombuffer(b"".join(files), np.uint8),
        ends=np.cumsum([len(file) for file in files]).astype(np.int32),
        labels=np.array([picture.label for picture in pictures], np.uint8),
        identities=np.array([picture.identity for picture in pictures], np.uint16),
    )


def _png(image: UInt8[np.ndarray, "y x *c"]) -> bytes:
    """The PNG; coloured pictures of at most 256 colours have a palette."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if image.ndim == 3:
        colours, numbers = np.unique(image.reshape(-1, 3), axis=0, return_inverse=True)
        if len(colours) <= 256:
            picture = Image.fromarray(numbers.reshape(image.shape[:2]).astype(np.uint8), "P")
            picture.putpalette(colours.tobytes())
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
