"""What is predicted on: normalised images in a file, or pictures with their preprocessing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, UnidentifiedImageError

from fact_jax.data.images import decode, map_ahead
from fact_jax.errors import UserError
from fact_jax.training.images import check_normalisation, normalise


def check_side(what: str, side: int, patch_size: int) -> None:
    """UserError if images of this side cannot be cut into patches."""
    if side < patch_size or side % patch_size:
        raise UserError(
            f"{what} {side} x {side} pixels, which is not a multiple of the ViT's patch size "
            f"{patch_size}. Resize them."
        )


def read_npy(path: Path, patch_size: int) -> np.ndarray:
    """The images [n, y, x, 3] of a `.npy` file, float32 and normalised, as a memory map.

    Raises UserError that says what was found instead.
    """
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(
            f"{path} cannot be read as a .npy file ({' '.join(str(error).split())[:200]}). Write "
            "it with numpy.save, from a float32 array [n, height, width, 3]."
        ) from error
    found = f"{path} holds {images.dtype} {list(images.shape)}; expected float32 [n, s, s, 3]"
    if images.ndim == 3 and images.shape[-1] == 3:
        raise UserError(f"{found}. One image needs a first axis, too: images[None].")
    if images.ndim == 4 and images.shape[-1] != 3 and images.shape[1] == 3:
        raise UserError(f"{found}, channels last: images.transpose(0, 2, 3, 1).")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise UserError(f"{found}: a number of square colour images.")
    if images.dtype == np.uint8:
        raise UserError(
            f"{found}, already normalised: (pixels / 255 - mean) / std. Or give a folder of "
            "pictures, which are normalised as the factor file says."
        )
    if images.dtype.newbyteorder("=") != np.float32:
        raise UserError(f"{found}: images.astype(numpy.float32).")
    if images.shape[1] != images.shape[2]:
        raise UserError(f"{found}: the images are not square. Resize or crop them.")
    if len(images) == 0:
        raise UserError(f"{found}: there is no image in it.")
    check_side(f"{path} holds images of", images.shape[1], patch_size)
    return images


def find_pictures(path: Path) -> list[Path]:
    """The pictures in a folder and those below it, sorted by path; or the one picture `path`.

    A picture is a file whose suffix Pillow can read; hidden ones are left out.
    """
    Image.init()
    suffixes = {s for s, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    if path.is_file():
        found = [path] if path.suffix.lower() in suffixes else []
    else:
        hidden = [p for p in path.rglob("*") if not p.name.startswith(".")]
        found = sorted(p for p in hidden if p.suffix.lower() in suffixes and p.is_file())
    if not found:
        raise UserError(
            f"{path} holds no picture: no file whose name ends in .jpg, .png, .webp or another of "
            f"the {len(suffixes)} suffixes that Pillow reads. Arrays come as .npy files."
        )
    return found


@dataclasses.dataclass
class Pictures:
    """Pictures with their preprocessing: an optional JPEG round trip, PIL's bicubic resize.

    Attributes:
      paths: the files, in the order of the rows.
      image_size: side in pixels; the aspect ratio is not kept.
      unreadable: rows whose picture could not be read, with the reason; filled by `batches`.
    """

    paths: list[Path]
    image_size: int
    normalisation: str
    jpeg_quality: int | None = None
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_normalisation(self.normalisation)

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Normalised float32 batches [<= batch_size, s, s, 3]; unreadable pictures are zeros."""
        read = partial(_read, size=self.image_size, jpeg_quality=self.jpeg_quality)
        rows: list[np.ndarray] = []
        for i, pixels in enumerate(map_ahead(read, self.paths, ahead=2 * batch_size)):
            if isinstance(pixels, str):
                self.unreadable[i] = pixels
                pixels = np.zeros((self.image_size, self.image_size, 3), np.uint8)
            rows.append(pixels)
            if len(rows) == batch_size or i + 1 == len(self.paths):
                yield np.asarray(normalise(jnp.asarray(np.stack(rows)), self.normalisation))
                rows = []


def _read(path: Path, size: int, jpeg_quality: int | None) -> np.ndarray | str:
    """The pixels uint8 [s, s, 3], or why there are none."""
    try:
        return decode(path.read_bytes(), size, jpeg_quality)
    except UnidentifiedImageError:
        return "no picture that Pillow can read"
    except Exception as error:  # Pillow's readers raise all sorts of errors on damaged pictures
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
