"""Losses with weights of classes and with several labels, against PyTorch's formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fact_jax import Linear, features, normalise
from fact_jax.training.losses import balanced_weights, multi_label_loss, weighted_mean
from fact_jax.training.mesh import make_mesh
from fact_jax.training.step import Batch, TrainStep
from fact_jax.training.trial import Hyper, Trial, logits_of, train_set

LOGITS = jax.random.normal(jax.random.key(0), (6, 4))
VALID = jnp.array([True] * 5 + [False])
WEIGHTS = jnp.array([1.0, 2.0, 0.5, 3.0])


def test_weighted_mean_divides_by_the_weights_of_the_valid_rows():
    labels = jnp.array([0, 1, 2, 3, 1, 0])
    losses = optax.softmax_cross_entropy_with_integer_labels(LOGITS, labels)
    each = WEIGHTS[labels[:5]]
    expected = (each * losses[:5]).sum() / each.sum()
    np.testing.assert_allclose(weighted_mean(losses, labels, VALID, WEIGHTS), expected, rtol=1e-6)
    mixed = jax.nn.one_hot(labels, 4)
    np.testing.assert_allclose(weighted_mean(losses, mixed, VALID, WEIGHTS), expected, rtol=1e-6)


def test_multi_label_loss_is_the_mean_of_real_labels_and_images():
    labels = jax.random.bernoulli(jax.random.key(1), 0.4, (6, 4)).astype(jnp.int32)
    p = jax.nn.sigmoid(LOGITS)
    y = labels.astype(jnp.float32)
    each = -(WEIGHTS[None] * y * jnp.log(p) + (1 - y) * jnp.log(1 - p))
    loss = multi_label_loss(LOGITS, labels, VALID, 4, WEIGHTS)
    np.testing.assert_allclose(loss, each[:5].mean(), rtol=1e-5)
    # Padding of two classes adds nothing.
    wide = jnp.pad(LOGITS, ((0, 0), (0, 2)), constant_values=-1e30)
    padded = jnp.pad(labels, ((0, 0), (0, 2)))
    weights = jnp.pad(WEIGHTS, (0, 2), constant_values=1)
    np.testing.assert_allclose(multi_label_loss(wide, padded, VALID, 4, weights), loss, rtol=1e-6)
    gradient = jax.grad(multi_label_loss)(wide, padded, VALID, 4)
    assert np.isfinite(gradient).all()
    assert not gradient[:, 4:].any()
    assert not gradient[5].any()


def test_balanced_weights_make_classes_count_alike():
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    weights = balanced_weights(labels, 4, 6)
    assert weights[[0, 1, 3]] * [6, 3, 1] == pytest.approx([2.5] * 3)  # n / classes each
    assert weights[[2, 4, 5]].tolist() == [1, 1, 1]
    several = np.array([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    # All have the first label, none the second.
    assert balanced_weights(several, 3, 4).tolist() == [1, 1, 3, 1]


def trial_of(labels, weights, num_classes=3):
    images = np.random.default_rng(0).integers(0, 255, (len(labels), 16, 16, 3)).astype(np.uint8)
    data = train_set(images, labels, num_classes, padded_classes=5)
    return Trial(data, Hyper(0.1, dropout_rate=None, drop_path_rate=None), 0, None, weights)


@pytest.mark.parametrize("weights", [None, np.array([1, 2, 0.5, 1, 1], np.float32)])
@pytest.mark.parametrize("several", [False, True])
def test_the_step_trains_by_these_losses(small_vit, weights, several):
    model, base = small_vit
    mesh = make_mesh(4, jax.devices()[:1])
    step = TrainStep(model, Linear(), "none", 4, mesh, multi_label=several)
    labels = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]]) if several else np.arange(4) % 3
    trial = trial_of(labels.astype(np.int32), weights)
    trainable = step.init(0, 3, 5).trainable
    batch = Batch(normalise(trial.data.images, "none"), trial.data.labels, jnp.full(4, True))
    loss = step.loss(trainable, base, batch, trial, jax.random.key(0))
    logits = logits_of(trainable["head"], features(model, base, batch.images), 3)
    if several:
        expected = multi_label_loss(logits, batch.targets, batch.valid, 3, weights)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        each = jnp.ones(5) if weights is None else jnp.asarray(weights)
        expected = weighted_mean(losses, batch.targets, batch.valid, each)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
