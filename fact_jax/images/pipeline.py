"""The image pipeline: stored bytes to a square uint8 picture, as the published numbers had it.

PIL's bicubic resize, aspect ratio not kept, is torchvision 0.11's `Resize((s, s),
interpolation=3)` on a PIL image; `tf.image.resize` gives other pixels.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from fact_jax.images.decoder import PictureError, Source, opened, reasons

# Pixels between the two passes of a resize, [height, size]: Pillow's own limit for a picture. One
# of 1 x 100,000,000 pixels is small, but would take 90 GB there.
_MOST_BETWEEN = 178_956_970

T = TypeVar("T")
R = TypeVar("R")

RESIZES = {  # name of a way to resize -> its description in records
    "square": "PIL bicubic, aspect ratio not kept",
    "crop": "PIL bicubic to 256/224 of the side, aspect ratio not kept, then centre crop",
}


def resized_side(size: int) -> int:
    """Pixels along a side of which 'crop' takes the middle `size`."""
    return int(256 / 224 * size)


def to_square(image: Image.Image, size: int, resize: str = "square") -> np.ndarray:
    """uint8 [size, size, 3]: resized as one of `RESIZES`.

    'crop' is NOAH's test transform of the few-shot sets (`lib/datasets.py`): both sides to
    size x 256 / 224, then torchvision's `CenterCrop`.

    Raises:
      PictureError: the picture is too high and narrow to be resized.
    """
    if image.height * size > _MOST_BETWEEN:
        raise PictureError(f"its {image.width} x {image.height} pixels cannot be made a square")
    if resize == "square":
        return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    full = resized_side(size)
    start = round((full - size) / 2)
    image = image.resize((full, full), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((start, start, start + size, start + size)))


def decode(
    source: Source,
    size: int,
    jpeg_quality: int | None = None,
    binary: bool = False,
    resize: str = "square",
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes (`decoder.opened`) and resizes (`to_square`): uint8 [size, size, 3].

    Raises:
      PictureError: the bytes are no sound image.
      OSError: the file cannot be opened.
    """
    with opened(source, jpeg_quality, binary, max_pixels) as image, reasons():
        return to_square(image, size, resize)


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
