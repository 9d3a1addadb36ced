"""Many tasks on one ViT: every image of a batch has its task's factors and head.

A *kind* is a method with its settings, but for the scale, and a dictionary if tasks share one. The
tasks of a kind have factors of the same shapes, which lie stacked on the device and go through one
program. It takes each image's factors and never forms a merged weight. A dictionary lies there
once. Heads are stacked apart from that, by their width.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fact_jax.backbone.checks import check_images
from fact_jax.backbone.vit import ViT
from fact_jax.errors import UserError
from fact_jax.files.factors import TrainedTask
from fact_jax.files.weights import checksum
from fact_jax.ranges import OneOf, Whole, check
from fact_jax.serving.incoming import BankTask, Source, prepare
from fact_jax.serving.mixed import mixed_features, mixed_logits
from fact_jax.serving.stack import DTYPES
from fact_jax.serving.store import Batch, StoredBytes, TaskStore, padded_rows
from fact_jax.training.mesh import batch_sharded, fetch, make_mesh, put, replicated
from fact_jax.training.metrics import probabilities
from fact_jax.tuning.method import Base

_READ_AT_ONCE = 256  # tasks of `add_all` in host memory


class Prediction(NamedTuple):
    """The most probable classes of an image.

    Attributes:
      task: the name of the task.
      classes: names of the classes, the most probable first.
      probabilities: of these classes.
    """

    task: str
    classes: tuple[str, ...]
    probabilities: Float[np.ndarray, " k"]


class _Answer(NamedTuple):
    """The logits of an image by each member of its task."""

    task: BankTask
    members: list[np.ndarray]


class Bank:
    """One ViT and the factors and heads of many tasks; a batch may mix them in any way.

    Thread-safe. A batch sees a task wholly before or wholly after `add` replaces it. A request of
    more than `batch_size` rows is cut into batches; an image has a row for each member of its task.

    Args:
      model: the network, as `load_vit` gives it.
      base: its parameters.
      capacity: tasks of a kind, and heads of a width, for which there is room at first. The room
        doubles when it is full. For each size of it `add` compiles small programs once, in which no
        network is: they write 1, 8 or 64 tasks.
      batch_size: most rows of a batch, which is split over as many of the machine's devices as
        divide it.
      dtype: how factors and heads are stored on the device: 'float32', 'bfloat16' or 'int8'. They
        are read as float32, and the ViT computes in its own dtype.
      any_weights: whether tasks may have been trained on other weights of the same shape.

    Raises:
      UserError: a setting is out of its range.
    """

    def __init__(
        self,
        model: ViT,
        base: Base,
        *,
        capacity: int = 16,
        batch_size: int = 64,
        dtype: str = "float32",
        any_weights: bool = False,
    ):
        check("capacity", capacity, Whole(1))
        check("batch_size", batch_size, Whole(1))
        check("dtype", dtype, OneOf(DTYPES))
        self.model, self.batch_size, self.dtype = model, batch_size, dtype
        self._any_weights, self._mesh = any_weights, make_mesh(batch_size)
        self._base: Base = put(base, replicated(self._mesh))
        self._store = TaskStore(capacity, batch_size, self._mesh, dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tasks."""
        return self._store.names

    @property
    def nbytes(self) -> StoredBytes:
        """Bytes of factors and heads on one device, free places included."""
        return self._store.nbytes

    def task(self, name: str) -> BankTask:
        """The classes of a task, and the metadata of its factor file.

        Raises:
          UnknownTask: the bank has no task of this name.
        """
        return self._store.task(name)

    def add(self, name: str, task: Source | Sequence[Source]) -> None:
        """Adds a task, or replaces the one of this name.

        Args:
          name: by which images ask for it.
          task: a factor file, or what `load_factors` made of it. Several are an ensemble, such as
            seeds or methods of one task: their probabilities are averaged.

        Raises:
          UserError: a file cannot be read, was trained on another ViT, or by full fine-tuning; or
            the members of an ensemble differ in classes or preprocessing.
        """
        self.add_all({name: task})

    def add_all(self, tasks: Mapping[str, Source | Sequence[Source]]) -> None:
        """Adds many tasks by their names, or replaces those of these names.

        Raises:
          UserError: as `add` does, for the first task that is refused. Tasks before it may have
            been added.
        """
        items = list(tasks.items())
        for start in range(0, len(items), _READ_AT_ONCE):
            self._store.add(
                [
                    prepare(name, task, self.model.config, self._compared)
                    for name, task in items[start : start + _READ_AT_ONCE]
                ]
            )

    def remove(self, name: str) -> None:
        """Removes a task; batches under way still have it.

        Raises:
          UnknownTask: the bank has no task of this name.
        """
        self._store.remove(name)

    def logits(
        self, images: Float[np.ndarray, "n y x 3"], names: str | Sequence[str]
    ) -> list[Float[np.ndarray, " c"]]:
        """Computes the logits of each image for its task.

        Args:
          images: float32 and normalised, all of one size.
          names: the task of each image, in any order, or one for all.

        Returns:
          An array for each image, float32 [c], as its task has c classes. An ensemble's are the
          logarithms of its mean probabilities, or their log-odds if the task is multi-label.

        Raises:
          UnknownTask: the bank has no task of a name.
          UserError: the images are no such array, or not as many as the names.
        """
        return [_mean(answer) for answer in self._answers(images, names)]

    def predict(
        self, images: Float[np.ndarray, "n y x 3"], names: str | Sequence[str], topk: int = 5
    ) -> list[Prediction]:
        """Predicts the most probable classes of each image, by their names.

        Args:
          images: float32 and normalised, all of one size.
          names: the task of each image, in any order, or one for all.
          topk: most classes of an image; a task may have fewer.

        Raises:
          UserError: as `logits` does.
        """
        check("topk", topk, Whole(1))
        predictions = []
        answers = self._answers(images, names)
        for name, answer in zip(_one_for_each(names, images), answers, strict=True):
            p = probabilities(_mean(answer)[None], answer.task.multi_label)[0]
            order = np.argsort(-p, kind="stable")[:topk]
            classes = tuple(answer.task.classes[i] for i in order)
            predictions.append(Prediction(name, classes, p[order]))
        return predictions

    def warm_up(self, image_size: int | None = None) -> None:
        """Compiles the programs of all present tasks, so that no request waits for them.

        There is a program for each kind and each number of rows, which are the powers of two up to
        `batch_size`. Each takes some seconds to compile for a large ViT.

        Args:
          image_size: side of the images in pixels; None: the model's.
        """
        side = image_size or self.model.config.image_size
        chosen = self._store.one_of_each()
        rows = {
            padded_rows(n, self.batch_size, self._mesh.size) for n in range(1, self.batch_size + 1)
        }
        for name in chosen:
            for count in sorted(rows):
                self.logits(np.zeros((count, side, side, 3), np.float32), name)

    def _answers(self, images: np.ndarray, names: str | Sequence[str]) -> list[_Answer]:
        """The answers for each image; a batch is dispatched before the last one is awaited."""
        images = np.asarray(images)
        check_images(self.model.config, images)
        names = _one_for_each(names, images)
        answers: dict[int, _Answer] = {}
        pending: list[tuple[Batch, list[jax.Array]]] = []
        for numbers in self._store.parts(names):
            begun = [(b, self._run(b, images)) for b in self._store.gather(numbers, names)]
            _collect(pending, answers)
            pending = begun
        _collect(pending, answers)
        return [answers[i] for i in range(len(names))]

    def _run(self, batch: Batch, images: np.ndarray) -> list[jax.Array]:
        """Begins to compute the logits [b, c] by each stack of heads."""
        rows = put(images[batch.images].astype(np.float32), batch_sharded(self._mesh))
        config, method = self.model.config, batch.kind.method
        x = mixed_features(config, method, self._base, rows, batch.factors, batch.shared)
        return [mixed_logits(heads, x) for _, heads in batch.heads]

    @functools.cached_property
    def _checksum(self) -> str:
        return checksum(self._base)

    def _compared(self, task: TrainedTask) -> str | None:
        """The base's checksum if the task's is to be the same."""
        wanted = task.metadata.get("weights_sha256")
        return self._checksum if wanted and not self._any_weights else None


def _one_for_each(names: str | Sequence[str], images: np.ndarray) -> list[str]:
    names = [names] * len(images) if isinstance(names, str) else list(names)
    if len(names) != len(images):
        raise UserError(f"{len(names)} names for {len(images)} images; expected one for each.")
    return names


def _collect(pending: list[tuple[Batch, list[jax.Array]]], answers: dict[int, _Answer]) -> None:
    """Awaits logits, and gives each row's to its image."""
    for batch, outputs in pending:
        for (stack, _), logits in zip(batch.heads, fetch(outputs), strict=True):
            for row, values in zip(batch.rows, logits, strict=False):
                if row.member.heads is stack:
                    answer = answers.setdefault(row.image, _Answer(row.task, []))
                    answer.members.append(values[: len(row.task.classes)])


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    logarithms: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return logarithms


def _mean(answer: _Answer) -> np.ndarray:
    """Logits of one member, or those of the mean probabilities of several."""
    members = answer.members
    if len(members) == 1:
        return np.array(members[0])
    if answer.task.multi_label:
        logits = np.stack(members).astype(np.float64)
        # Logarithms of the probabilities, which are 0 or 1 as float32 where a member is sure.
        yes, no = (np.logaddexp.reduce(-np.logaddexp(0, -x), axis=0) for x in (logits, -logits))
        odds: np.ndarray = (yes - no).astype(np.float32)
        return odds
    several = np.stack([_log_softmax(logits) for logits in members])
    largest = several.max(axis=0)
    mean: np.ndarray = np.log(np.exp(several - largest[None]).mean(axis=0)) + largest
    return mean
