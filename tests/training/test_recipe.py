"""Recipes: the optimisers' steps, what decays, what reaches the loss; splits below a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fact_jax import FacTTT, features
from fact_jax.algebra.quantise import Bits, rounded
from fact_jax.errors import UserError
from fact_jax.images.normalise import normalise
from fact_jax.training.mesh import make_mesh
from fact_jax.training.mixing import erase, mix, soft_targets
from fact_jax.training.recipe import Recipe
from fact_jax.training.step import TrainStep, epoch_key
from fact_jax.training.trial import Hyper, Trial, TrialState, logits_of, train_set
from fact_jax.tuning import SSF, Adapter, BitFit, CaRA, DoRA

RATE, DECAY = 0.1, 0.3


def tree(seed):
    rng = np.random.default_rng(seed)
    shapes = {
        "factors": {"U": (4, 2), "fc1_bias": (3,), "norm1_scale": (3,), "norm1_shift": (3,)},
        "head": {"kernel": (2, 3), "bias": (3,)},
    }
    return {
        group: {name: rng.normal(size=shape).astype("float32") for name, shape in leaves.items()}
        for group, leaves in shapes.items()
    }


def by_formula(optimizer, p, gradients, decay):
    """PyTorch's AdamW and SGD (momentum 0.9), in float64, as its documentation has them."""
    p = p.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for i, g in enumerate(gradients):
        rate = RATE / (i + 1)
        if optimizer == "sgd":
            m = 0.9 * m + (g + decay * p)
            p = p - rate * m
            continue
        p = p - rate * decay * p
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        p = p - rate * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
    return p


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("decay_vectors", [True, False])
def test_steps_are_pytorchs_and_exactly_the_vectors_are_spared(optimizer, decay_vectors):
    recipe, out = Recipe(optimizer, decay_vectors), tree(0)
    moments, gradients = recipe.init(out), [tree(i + 1) for i in range(5)]
    for i, gradient in enumerate(gradients):
        out, moments = recipe.update(out, gradient, moments, RATE / (i + 1), DECAY)
    spared = {"fc1_bias", "norm1_scale", "norm1_shift", "bias"}
    for group, leaves in tree(0).items():
        for name, value in leaves.items():
            decay = 0.0 if name in spared and not decay_vectors else DECAY
            expected = by_formula(optimizer, value, [g[group][name] for g in gradients], decay)
            np.testing.assert_allclose(out[group][name], expected, rtol=1e-4, atol=1e-6)
            other = by_formula(optimizer, value, [g[group][name] for g in gradients], DECAY - decay)
            assert np.abs(other - expected).max() > 0.01  # the difference shows


@pytest.mark.parametrize("method", [SSF(), Adapter(2), FacTTT(2), DoRA(2), BitFit()])
def test_spared_are_the_vectors_of_a_method(small_vit, method):
    """One-dimensional in the released code, [l, d] here: biases, scales, shifts."""
    model, base = small_vit
    step = TrainStep(model, method, "none", 8, make_mesh(8))
    trainable = step.init(0, 3, 3, base).trainable
    zero = jax.tree.map(jnp.zeros_like, trainable)
    recipe = Recipe("sgd", decay_vectors=False)
    after, _ = recipe.update(trainable, zero, recipe.init(trainable), 1.0, 0.5)
    for group, leaves in trainable.items():
        for name, value in leaves.items():
            vector = value.ndim - (group == "factors") < 2 and name not in ("U", "V")
            expected = value if vector else 0.5 * value
            np.testing.assert_allclose(after[group][name], expected, err_msg=name)


def test_of_cara_only_the_biases_are_spared(small_vit):
    """They are the same in all layers, so that they lack the dimension that other methods' have."""
    model, base = small_vit
    step = TrainStep(model, CaRA(2), "none", 8, make_mesh(8))
    trainable = jax.tree.map(jnp.ones_like, step.init(0, 3, 3, base).trainable)
    zero, recipe = jax.tree.map(jnp.zeros_like, trainable), Recipe("sgd", decay_vectors=False)
    after, _ = recipe.update(trainable, zero, recipe.init(trainable), 1.0, 0.5)
    spared = {name for name, value in after["factors"].items() if (value == 1).all()}
    assert spared == {"bias_o", "bias_fc1", "bias_fc2"}


def test_an_optimiser_must_be_known_and_soft_targets_are_asked_for():
    with pytest.raises(UserError, match="optimizer is 'lion'"):
        Recipe("lion")
    assert not Recipe(erasing=0.5).soft
    assert all(Recipe(**{k: 0.1}).soft for k in ("mixup", "cutmix", "label_smoothing"))


# --- What an epoch makes of a recipe, on splits of a batch, of less, and of more

METHOD, BATCH, CLASSES, PADDED = FacTTT(2), 8, 3, 5
SEED, EPOCH = 4, 2
HYPER = Hyper(*map(np.float32, (0.05, 0.0, 1.0)), None, None)


def split(count, seed=0, capacity=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 16, 16, 3)).astype(np.uint8)
    return train_set(images, rng.integers(0, CLASSES, count).astype(np.int32), CLASSES, capacity)


def step_of(small_vit, recipe, batch=BATCH, trials=1):
    mesh = make_mesh(batch, jax.devices()[:1], trials)
    return TrainStep(small_vit[0], METHOD, "imagenet", batch, mesh, recipe)


def fresh(small_vit, seed=SEED):
    """V is no longer zero, so that every factor has a gradient."""
    state = step_of(small_vit, Recipe("sgd")).init(seed, CLASSES, PADDED)
    state.trainable["factors"]["V"] = 0.1 + state.trainable["factors"]["V"]
    return state


def order(count, capacity):
    key, steps = jax.random.split(epoch_key(SEED, EPOCH))
    draw = jax.random.uniform(key, (capacity,))
    rows = jnp.argsort(jnp.where(jnp.arange(capacity) < count, draw, jnp.inf))
    return np.asarray(rows)[:count], steps


@pytest.fixture(scope="module")
def one_step(small_vit):
    """``(images, targets) -> (loss, parameters)`` after a step of SGD on these, written out."""
    model, base = small_vit

    @jax.jit
    def step(trainable, images, targets):
        def loss_fn(trainable):
            adaptation = METHOD.adaptation(trainable["factors"], model.config)
            x = features(model, base, images, adaptation)
            log_p = jax.nn.log_softmax(logits_of(trainable["head"], x, CLASSES)[:, :CLASSES])
            return -(targets[:, :CLASSES] * log_p).sum(-1).mean()

        loss, grads = jax.value_and_grad(loss_fn)(trainable)
        return loss, jax.tree.map(lambda p, g: p - HYPER.learning_rate * g, trainable, grads)

    return lambda images, targets: step(fresh(small_vit).trainable, images, targets)


def assert_same_step(actual, expected, loss, expected_loss):
    assert loss == pytest.approx(float(expected_loss), rel=1e-5)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.fixture(scope="module")
def plain(small_vit):
    step = step_of(small_vit, Recipe("sgd"))

    def epoch(data):
        return step.alone(small_vit[1], fresh(small_vit), Trial(data, HYPER, SEED), EPOCH)

    return epoch


@pytest.mark.parametrize("capacity", [5, 16])
def test_fewer_images_than_a_batch_are_one_batch_of_just_these(
    small_vit, plain, one_step, capacity
):
    data = split(5, capacity=capacity)
    state, losses = plain(data)
    images = normalise(data.images[:5], "imagenet")
    expected = one_step(images, np.eye(PADDED)[data.labels[:5]])
    assert_same_step(state.trainable, expected[1], losses[0], expected[0])
    np.testing.assert_array_equal(losses[1:], 0)
    moved = np.abs(state.trainable["factors"]["U"] - fresh(small_vit).trainable["factors"]["U"])
    assert moved.max() > 1e-4


def test_mixing_smoothing_and_erasing_reach_the_loss(small_vit, plain, one_step):
    """The images of a short batch are mixed among themselves."""
    recipe = Recipe("sgd", mixup=0.8, cutmix=1.0, label_smoothing=0.1, erasing=1.0)
    count, capacity = 5, 16
    data = split(count, capacity=capacity)
    step, trial = step_of(small_vit, recipe), Trial(data, HYPER, SEED)
    state, losses = step.alone(small_vit[1], fresh(small_vit), trial, EPOCH)
    rows, key_steps = order(count, capacity)
    rows = np.concatenate([rows, np.arange(count, BATCH)])
    key, valid = jax.random.fold_in(key_steps, 0), np.arange(BATCH) < count
    images, labels = normalise(data.images[rows], "imagenet"), data.labels[rows]
    erased = erase(jax.random.fold_in(key, 2), images, 1.0)
    soft = soft_targets(labels, valid, CLASSES, PADDED, 0.1)
    both, mixing_key = {"mixup": 0.8, "cutmix": 1.0}, jax.random.fold_in(key, 3)
    mixed, targets = mix(mixing_key, erased, soft, valid, **both)
    expected = one_step(mixed[:count], targets[:count])
    assert_same_step(state.trainable, expected[1], losses[0], expected[0])
    hard = np.eye(PADDED)[labels]
    bare, _ = mix(mixing_key, images, soft, valid, **both)
    for other_images, other_targets in ((mixed, hard), (erased, soft), (bare, targets)):
        other, _ = one_step(other_images[:count], other_targets[:count])
        assert abs(other - losses[0]) > 1e-4  # each of them shows


def test_a_step_for_few_bits_has_the_gradient_of_the_rounded_numbers(small_vit):
    trial, before = Trial(split(BATCH), HYPER, SEED), fresh(small_vit).trainable
    near = rounded(before, Bits(2, 1))

    def stepped(recipe, trainable):
        start = TrialState(trainable, recipe.init(trainable))
        state, losses = step_of(small_vit, recipe).alone(small_vit[1], start, trial, EPOCH)
        return jax.tree.map(lambda new, old: new - old, state.trainable, trainable), losses[0]

    expected, expected_loss = stepped(Recipe("sgd"), near)
    actual, loss = stepped(Recipe("sgd", factor_bits=2, head_bits=1), before)
    assert_same_step(actual, expected, loss, expected_loss)
