"""Inputs of a prediction: normalised images in a file, or pictures to be preprocessed."""

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import jax.numpy as jnp
import numpy as np

from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask
from fact_jax.files.guards import absence, is_regular, read_npy_header
from fact_jax.images.decoder import suffixes
from fact_jax.images.normalise import check_normalisation, normalise
from fact_jax.images.pipeline import decode, map_ahead
from fact_jax.images.walk import Walk
from fact_jax.text import printable_line


def check_side(what: str, side: int, patch_size: int) -> None:
    """Raises UserError if images of this side cannot be cut into patches."""
    if side < patch_size or side % patch_size:
        raise UserError(
            f"{what} {side} x {side} pixels, which is not a multiple of the ViT's patch size "
            f"{patch_size}. Resize them."
        )


def read_npy(path: Path, patch_size: int) -> np.ndarray:
    """The images [n, y, x, 3] of a `.npy` file, float32 and normalised, as a memory map.

    Raises UserError that says what the file holds instead.
    """
    try:
        if not is_regular(path):
            raise ValueError(f"it {absence(path)}")
        with path.open("rb") as file:
            shape, fortran, dtype = read_npy_header(file)
            start, size = file.tell(), path.stat().st_size
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
        if start + dtype.itemsize * math.prod(shape) > size:
            raise ValueError(f"{size:,} bytes are too few for {dtype} {list(shape)}: truncated")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a .npy file ({' '.join(str(error).split())[:200]}). Write "
            "it with numpy.save, from a float32 array [n, height, width, 3]."
        ) from error
    _check_images(path, shape, dtype, patch_size)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _check_images(path: Path, shape: tuple[int, ...], dtype: np.dtype, patch_size: int) -> None:
    fault = f"{path} holds {dtype} {list(shape)}; expected float32 [n, s, s, 3]"
    if len(shape) == 3 and shape[-1] == 3:
        raise UserError(f"{fault}. One image needs a first axis, too: images[None].")
    if len(shape) == 4 and shape[-1] != 3 and shape[1] == 3:
        raise UserError(f"{fault}, channels last: images.transpose(0, 2, 3, 1).")
    if len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{fault}: a number of square colour images.")
    if dtype == np.uint8:
        raise UserError(
            f"{fault}, already normalised: (pixels / 255 - mean) / std. Or give a folder of "
            "pictures, which are normalised as the factor file says."
        )
    if dtype.newbyteorder("=") != np.float32:
        raise UserError(f"{fault}: images.astype(numpy.float32).")
    if shape[1] != shape[2]:
        raise UserError(f"{fault}: the images are not square. Resize or crop them.")
    if shape[0] == 0:
        raise UserError(f"{fault}: there is no image in it.")
    check_side(f"{path} holds images of", shape[1], patch_size)


def find_pictures(path: Path) -> list[Path]:
    """Pictures in a folder and its subfolders, sorted by path; or the one picture `path`.

    A picture is recognised by its suffix. Hidden files and files in hidden folders are left out.
    Each picture counts once, however many links lead to it.
    """
    if path.is_dir():
        walk = Walk()
        (pictures,) = walk.pictures([path])
        note = walk.note()
    else:
        note = ""
        pictures = [path] if path.suffix.lower() in suffixes() else []
    if not pictures:
        raise UserError(
            f"{printable_line(str(path))} holds no picture: no file whose name ends in "
            f"{', '.join(sorted(suffixes()))}{f' ({note})' if note else ''}. Arrays come as .npy "
            "files."
        )
    if note:
        warnings.warn(f"Pictures {note}.", stacklevel=2)
    return pictures


@dataclasses.dataclass
class Pictures:
    """Pictures with their preprocessing: an optional JPEG round trip, PIL's bicubic resize.

    The resize is that of `images.pipeline.to_square`.

    Attributes:
      paths: the files, in the order of the rows.
      image_size: side in pixels; the aspect ratio is not kept.
      unreadable: rows whose picture could not be read, with the reason; filled by `batches`.
    """

    paths: list[Path]
    image_size: int
    normalisation: str
    jpeg_quality: int | None = None
    resize: str = "square"
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_normalisation(self.normalisation)

    @classmethod
    def of(cls, paths: Sequence[Path], task: TrainedTask, default_size: int) -> Self:
        """The pictures prepared as the task's factor file says.

        Args:
          paths: the files.
          task: the content of the factor file.
          default_size: pixels along a side, if the file states none.
        """
        stated = task.metadata
        return cls(
            list(paths),
            stated.get("image_size") or default_size,
            stated.get("normalisation") or "imagenet",
            stated.get("jpeg_quality"),
            stated.get("resize") or "square",
        )

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Normalised float32 batches [<= batch_size, s, s, 3]; unreadable pictures are zeros."""
        read = partial(
            _read, size=self.image_size, jpeg_quality=self.jpeg_quality, resize=self.resize
        )
        rows: list[np.ndarray] = []
        for i, pixels in enumerate(map_ahead(read, self.paths, ahead=2 * batch_size)):
            if isinstance(pixels, str):
                self.unreadable[i] = pixels
                pixels = np.zeros((self.image_size, self.image_size, 3), np.uint8)
            rows.append(pixels)
            if len(rows) == batch_size or i + 1 == len(self.paths):
                yield np.asarray(normalise(jnp.asarray(np.stack(rows)), self.normalisation))
                rows = []


def _read(path: Path, size: int, jpeg_quality: int | None, resize: str) -> np.ndarray | str:
    """Pixels uint8 [s, s, 3], or the reason why the picture cannot be read."""
    try:
        return decode(path, size, jpeg_quality, resize=resize)
    except OSError as error:
        return str(error)
