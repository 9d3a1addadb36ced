"""Sources of data: each a small class with the protocol `Source`, which the reader asks."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Int

from fact_jax.images import decoder

HELD_OUT_SEED = 2**31  # of the images kept for 'val'; lists are drawn with small seeds


class Record(NamedTuple):
    """One example as it is stored.

    Attributes:
      image: an encoded picture, or the path of its file.
      label: its class; 0 of a multi-label task.
      name: its name in messages; empty if it has only a number.
      labels: all its labels, of a multi-label task; None otherwise.
    """

    image: decoder.Source
    label: int
    name: str = ""
    labels: tuple[int, ...] | None = None


class Provenance(TypedDict, total=False):
    """JSON-able record of where pixels and labels come from, kept in each result.

    The source begins it; few-shot lists and the reader add to it.
    """

    task: str
    builder: str
    requested_version: str | None
    used_version: str
    mapped: bool
    note: str
    file_format: str
    splits: dict[str, str] | dict[str, int]
    mock: bool
    data_dir: str | None
    fingerprint: str | None
    tfds: str | None
    pillow: str
    skipped: int
    skipped_names: list[str]
    shots: int
    split_source: str
    numpy: str
    image_size: int
    resize: str
    jpeg_quality: int | None


class Identity(TypedDict, total=False):
    """The part of a decoded split's cache key that neither settings nor provenance give."""

    fingerprint: str | list[str]
    instruction: str
    format: int
    task: str


@runtime_checkable
class Splits(Protocol):
    """Splits that can be read."""

    def size(self, split: str) -> int:
        """Number of examples of a split; UserError if there is no such split."""

    def records(self, split: str, size: int) -> Iterator[Record]:
        """The first `size` examples of a split."""

    def identity(self, split: str) -> Identity:
        """The part of a decoded split's cache key that neither settings nor provenance give."""


@runtime_checkable
class Source(Splits, Protocol):
    """The examples of a task's splits, and where they come from.

    Attributes:
      splits: names of its splits.
      class_names: None where classes have no names.
      place: the directory of the pictures, for messages.
      pool: the pictures that few-shot lists are drawn from, for messages.
      remedy: advice for a damaged picture.
      mocked: whether the examples are random.
      skips_damaged: whether damaged pictures can be left out.
      stored_jpeg: quality of the JPEG copies that it holds, 0 if that is not known; None where it
        holds the original pictures.
      provenance: record of where the examples come from.
    """

    splits: list[str]
    class_names: list[str] | None
    place: str
    pool: str
    remedy: str
    mocked: bool
    skips_damaged: bool
    stored_jpeg: int | None
    provenance: Provenance

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        """Classes of all examples of a split, read without the pictures."""

    def describe_draw(self, shots: int) -> str:
        """A sentence on the origin of a few-shot task's lists, for its record."""

    def damaged(self, num_threads: int | None) -> dict[str, str]:
        """Paths of the pictures that cannot be decoded, and why."""
