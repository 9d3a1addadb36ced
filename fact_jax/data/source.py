"""Reading a task's splits through TFDS: stored bytes from the records, pixels from Pillow."""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fact_jax.command_line import command
from fact_jax.data import cache, checks, labels, mock, prepare
from fact_jax.data.fewshot import FewShotTask
from fact_jax.data.offline.bundled import BundledBuilder
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError
from fact_jax.images import decoder, pipeline
from fact_jax.text import printable_line

# The fields of the provenance that pixels and labels depend on.
CACHE_KEY = (
    *("task", "builder", "used_version", "fingerprint"),
    *("image_size", "resize", "jpeg_quality", "pillow"),
)


def data_root(data_dir: str | None) -> str:
    """The data directory, TFDS's default for None (which is known without TFDS)."""
    if data_dir is not None:
        return data_dir
    return os.environ.get("TFDS_DATA_DIR", os.path.expanduser("~/tensorflow_datasets"))


class Examples(NamedTuple):
    """Decoded examples: images uint8 [n, s, s, 3], labels int32 [n]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class DataSettings:
    """How to find and decode data.

    Attributes:
      data_dir: TFDS's data directory; None for TFDS's default (~/tensorflow_datasets).
      image_size: side of the images in pixels.
      resize: 'square', or 'crop' (`pipeline.to_square`).
      jpeg_quality: 75 for the JPEG copies that FacT's numbers were made with; None for none.
      cache_dir: directory for decoded splits; None for no cache.
      download: download and prepare what is missing.
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

    def __post_init__(self):
        if self.image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, found {self.image_size}.")
        if self.resize not in pipeline.RESIZES:
            ways = " or ".join(map(repr, pipeline.RESIZES))
            raise UserError(f"resize must be {ways}, found {self.resize!r}.")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 95:
            raise UserError(f"jpeg_quality must be 1 to 95 or None, found {self.jpeg_quality}.")


def open_task(task: Task, settings: DataSettings) -> "TaskData":
    """Finds the task's builder and checks that its data are there and are what the task says.

    A `FewShotTask` gives a `FewShotData`, which is read from a folder with lists if there is one; a
    `FolderTask` a `FolderData`. The `task` of either has the classes and sizes that were found.

    Raises:
      UserError: unknown builder or version, missing data, or features, class counts or split
        sizes that do not match the task.
    """
    if isinstance(task, FewShotTask):
        from fact_jax.data import fewshot_data  # here, because it imports this module

        return fewshot_data.open_few_shot(task, settings)
    from fact_jax.data import folders  # for the same reason

    if isinstance(task, folders.FolderTask):
        return folders.open_folder(task, settings)
    return TaskData(task, settings, *find_prepared(task, settings))


def find_prepared(task: Task, settings: DataSettings) -> tuple[prepare.Found, bool]:
    """The task's builder, prepared and checked, and whether its data are mocked."""
    if settings.skip_damaged:
        raise UserError(
            f"Task {task.name}: config.skip_damaged is True, but only pictures in folders and "
            "lists can be left out, and this task has neither. Set it to False, or sweep the task "
            "apart."
        )
    mocked = settings.mock or mock.mocked_by_caller()
    if task.offline and not mocked:
        builder = BundledBuilder(task.builder, data_root(settings.data_dir))
        return prepare.Found(builder, task.versions, ready=True), False
    with mock.mocking(settings.mock):
        found = prepare.find_builder(task, settings.data_dir)
    if not found.ready and not mocked:
        if not settings.download:
            raise UserError(_missing_message(task, found, settings))
        found = prepare.prepare(task, settings.data_dir)
    checks.check_features(task, found.builder)
    if not mocked:
        checks.check_sizes(task, found.builder)
    return found, mocked


class TaskData:
    """A task whose data can be read.

    Attributes:
      task: the task.
      provenance: JSON-able record of where the pixels and labels come from.
    """

    def __init__(self, task: Task, settings: DataSettings, found: prepare.Found, mocked: bool):
        self.task = task
        self._settings = settings
        self._builder = found.builder
        self._mocked = mocked
        self._place = str(found.builder.data_path)
        self._remedy = "Delete that directory and prepare the data again."
        self.provenance = {**checks.source_record(task, found, mocked), **self._pixels()}

    def _pixels(self) -> dict[str, Any]:
        """The part of the record that the settings decide."""
        return {
            "image_size": self._settings.image_size,
            "resize": pipeline.RESIZES[self._settings.resize],
            "jpeg_quality": self._settings.jpeg_quality,
        }

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes where the label is one stored class, None where it is a formula."""
        label = self.task.label
        if getattr(label, "func", label) is not labels.plain:
            return None
        (path,) = self.task.label_features
        names = getattr(self._builder.info.features[path], "names", None)
        return None if names is None else list(names)

    def size(self, split: str, limit: int | None = None) -> int:
        """Number of examples of a split, at most `limit` (an upper bound for mocked data)."""
        if limit is not None and limit < 1:
            raise UserError(f"limit must be at least 1 or None, found {limit}.")
        size = self._whole_size(split)
        if self._settings.mock and limit is None:
            limit = self._settings.mock_examples
        return size if limit is None else min(size, limit)

    def _whole_size(self, split: str) -> int:
        if split not in self.task.splits:
            known = ", ".join(self.task.splits)
            raise UserError(f"Task {self.task.name} has no split {split!r}; it has {known}.")
        size = self.task.sizes.get(split)
        if size is None:
            size = self._builder.info.splits[self.task.splits[split]].num_examples
        return size

    def load(self, split: str, limit: int | None = None) -> Examples:
        """The whole split in memory, in TFDS's order (the first `limit` examples of it)."""
        size, side = self.size(split, limit), self._settings.image_size
        pixels = np.empty((size, side, side, 3), np.uint8)
        labels = np.empty(size, np.int32)
        count = 0
        for batch in self.stream(split, 64, limit):
            stop = count + len(batch.labels)
            pixels[count:stop], labels[count:stop] = batch
            count = stop
        return Examples(pixels[:count], labels[:count])

    def stream(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Examples]:
        """Batches in TFDS's order, decoded ahead of their use; the last may be short."""
        if self._settings.cache_dir is None or self._mocked:
            return self._decoded(split, batch_size, limit)
        return self._from_cache(split, batch_size, limit)

    def _from_cache(self, split: str, batch_size: int, limit: int | None) -> Iterator[Examples]:
        size = self.size(split, limit)
        pixels, labels = cache.cached(
            self._settings.cache_dir or "",
            key=self._cache_key(split, size),
            size=size,
            side=self._settings.image_size,
            build=lambda: self._decoded(split, 64, limit),
        )
        for start in range(0, size, batch_size):
            rows = slice(start, start + batch_size)
            yield Examples(np.array(pixels[rows]), labels[rows])

    def _decoded(self, split: str, batch_size: int, limit: int | None) -> Iterator[Examples]:
        rows = pipeline.map_ahead(
            self._decode,
            enumerate(self._unread(split, limit)),
            ahead=2 * batch_size,
            num_threads=self._settings.num_threads,
        )
        batch = []
        for row in rows:
            batch.append(row)
            if len(batch) == batch_size:
                yield _stack(batch)
                batch = []
        if batch:
            yield _stack(batch)

    def _unread(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        """As `_records`; the path of an image may stand in the place of its bytes."""
        return self._records(split, limit)

    def _records(self, split: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
        """Examples of a split as stored: the image as encoded bytes, and the label's features."""
        return self._read(self.task.splits[split], self.size(split, limit))

    def _read(
        self, instruction: str, size: int, with_images: bool = True
    ) -> Iterator[Mapping[str, Any]]:
        """The first `size` examples of TFDS's split string."""
        if isinstance(self._builder, BundledBuilder):
            yield from itertools.islice(self._builder.read(instruction), size)
            return
        import tensorflow as tf
        import tensorflow_datasets as tfds

        wanted: dict[str, Any] = {self.task.image_key: True} if with_images else {}
        for path in self.task.label_features:
            head, *rest = path.split("/")
            if rest:
                wanted.setdefault(head, {})[rest[0]] = True
            else:
                wanted[head] = True
        # Mocked examples come decoded: with decoders, mock_data fails on sequences of features.
        skipped = with_images and not self._mocked
        skip = {self.task.image_key: tfds.decode.SkipDecoding()} if skipped else None
        with mock.mocking(self._settings.mock, num_examples=size):
            dataset = self._builder.as_dataset(
                split=instruction,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(wanted, decoders=skip),
                # One file after the other: the order does not depend on the number of shards.
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            )
        try:
            for example in dataset.take(size).as_numpy_iterator():
                yield mock.as_stored(example, self.task.image_key) if self._mocked else example
        except tf.errors.OpError as error:
            raise UserError(
                f"Task {self.task.name}: the records in {self._place} cannot be read "
                f"({str(error).splitlines()[0]}). Delete that directory and prepare them again."
            ) from error

    def _decode(self, numbered: tuple[int, Mapping[str, Any]]) -> tuple[np.ndarray, int]:
        index, example = numbered
        task, settings = self.task, self._settings
        with self._sound(index, example):
            image = pipeline.decode(
                example[task.image_key],
                settings.image_size,
                settings.jpeg_quality,
                task.binary,
                settings.resize,
            )
        return image, self._label(index, example)

    @contextlib.contextmanager
    def _sound(self, index: int, example: Mapping[str, Any]) -> Iterator[None]:
        """Raises `UserError`, which names the picture, in the place of a picture's error."""
        try:
            yield
        except OSError as error:
            what = "decoded" if isinstance(error, decoder.PictureError) else "read"
            name = printable_line(str(example.get("path", index)))
            raise UserError(
                f"Task {self.task.name}: image {name} in {self._place} cannot be {what} "
                f"({printable_line(str(error))}). {self._remedy}"
            ) from error

    def _label(self, index: int, example: Mapping[str, Any]) -> int:
        task = self.task
        label = task.label(example)
        if self._mocked:  # random features give labels out of range where a formula is applied
            label %= task.num_classes
        if not 0 <= label < task.num_classes:
            raise UserError(
                f"Task {task.name}: example {index} of {self._place} has label "
                f"{label}, outside the task's {task.num_classes} classes (0 to "
                f"{task.num_classes - 1}): the class count of the task and of the data differ."
            )
        return label

    def _cache_key(self, split: str, size: int) -> dict[str, Any]:
        """All that a decoded split depends on, notes and paths left out."""
        key = {name: self.provenance[name] for name in CACHE_KEY}
        instruction = self.provenance["splits"][split]
        return {**key, "split": split, "instruction": instruction, "size": size, "format": 1}


def _stack(rows: list[tuple[np.ndarray, int]]) -> Examples:
    pixels, labels = zip(*rows, strict=True)
    return Examples(np.stack(pixels), np.asarray(labels, np.int32))


def _missing_message(task: Task, found: prepare.Found, settings: DataSettings) -> str:
    root = settings.data_dir or found.builder.data_dir_root
    return (
        f"Task {task.name}: {found.builder.info.full_name} is not prepared in {root}. Run: "
        f"{command('data', '--prepare', f'--tasks={task.name}', f'--data_dir={root}')}"
        f"{prepare.by_hand(task, found.builder)}"
    )
