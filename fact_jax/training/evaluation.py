"""Accuracy of a trained trial on a stream of images, at the frozen network's cost."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fact_jax.backbone.merging import absorb
from fact_jax.backbone.vit import ViT, features
from fact_jax.images.normalise import normalise
from fact_jax.training.mesh import batch_sharded, fetch, put, replicated
from fact_jax.training.trial import adaptation_of, logits_of
from fact_jax.tuning.method import Method


def make_programs(
    model: ViT, method: Method, normalisation: str
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
    """The two jitted programs of an evaluation.

    ``merged(base, factors, scale, choice)`` gives `base` with the changes that merge, and the other
    changes; ``predict(merged, head, num_classes, images)`` gives the classes [b] of images uint8
    [b, y, x, 3].
    """

    @jax.jit
    def merged(base, factors, scale, choice=None):
        return absorb(base, adaptation_of(method, factors, model.config, scale, choice))

    @jax.jit
    def predict(merged, head, num_classes, images):
        weights, rest = merged
        x = features(model, weights, normalise(images, normalisation), rest)
        return jnp.argmax(logits_of(head, x, num_classes), axis=-1)

    return merged, predict


def make_evaluate(
    model: ViT, method: Method, normalisation: str, batch_size: int, mesh: Mesh
) -> Callable[..., tuple[int, int]]:
    """``evaluate(base, trainable, scale, num_classes, batches, choice, see) -> (correct, total)``.

    `batches` yields (images uint8 [<= batch_size, y, x, 3], labels [<= batch_size]), and
    ``see(images, labels, predicted)`` is called with each. Each call merges into the weights what
    can be merged, once and in float32. Batches are padded to `batch_size`, so that one program
    serves every split; the next batch is dispatched before the last is awaited.
    """

    merged, predict = make_programs(model, method, normalisation)

    def evaluate(
        base: dict,
        trainable: dict,
        scale: float,
        num_classes: int,
        batches: Iterable[Any],
        choice: Any = None,
        see: Callable[..., None] = lambda images, labels, predicted: None,
    ) -> tuple[int, int]:
        factors, head = put((trainable["factors"], trainable["head"]), replicated(mesh))
        weights = merged(base, factors, scale, choice)
        correct = total = 0
        pending: tuple[jax.Array, np.ndarray, np.ndarray] | None = None

        def settle() -> int:
            if pending is None:
                return 0
            on_device, images, labels = pending
            predicted = fetch(on_device)[: len(labels)]
            see(images, labels, predicted)
            return int((predicted == labels).sum())

        for images, labels in batches:
            pad = batch_size - len(images)
            padded = np.pad(images, ((0, pad), (0, 0), (0, 0), (0, 0)))
            padded = put(padded, batch_sharded(mesh))
            predicted = predict(weights, head, np.int32(num_classes), padded)
            correct += settle()
            pending = (predicted, images, np.asarray(labels))
            total += len(labels)
        return correct + settle(), total

    return evaluate
