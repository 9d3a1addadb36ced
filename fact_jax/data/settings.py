"""How to find and decode data."""

import os
from dataclasses import dataclass

from fact_jax.errors import UserError
from fact_jax.images import pipeline


@dataclass(frozen=True)
class DataSettings:
    """How to find and decode data.

    Attributes:
      data_dir: TFDS's data directory; None for TFDS's default (~/tensorflow_datasets).
      image_size: side of the images in pixels.
      resize: 'square', or 'crop' (`pipeline.to_square`).
      jpeg_quality: 75 for the JPEG copies that FacT's numbers were made with; None for none.
      cache_dir: directory for decoded splits; None for no cache.
      download: download and prepare missing data.
      mock: random examples of the true features in the place of data.
      mock_examples: examples of each mocked split, unless a limit or the split's size is less.
      num_threads: decoding threads; None for the executor's default.
      skip_damaged: leave damaged pictures of folders and lists out; all are decoded once for it.
    """

    data_dir: str | None = None
    image_size: int = 224
    resize: str = "square"
    jpeg_quality: int | None = None
    cache_dir: str | None = None
    download: bool = False
    mock: bool = False
    mock_examples: int = 128
    num_threads: int | None = None
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, found {self.image_size}.")
        if self.resize not in pipeline.RESIZES:
            ways = " or ".join(map(repr, pipeline.RESIZES))
            raise UserError(f"resize must be {ways}, found {self.resize!r}.")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"jpeg_quality must be 1 to 95 or None, found {self.jpeg_quality}.")

    @property
    def root(self) -> str:
        """The data directory; for None it is TFDS's default, which we know without TFDS."""
        if self.data_dir is not None:
            return self.data_dir
        return os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))
