"""A task's examples from the records of TFDS, or from the package for the offline suite."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int

from fact_jax.command_line import command
from fact_jax.data.labels import Example, plain
from fact_jax.data.offline.bundled import BundledBuilder
from fact_jax.data.settings import DataSettings
from fact_jax.data.sources import HELD_OUT_SEED, Identity, Provenance, Record, mock, prepare
from fact_jax.data.tasks import Task
from fact_jax.errors import UserError


def open_tfds(task: Task, settings: DataSettings) -> "TfdsSource":
    """The task's records, which are prepared first if the settings say so.

    Raises:
      UserError: unknown builder or version, missing data, or features, class counts or split
        sizes that do not match the task.
    """
    mocked = settings.mock or mock.mocked_by_caller()
    if task.offline and not mocked:
        match = find_bundled(task, settings)
    else:
        with mock.mocking(settings.mock):
            match = prepare.find_builder(task, settings.data_dir)
        if not match.ready and not mocked:
            if not settings.download:
                raise UserError(_missing_message(task, match, settings))
            match = prepare.prepare(task, settings.data_dir)
    check_features(task, match.builder)
    if not mocked:
        check_sizes(task, match.builder)
    return TfdsSource(task, match, mocked, mock_data=settings.mock)


def find_bundled(task: Task, settings: DataSettings) -> prepare.Match:
    """The reader of a task that comes with the package."""
    return prepare.Match(BundledBuilder(task.builder, settings.root), task.versions, ready=True)


class TfdsSource:
    """The splits of a builder, in TFDS's order; a `Source`.

    Attributes:
      builder: the `tfds.core.DatasetBuilder` or `BundledBuilder`.
    """

    remedy = "Delete that directory and prepare the data again."
    stored_jpeg: int | None = None
    skips_damaged = False

    def __init__(self, task: Task, match: prepare.Match, mocked: bool, mock_data: bool = False):
        self.builder, self.mocked = match.builder, mocked
        self._task, self._mock_data = task, mock_data
        self.splits, self.class_names = list(task.splits), _class_names(task, match.builder)
        self.place = str(match.builder.data_path)
        held_out = task.few_shot.held_out if task.few_shot else 0
        self.pool = f"{self.place}, with {held_out} a class kept for val,"
        self.provenance = _provenance(task, match, mocked)

    def size(self, split: str) -> int:
        task = self._task
        if split not in task.splits:
            raise UserError(
                f"Task {task.name} has no split {split!r}; it has {', '.join(task.splits)}."
            )
        if (size := task.sizes.get(split)) is not None:
            return size
        return int(self.builder.info.splits[task.splits[split]].num_examples)

    def records(self, split: str, size: int) -> Iterator[Record]:
        for index, example in enumerate(self._examples(split, size)):
            yield Record(example[self._task.image_key], self._label(index, example))

    def labels(self, split: str) -> Int[np.ndarray, " n"]:
        examples = self._examples(split, self.size(split), with_images=False)
        return np.array([self._label(i, example) for i, example in enumerate(examples)])

    def identity(self, split: str) -> Identity:
        return {"instruction": self._task.splits[split], "format": 1}

    def describe_draw(self, shots: int) -> str:
        splits, few = self._task.splits, self._task.few_shot
        val = (
            f"{few.held_out} images a class of {splits['train']} (default_rng"
            f"({HELD_OUT_SEED}), before the lists were drawn)"
            if few and few.held_out
            else splits["val"]
        )
        return (
            f"{shots} images a class drawn from {splits['train']} of TFDS's "
            f"{self.builder.info.full_name} with numpy's default_rng(seed); val: {val}; "
            f"test: {splits['test']}" + ("; mocked: nothing was drawn" if self.mocked else "")
        )

    def damaged(self, num_threads: int | None) -> dict[str, str]:
        return {}  # TFDS decoded or checked them when it prepared them

    def _examples(self, split: str, size: int, with_images: bool = True) -> Iterator[Example]:
        """Examples as stored: the image as encoded bytes, and the label's features."""
        instruction, task = self._task.splits[split], self._task
        if isinstance(self.builder, BundledBuilder):
            yield from itertools.islice(self.builder.read(instruction), size)
            return
        import tensorflow as tf
        import tensorflow_datasets as tfds

        wanted: dict[str, Any] = {task.image_key: True} if with_images else {}
        for path in task.label_features:
            head, *rest = path.split("/")
            if rest:
                wanted.setdefault(head, {})[rest[0]] = True
            else:
                wanted[head] = True
        # Mocked examples come decoded: with decoders, mock_data fails on sequences of features.
        skipped = with_images and not self.mocked
        skip = {task.image_key: tfds.decode.SkipDecoding()} if skipped else None
        with mock.mocking(self._mock_data, num_examples=size):
            dataset = self.builder.as_dataset(
                split=instruction,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding(wanted, decoders=skip),
                # One file after the other: the order does not depend on the number of shards.
                read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
            )
        try:
            for example in dataset.take(size).as_numpy_iterator():
                yield mock.as_stored(example, task.image_key) if self.mocked else example
        except tf.errors.OpError as error:
            raise UserError(
                f"Task {task.name}: the records in {self.place} cannot be read "
                f"({str(error).splitlines()[0]}). Delete that directory and prepare them again."
            ) from error

    def _label(self, index: int, example: Example) -> int:
        task = self._task
        label = task.label(example)
        if self.mocked:  # random features give labels out of range where a formula is applied
            label %= task.num_classes
        if not 0 <= label < task.num_classes:
            raise UserError(
                f"Task {task.name}: example {index} of {self.place} has label "
                f"{label}, outside the task's {task.num_classes} classes (0 to "
                f"{task.num_classes - 1}): the class count of the task and of the data differ."
            )
        return label


def check_features(task: Task, builder: prepare.Builder) -> None:
    """UserError if a feature that the task reads is missing or has another class count."""
    for path in (task.image_key, *task.label_features):
        feature = builder.info.features
        for name in path.split("/"):
            feature = getattr(feature, "feature", feature)  # a Sequence's elements
            if name not in feature:
                raise UserError(
                    f"Task {task.name} reads feature {path!r}, which {builder.info.full_name} "
                    f"does not have (it has {', '.join(builder.info.features)})."
                )
            feature = feature[name]
        expected = task.label_features.get(path)
        if expected is not None and feature.num_classes != expected:
            raise UserError(
                f"Task {task.name}: class count does not match: {builder.info.full_name} declares "
                f"{feature.num_classes} classes for {path!r}, the task expects {expected}. Use "
                f"the version {task.versions} of the data set, or correct the task."
            )


def check_sizes(task: Task, builder: prepare.Builder) -> None:
    """UserError if a split of the prepared data has another size than the task's."""
    for split, expected in task.sizes.items():
        if split not in task.splits:
            continue
        try:
            size = builder.info.splits[task.splits[split]].num_examples
        except (ValueError, KeyError, AssertionError) as error:
            raise UserError(
                f"Task {task.name}: split {split} ({task.splits[split]}) cannot be taken from "
                f"{builder.data_path}, which has {', '.join(builder.info.splits)} ({error}). "
                f"Delete that directory and prepare the data again."
            ) from error
        if size != expected:
            raise UserError(
                f"Task {task.name}: split {split} ({task.splits[split]}) of {builder.data_path} "
                f"has {size} examples, expected {expected}. The data were prepared from an "
                f"incomplete or different source; delete that directory and prepare them again."
            )


def _class_names(task: Task, builder: prepare.Builder) -> list[str] | None:
    """Names of the classes where the label is one stored class, None where it is a formula."""
    if getattr(task.label, "func", task.label) is not plain:
        return None
    (path,) = task.label_features
    names = getattr(builder.info.features[path], "names", None)
    return None if names is None else list(names)


def _provenance(task: Task, match: prepare.Match, mocked: bool) -> Provenance:
    """The record of the source, with the fingerprint of TFDS's own record of the files."""
    fingerprint = version = None
    if bundled := isinstance(match.builder, BundledBuilder):
        fingerprint = match.builder.fingerprint
    else:
        import tensorflow_datasets as tfds

        version = tfds.__version__
        if not mocked:
            record = (match.builder.data_path / "dataset_info.json").read_bytes()
            fingerprint = hashlib.sha256(record).hexdigest()[:16]
    return {
        "task": task.name,
        "builder": task.builder,
        "requested_version": task.versions,
        "used_version": match.version,
        "mapped": match.request != task.versions,
        "note": task.note,
        "file_format": str(getattr(match.builder.info.file_format, "value", None)),
        "splits": dict(task.splits),
        "mock": mocked,
        "data_dir": None if mocked or bundled else str(match.builder.data_path),
        "fingerprint": fingerprint,
        "tfds": version,
        "pillow": PIL.__version__,
    }


def _missing_message(task: Task, match: prepare.Match, settings: DataSettings) -> str:
    root = settings.data_dir or match.builder.data_dir_root
    return (
        f"Task {task.name}: {match.builder.info.full_name} is not prepared in {root}. Run: "
        f"{command('data', '--prepare', f'--tasks={task.name}', f'--data_dir={root}')}"
        f"{prepare.by_hand(task, match.builder)}"
    )
