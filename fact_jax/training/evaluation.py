"""Predictions of a trained trial at the frozen network's cost, and their accuracy."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.merging import absorb
from fact_jax.backbone.vit import ViT, features
from fact_jax.images.normalise import normalise
from fact_jax.training.mesh import batch_sharded, fetch, put
from fact_jax.training.trial import Head, Trainable, adaptation_of, logits_of
from fact_jax.tuning.method import Base, Factors, Method, Scale


class Merged(NamedTuple):
    """A trained ViT for predictions: the weights with all changes that merge, the others, the head.

    Changes are merged once and in float32, whatever the network computes in.
    """

    weights: Base
    rest: Adaptation
    head: Head

    @classmethod
    def of(
        cls,
        method: Method,
        config: ViTConfig,
        base: Base,
        trainable: Trainable,
        scale: Scale | np.floating[Any] = None,
        *,
        choice: Any = None,
    ) -> "Merged":
        """The trained ViT of factors and a head; they and the base lie on the same devices."""
        weights, rest = merged(method, config, base, trainable["factors"], scale, choice=choice)
        return cls(weights, rest, trainable["head"])


# Module-level functions, so that trials of one method and model share their programs.
@functools.partial(jax.jit, static_argnames=("method", "config"))
def merged(
    method: Method,
    config: ViTConfig,
    base: Base,
    factors: Factors,
    scale: Scale = None,
    *,
    choice: Any = None,
) -> tuple[Base, Adaptation]:
    """The base with the changes that merge, and the other changes."""
    return absorb(base, adaptation_of(method, factors, config, scale, choice))


@functools.partial(jax.jit, static_argnames="config")
def logits(config: ViTConfig, trained: Merged, images: jax.Array) -> jax.Array:
    """float32 logits [b, c] of normalised images [b, y, x, 3]."""
    x = features(ViT(config), trained.weights, images, trained.rest)
    return logits_of(trained.head, x)


@functools.partial(jax.jit, static_argnames=("config", "normalisation"))
def predict(
    config: ViTConfig,
    normalisation: str,
    trained: Merged,
    num_classes: int | np.int32,
    images: jax.Array,
) -> jax.Array:
    """float32 logits [b, c] of images uint8 [b, y, x, 3]; classes past num_classes are masked."""
    x = features(ViT(config), trained.weights, normalise(images, normalisation), trained.rest)
    return logits_of(trained.head, x, num_classes)


def one_ahead(
    program: Callable[[jax.Array], jax.Array],
    batches: Iterable[np.ndarray],
    mesh: Mesh,
    rows: int = 0,
) -> Iterator[np.ndarray]:
    """Yields ``program(images)`` of each batch; each is dispatched before the last is awaited.

    A batch is padded to `rows`, or to the largest so far if that is more, so that one program
    serves equal batches and a shorter last one. It is split over the mesh's axis `data`.
    """
    pending: tuple[jax.Array, int] | None = None
    for images in batches:
        rows = max(rows, -(-len(images) // mesh.size) * mesh.size)
        padded = np.pad(images, ((0, rows - len(images)), (0, 0), (0, 0), (0, 0)))
        outputs = program(put(padded, batch_sharded(mesh)))
        if pending is not None:
            yield fetch(pending[0])[: pending[1]]
        pending = outputs, len(images)
    if pending is not None:
        yield fetch(pending[0])[: pending[1]]


class Scored(NamedTuple):
    """A batch: images uint8 [b, y, x, 3], labels [b] or [b, c], logits float32 [b, c]."""

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Predicts the images of a split. All batches are padded to `batch_size`, for one program."""

    config: ViTConfig
    normalisation: str
    batch_size: int
    mesh: Mesh

    def predictions(
        self, trained: Merged, num_classes: int, batches: Iterable[Any]
    ) -> Iterator[Scored]:
        """Yields each batch with its logits of the task's classes.

        `batches` yields (images uint8 [<= batch_size, y, x, 3], labels [<= batch_size, ...]).
        """
        program = functools.partial(
            predict, self.config, self.normalisation, trained, np.int32(num_classes)
        )
        labelled, copies = itertools.tee(batches)
        images_only = (images for images, _ in copies)
        logits = one_ahead(program, images_only, self.mesh, self.batch_size)
        for (images, labels), of_batch in zip(labelled, logits, strict=True):
            yield Scored(images, labels, of_batch[:, :num_classes])

    def count(self, trained: Merged, num_classes: int, batches: Iterable[Any]) -> tuple[int, int]:
        """Numbers of right predictions and of images, which have one class each."""
        correct = total = 0
        for _, labels, logits in self.predictions(trained, num_classes, batches):
            correct += int((np.argmax(logits, axis=-1) == labels).sum())
            total += len(labels)
        return correct, total
