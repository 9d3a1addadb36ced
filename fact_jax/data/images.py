"""The image pipeline: stored bytes to a square uint8 picture, as the published numbers had it.

PIL's bicubic resize, aspect ratio not kept, is torchvision 0.11's `Resize((s, s),
interpolation=3)` on a PIL image; `tf.image.resize` gives other pixels.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

# Pillow also opens vector graphics (.eps by running Ghostscript), films and scientific files, most
# of which it cannot decode; pictures come in these.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TIFF", "WEBP")

T = TypeVar("T")
R = TypeVar("R")

RESIZES = {  # name of a way to resize -> its description in records
    "square": "PIL bicubic, aspect ratio not kept",
    "crop": "PIL bicubic to 256/224 of the side, aspect ratio not kept, then centre crop",
}


def jpeg_copy(image: Image.Image, quality: int) -> Image.Image:
    """The image after a JPEG round trip with PIL's other defaults (4:2:0 subsampling).

    NOAH's `get_vtab1k.py` stored every image so, at quality 75 and at its native size.
    """
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def formats() -> list[str]:
    """Those that are opened, of the ones that this Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def suffixes() -> set[str]:
    """Of the names of pictures: '.jpg' and so on."""
    known = formats()
    return {s for s, kind in Image.registered_extensions().items() if kind in known}


def explained(error: OSError) -> str:
    """Why an image cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):  # its own words name an object in memory
        return "it is no image of a known format"
    return " ".join(str(error).split())


def open_rgb(data: bytes, jpeg_quality: int | None = None, binary: bool = False) -> Image.Image:
    """Decodes, and optionally passes through JPEG.

    Args:
      data: an encoded image (JPEG, PNG, ...) of any size and mode.
      jpeg_quality: 1 to 95, or None for no JPEG round trip.
      binary: pixels are 0 and 1, shown as 0 and 255.

    Returns:
      an RGB image of the size stored; greyscale images have three equal channels.

    Raises:
      OSError: the bytes are no image, or a truncated one.
    """
    image: Image.Image = Image.open(io.BytesIO(data), formats=formats())
    if binary:
        image = Image.fromarray((np.asarray(image) > 0).astype(np.uint8) * 255)
    image = image.convert("RGB")
    return image if jpeg_quality is None else jpeg_copy(image, jpeg_quality)


def to_square(image: Image.Image, size: int, resize: str = "square") -> np.ndarray:
    """uint8 [size, size, 3]: resized as one of `RESIZES`.

    'crop' is NOAH's test transform of the few-shot sets (`lib/datasets.py`): both sides to
    size x 256 / 224, then torchvision's `CenterCrop`.
    """
    if resize == "square":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    full = int(256 / 224 * size)
    start = round((full - size) / 2)
    image = image.resize((full, full), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((start, start, start + size, start + size)))


def decode(
    data: bytes,
    size: int,
    jpeg_quality: int | None = None,
    binary: bool = False,
    resize: str = "square",
) -> np.ndarray:
    """`to_square` of `open_rgb`: uint8 [size, size, 3]. OSError: the bytes are no sound image."""
    return to_square(open_rgb(data, jpeg_quality, binary), size, resize)


def map_ahead(
    function: Callable[[T], R], items: Iterable[T], ahead: int, num_threads: int | None = None
) -> Iterator[R]:
    """`map` in worker threads, in order, with up to `ahead` results finished before their use.

    Pillow releases the interpreter lock while it decodes and resizes.
    """
    executor = ThreadPoolExecutor(num_threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the consumer stops early
        executor.shutdown(wait=False, cancel_futures=True)
