"""Reading a task's splits from whatever source: decoding, caching, streaming, augmented views."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from fact_jax.data.cache import Examples, Images, Labels, cached
from fact_jax.data.settings import DataSettings
from fact_jax.data.shots import Shots, list_seed
from fact_jax.data.sources import Provenance, Record, Source, Splits
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.images import augment, decoder, pipeline
from fact_jax.text import printable_line

# The fields of the provenance that pixels and labels depend on.
CACHE_KEY = (
    *("task", "builder", "used_version", "fingerprint"),
    *("image_size", "resize", "jpeg_quality", "pillow"),
)


Label = int | tuple[int, ...]  # a class, or all labels of a multi-label task


class TaskData:
    """A task whose data can be read.

    Attributes:
      task: the task, with the classes and sizes of its data.
      source: its encoded examples.
      view: the splits of the source, or few-shot lists that are drawn from them.
      provenance: record of where the pixels and labels come from.
    """

    def __init__(self, task: Task, source: Source, settings: DataSettings):
        self.task, self.source, self._settings = task, source, settings
        self._encoded: dict[str, list[Record]] = {}
        self._jpeg_quality = settings.jpeg_quality
        if source.stored_jpeg is not None:
            if settings.jpeg_quality not in (None, source.stored_jpeg):
                raise UserError(
                    f"Task {task.name}: config.jpeg_quality is {settings.jpeg_quality}, but the "
                    f"pictures in {source.place} are JPEG copies of quality "
                    f"{source.stored_jpeg or 'unknown'} and are read as they are. Set it to 0."
                )
            self._jpeg_quality = None  # a second copy would be of other pixels
        shots = Shots(task, task.few_shot, source) if task.few_shot else None
        self.view: Splits = shots or source
        self.provenance: Provenance = {
            **source.provenance,
            **(shots.provenance if shots else {}),
            "image_size": settings.image_size,
            "resize": pipeline.RESIZES[settings.resize],
            "jpeg_quality": self._jpeg_quality or source.stored_jpeg or None,
        }

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, None where there are none, or the label is a formula."""
        return self.source.class_names

    def size(self, split: str, limit: int | None = None) -> int:
        """Number of examples of a split, at most `limit` (an upper bound for mocked data)."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1 or None, found {limit}.")
        size = self.view.size(split)
        if self._settings.mock and limit is None:
            limit = self._settings.mock_examples
        return size if limit is None else min(size, limit)

    def load(self, split: str, limit: int | None = None) -> Examples:
        """The whole split in memory, in TFDS's order (the first `limit` examples of it)."""
        size, side = self.size(split, limit), self._settings.image_size
        pixels = np.empty((size, side, side, 3), np.uint8)
        labels = np.empty((size, *self._label_shape), np.int32)
        count = 0
        for batch in self.stream(split, 64, limit):
            stop = count + len(batch.labels)
            pixels[count:stop], labels[count:stop] = batch
            count = stop
        return Examples(pixels[:count], labels[:count])

    def stream(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Examples]:
        """Batches in TFDS's order, decoded ahead of their use; the last may be short."""
        if self._settings.cache_dir is None or self.source.mocked:
            return self._decoded(split, batch_size, limit)
        return self._from_cache(split, batch_size, limit)

    def views(self, split: str, epoch_seed: int, limit: int | None = None) -> Images:
        """One augmented view of each image of a few-shot training list, uint8 [n, s, s, 3], in the
        order of `load`.

        It depends on the split, its image and `epoch_seed` (at least 0) alone. The encoded images
        are read by `keep`, if they are not in memory yet.
        """
        size, seed = self.size(split, limit), list_seed(split)
        if seed is None:
            raise UserError(f"Split {split!r} has no augmented views, only training lists have.")
        self.keep(split)
        rows = [
            ([seed, epoch_seed, index], index, record)
            for index, record in enumerate(self._encoded[split][:size])
        ]
        threads = self._settings.num_threads
        return np.stack(list(pipeline.map_ahead(self._view, rows, 2 * (threads or 8), threads)))

    def keep(self, split: str) -> None:
        """Reads the encoded images of a training list into memory, where they stay for `views`."""
        if split not in self._encoded:
            records = self.view.records(split, self.size(split))
            self._encoded[split] = [self._read(*numbered) for numbered in enumerate(records)]

    def forget(self) -> None:
        """Frees the images that `keep` has read."""
        self._encoded.clear()

    def damaged(self) -> dict[str, str]:
        """Paths of the pictures of folders and lists that cannot be decoded, and why."""
        return self.source.damaged(self._settings.num_threads)

    def _from_cache(self, split: str, batch_size: int, limit: int | None) -> Iterator[Examples]:
        size = self.size(split, limit)
        pixels, labels = cached(
            self._settings.cache_dir or "",
            key=self._cache_key(split, size),
            size=size,
            side=self._settings.image_size,
            build=lambda: self._decoded(split, 64, limit),
            labels=self._label_shape,
        )
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size)
            yield Examples(np.array(pixels[rows]), labels[rows])

    def _cache_key(self, split: str, size: int) -> dict[str, object]:
        """The settings and data that a decoded split depends on, without notes and paths."""
        key = {name: value for name, value in self.provenance.items() if name in CACHE_KEY}
        return {**key, "split": split, "size": size, **self.view.identity(split)}

    def _decoded(self, split: str, batch_size: int, limit: int | None) -> Iterator[Examples]:
        rows = pipeline.map_ahead(
            self._decode,
            enumerate(self.view.records(split, self.size(split, limit))),
            ahead=2 * batch_size,
            num_threads=self._settings.num_threads,
        )
        while batch := list(itertools.islice(rows, batch_size)):
            pixels, labels = zip(*batch, strict=True)
            yield Examples(np.stack(pixels), self._labels(labels))

    @property
    def _label_shape(self) -> tuple[int, ...]:
        """The shape of the labels of one example."""
        return (self.task.num_classes,) if self.task.multi_label else ()

    def _labels(self, labels: Sequence[Label]) -> Labels:
        """The labels of examples, or 1 for each that an example of a multi-label task has."""
        array = np.zeros((len(labels), *self._label_shape), np.int32)
        if not self.task.multi_label:
            array[:] = labels
            return array
        for row, several in zip(array, labels, strict=True):
            row[list(several) if isinstance(several, tuple) else several] = 1
        return array

    def _decode(self, numbered: tuple[int, Record]) -> tuple[UInt8[np.ndarray, "y x 3"], Label]:
        index, record = numbered
        with self._sound(index, record):
            side, resize = self._settings.image_size, self._settings.resize
            image = pipeline.decode(
                record.image, side, self._jpeg_quality, self.task.binary, resize
            )
        return image, record.label if record.labels is None else record.labels

    def _read(self, index: int, record: Record) -> Record:
        with self._sound(index, record), decoder.reading(record.image) as file:
            return record._replace(image=file.read())

    def _view(self, row: tuple[list[int], int, Record]) -> UInt8[np.ndarray, "y x 3"]:
        seeds, index, record = row
        with (
            self._sound(index, record),
            decoder.opened(record.image, self._jpeg_quality, self.task.binary) as image,
        ):
            rng = np.random.default_rng(seeds)
            return augment.augment(image, self._settings.image_size, rng)

    @contextlib.contextmanager
    def _sound(self, index: int, record: Record) -> Iterator[None]:
        """Turns a picture's error into a `UserError` that names the picture."""
        try:
            yield
        except OSError as error:
            what = "decoded" if isinstance(error, decoder.PictureError) else "read"
            name = printable_line(record.name or str(index))
            raise UserError(
                f"Task {self.task.name}: image {name} in {self.source.place} cannot be {what} "
                f"({printable_line(str(error))}). {self.source.remedy}"
            ) from error
