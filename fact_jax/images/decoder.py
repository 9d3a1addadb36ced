"""Decoding to RGB: the one place where Pillow opens pictures that others made.

Whatever a decoder raises becomes a `PictureError` with a readable reason. The pictures that are
decoded at one time share `IN_FLIGHT`, a bound on their memory.
"""

import contextlib
import io
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from fact_jax.text import printable_line

# Pillow also opens vector graphics (.eps by running Ghostscript), films and scientific files, most
# of which it cannot decode; pictures come in these.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")

# What Pillow's plugins have been seen to raise on mutated files (benchmarks/robustness/fuzz.py),
# and their siblings. A warning is among them only where a caller's filter makes it an error.
_RAISED = (
    *(OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, SyntaxError),
    *(RuntimeError, EOFError, MemoryError, BufferError, AssertionError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Warning),
)
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # an entry of `warnings.filters`

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_MAX_SIDE = (
    1_000_000  # pixels: JPEG's is 65,535; a resize takes 32 bytes for each, and a row 0.2 us
)
_BYTES = {"RGB": 4, "L": 5, "P": 5, "1": 5}  # a pixel takes, decoded and as RGB; other modes 8

_SCALED = (
    "some pictures have more than 8 bits and are scaled to 8: floats from 0 to 1 are multiplied by "
    "255, 16 bits divided by 257 (docs/data.md)."
)

Source: TypeAlias = bytes | Path | epath.Path


class PictureError(OSError):
    """A picture that cannot be decoded. Its text is the reason."""


class Budget:
    """A semaphore with weights: the amounts reserved at one time sum to at most `limit`."""

    def __init__(self, limit: int):
        self.limit = limit
        self._reserved = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Waits until the amount is free. More than the limit is taken as the whole of it."""
        amount = min(amount, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._reserved + amount <= self.limit)
            self._reserved += amount
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= amount
                self._changed.notify_all()


IN_FLIGHT = Budget(2**30)  # bytes of decoded pictures in all threads of the process
_BLOCK = 2**26  # bytes; the C library returns blocks over 32 MiB to the system at once


def formats() -> list[str]:
    """Image formats that we accept and this Pillow supports."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def suffixes() -> set[str]:
    """File name endings of these formats: '.jpg' and so on."""
    accepted = formats()
    return {s for s, kind in Image.registered_extensions().items() if kind in accepted}


def special_kind(path: Source) -> str:
    """'a FIFO' and so on for a path that must not be opened, '' for all others.

    Raises:
      OSError: there is nothing at the path.
    """
    if "://" in os.fspath(path):  # a bucket has files only
        return ""
    mode = os.stat(path).st_mode
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


@contextlib.contextmanager
def reading(source: Source) -> Iterator[io.BytesIO | io.BufferedReader]:
    """The encoded picture as a file.

    Raises:
      OSError: it cannot be opened.
      PictureError: it is a FIFO, a socket or a device, where reading might wait for ever.
    """
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    if kind := special_kind(source):
        raise PictureError(f"it is {kind}, not a file")
    file: Any = source.open("rb")  # of etils or pathlib
    with file:
        yield file


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Raises `PictureError` in the place of whatever a decoder raises."""
    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        raise PictureError("it is no image of a known format") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"it is too large: {str(error).rstrip('.')}") from error
    except _RAISED as error:
        text = printable_line(" ".join(str(error).split())[:200])
        if not isinstance(error, OSError | ValueError | SyntaxError) or not text:
            text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise PictureError(text) from error


@contextlib.contextmanager
def opened(
    source: Source,
    jpeg_quality: int | None = None,
    binary: bool = False,
    max_pixels: int | None = None,
) -> Iterator[Image.Image]:
    """An RGB image of the size stored; greyscale images have three equal channels.

    Its memory is reserved in `IN_FLIGHT` until the block ends, so blocks must not be nested.

    Args:
      source: an encoded image (JPEG, PNG, ...) of any size and mode, or the path of its file.
      jpeg_quality: 1 to 95, or None for no JPEG round trip.
      binary: pixels are 0 and 1, shown as 0 and 255.
      max_pixels: most pixels of a picture that is decoded; None: as many as Pillow allows.

    Raises:
      PictureError: the bytes are no image, a truncated or too large one, or one without a range of
        values.
      OSError: the file cannot be opened.
    """
    if warnings.filters[:1] != [_QUIET]:  # once a process, but for callers that change the filters
        warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.core.set_block_size(_BLOCK)  # smaller ones stay with each thread: 4 pictures for 1
    with reading(source) as file:
        with reasons():
            image: Image.Image = Image.open(file, formats=formats())
        if max(image.size) > _MAX_SIDE:  # not after it is decoded, which takes half a minute
            raise PictureError(
                f"its {image.width} x {image.height} pixels cannot be made a square; expected at "
                f"most {_MAX_SIDE:,} on a side"
            )
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise PictureError(
                f"it has {image.width} x {image.height} pixels; expected at most {max_pixels:,}"
            )
        weight = image.width * image.height * _BYTES.get(image.mode, 8)
        with IN_FLIGHT.reserve(weight):
            scaled = _is_deep(image) and not binary
            with reasons():
                image = _rgb(image, binary)
                if jpeg_quality is not None:
                    image = jpeg_copy(image, jpeg_quality)
                image.load()
            if scaled:
                warnings.warn(_SCALED, stacklevel=2)  # Python shows it once a process
            try:
                yield image
            finally:
                image.close()  # before others may reserve its memory


def jpeg_quality(source: Source) -> int | None:
    """Quality of a JPEG that Pillow wrote, 0 for one of other tables, None for another format.

    Raises:
      PictureError: it is no image.
      OSError: the file cannot be opened.
    """
    with reading(source) as file, reasons():
        image: Any = Image.open(file, formats=formats())
        if image.format != "JPEG":
            return None
        stored = image.quantization.get(0)
    quality: int
    for quality in (75, *range(1, 96)):
        copy: Any = jpeg_copy(Image.new("RGB", (8, 8)), quality)
        if copy.quantization[0] == stored:
            return quality
    return 0


def jpeg_copy(image: Image.Image, quality: int) -> Image.Image:
    """The image after a JPEG round trip with PIL's other defaults (4:2:0 subsampling).

    NOAH's `get_vtab1k.py` stored every image so, at quality 75 and at its native size.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _rgb(image: Image.Image, binary: bool) -> Image.Image:
    if binary:
        image = Image.fromarray((np.asarray(image) > 0).astype(np.uint8) * 255)
    elif _is_deep(image):
        image = _eight_bits(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits as 8 bits, by a rule that does not depend on the other values.

    16 bits are divided by 257 and rounded, 12 bits (TIFF only) multiplied by 255 / 4095, floats
    from 0 to 1 multiplied by 255. Pillow itself clips all of them at 255.

    Raises:
      PictureError: floats outside 0 to 1, or integers whose range the format does not state.
    """
    if image.mode == "I" and image.format not in ("PPM", "PNG"):  # where they are of 16 bits
        raise PictureError(
            "its pixels are 32-bit or signed integers, whose range the file does not state; save "
            "it with 8 or 16 bits"
        )
    values = np.asarray(image)
    if image.mode == "F":
        low, high = float(values.min()), float(values.max())
        if not 0 <= low <= high <= 1:  # also NaN
            raise PictureError(
                f"its pixels are floats from {low:g} to {high:g}; expected 0 to 1, or save it with "
                "8 or 16 bits"
            )
        return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
    bits = getattr(image, "tag_v2", {}).get(258, (16,))  # BitsPerSample of TIFF
    top = 4095 if tuple(bits) == (12,) else 65535
    table = np.rint(np.arange(65536) * (255 / top)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(table[values.clip(0, 65535)])
