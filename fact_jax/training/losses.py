"""Losses of a batch with weights of classes, or with several labels an image.

Letters: `b` images, `c` classes (padded). Logits of padding are large negative numbers.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from fact_jax.training.trial import Integer

Weights = Float[Array | np.ndarray, " c"]
Targets = Int[Array, " b"] | Float[Array, "b c"]


def weighted_mean(
    losses: Float[Array, " b"], targets: Targets, valid: Bool[Array, " b"], weights: Weights
) -> Float[Array, ""]:
    """The mean of the valid losses, each weighted as its class, as PyTorch's CrossEntropyLoss does.

    A mixture of classes has the mixture of their weights.
    """
    each = weights[targets] if targets.ndim == 1 else targets @ weights
    each = jnp.where(valid, each, 0)
    return (each * losses).sum() / jnp.maximum(each.sum(), 1e-30)


def multi_label_loss(
    logits: Float[Array, "b c"],
    labels: Int[Array, "b c"] | Float[Array, "b c"],
    valid: Bool[Array, " b"],
    num_classes: Integer,
    weights: Weights | None = None,
) -> Float[Array, ""]:
    """Binary cross-entropy, the mean over the valid images and the task's labels.

    Args:
      logits: of which those of padding add nothing.
      labels: 1 for the labels of an image, or shares between 0 and 1.
      valid: rows that are images.
      num_classes: number of labels.
      weights: of each label where it is present, PyTorch's `pos_weight`; None: 1.
    """
    shares = labels.astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(logits, shares)
    if weights is not None:
        present = optax.sigmoid_binary_cross_entropy(logits, jnp.ones_like(shares)) * shares
        losses = losses + (weights - 1)[None] * present
    count = valid.sum().astype(jnp.float32) * jnp.asarray(num_classes, jnp.float32)
    return jnp.where(valid[:, None], losses, 0).sum() / count


def balanced_weights(
    labels: np.ndarray, num_classes: int, padded_classes: int
) -> Float[np.ndarray, " padded"]:
    """Weights that make classes count alike, from the labels [n] or [n, c] of the train split.

    A class of n_c images of n has n / (classes * n_c), as scikit-learn's 'balanced'. A label of a
    multi-label task has (n - n_c) / n_c. Classes without an image, labels that all images have, and
    padding have 1.
    """
    if labels.ndim == 2:
        counts = labels.sum(axis=0)
        weights = (len(labels) - counts) / np.maximum(counts, 1)
        weights = np.where(weights > 0, weights, 1)
    else:
        counts = np.bincount(labels, minlength=num_classes)
        weights = len(labels) / (num_classes * np.maximum(counts, 1))
    weights = np.where(counts > 0, weights, 1).astype(np.float32)
    return np.pad(weights, (0, padded_classes - num_classes), constant_values=1)
