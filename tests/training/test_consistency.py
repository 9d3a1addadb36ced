"""The loss of consistency (PACE): its three forms, the memory of logits, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from fact_jax import FacTTT, ViT, ViTConfig, features
from fact_jax.backbone.noise import IncrementNoise, levels
from fact_jax.backbone.vit import init_base
from fact_jax.errors import UserError
from fact_jax.training.consistency import difference, empty_memory, last_visit, remember
from fact_jax.training.mesh import make_mesh, stack
from fact_jax.training.objective import CONSISTENCY, Batch, Visit
from fact_jax.training.recipe import Recipe
from fact_jax.training.run import Training
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, logits_of, train_set
from fact_jax.tuning import Adapter, Linear

BATCH, CLASSES, PADDED, WEIGHT, SIGMA = 4, 3, 5, 0.7, 0.5
METHOD, KEY = FacTTT(2), jax.random.key(9)


@pytest.fixture(scope="module")
def vit():
    """Two blocks: the first has no noise, the last has."""
    config = ViTConfig(width=12, depth=2, num_heads=2, mlp_dim=48, patch_size=8, image_size=16)
    return ViT(config), init_base(config, jax.random.key(1))


def step_of(vit, form, method=METHOD, trials=1, **recipe):
    mesh = make_mesh(BATCH, jax.devices()[:1], trials)
    recipe = Recipe(consistency=form, **recipe)
    return TrainStep(vit[0], method, "none", BATCH, mesh, recipe)


def trial_of(sigma=SIGMA, weight=WEIGHT, drop=0.2, seed=0, count=8):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
    data = train_set(images[:count], rng.integers(0, 3, count).astype(np.int32), CLASSES, 8)
    hyper = Hyper(0.02, 0.0, 1.0, drop, drop, None, sigma, weight)
    return Trial(data, jax.tree.map(np.float32, hyper), np.int32(seed))


def batch_of(step, trial, valid=(True,) * BATCH):
    batch = step.batch(trial.data, jnp.arange(8, dtype=jnp.int32), jnp.int32(0))
    return batch._replace(valid=jnp.array(valid))


def trainable_of(step, seed=0):
    """V is not zero, so that the increments are there."""
    trainable = step.init(seed, CLASSES, PADDED, capacity=8).trainable
    rng = np.random.default_rng(seed)
    moved = {
        name: x + 0.2 * rng.normal(size=x.shape).astype("float32")
        for name, x in trainable["factors"].items()
    }
    return {**trainable, "factors": moved}


def visit_of(number=0, memory=None):
    return Visit(jnp.int32(number), jnp.arange(BATCH, dtype=jnp.int32), memory)


def logits_by_hand(step, base, trainable, images, trial, noise_key):
    config, hyper = step.model.config, trial.hyper
    adaptation = step.method.adaptation(trainable["factors"], config)
    noise = IncrementNoise(noise_key, hyper.consistency_noise)
    rates = dict(dropout_rate=hyper.dropout_rate, drop_path_rate=hyper.drop_path_rate)
    x = features(step.model, base, images, adaptation, key=KEY, increment_noise=noise, **rates)
    logits = logits_of(trainable["head"], x)[:, :CLASSES]
    drawn = jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(noise_key, config.depth), 0), (len(x), PADDED)
    )
    return logits * (1 + hyper.consistency_noise * levels(config.depth)[-1] * drawn[:, :CLASSES])


def entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def of_full(step, base, trainable, batch, trial):
    """The loss of two passes, written out."""
    keys = jax.random.split(jax.random.fold_in(KEY, CONSISTENCY), 2)
    one, two = (logits_by_hand(step, base, trainable, batch.images, trial, k) for k in keys)
    gap = ((one - two) ** 2).sum(axis=-1).mean()
    return entropy(one, batch.targets) + WEIGHT * gap


@functools.cache
def program(step):
    def loss(trainable, base, batch, trial, visit):
        return step.objective.consistent_loss(trainable, base, batch, trial, KEY, visit)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def graded(step, base, trainable, batch, trial, visit):
    return program(step)(trainable, base, batch, trial, visit)


def assert_close(actual, expected, rtol=2e-3):
    def one(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-5 * max(1, np.abs(b).max()))

    jax.tree.map(one, actual, expected)


@pytest.mark.parametrize("method", [METHOD, Adapter(2)], ids=["fact_tt", "adapter"])
def test_full_is_the_loss_of_two_passes_with_a_gradient_through_both(vit, method):
    """The masks of dropout and stochastic depth are those of one key in both passes."""
    step, base, trial = step_of(vit, "full", method), vit[1], trial_of()
    trainable, batch = trainable_of(step), batch_of(step, trial)
    (loss, _), grads = graded(step, base, trainable, batch, trial, visit_of())
    expected, by_hand = jax.jit(jax.value_and_grad(lambda t: of_full(step, base, t, batch, trial)))(
        trainable
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_close(grads, by_hand)


@pytest.mark.parametrize("form", ["full", "fast"])
def test_without_noise_the_loss_is_the_plain_one(vit, form):
    step, base, trial = step_of(vit, form), vit[1], trial_of(sigma=0.0)
    trainable, batch = trainable_of(step), batch_of(step, trial)
    visit = visit_of(1, empty_memory(8, PADDED) if form == "fast" else None)
    (loss, _), grads = graded(step, base, trainable, batch, trial, visit)
    plain, expected = jax.jit(jax.value_and_grad(step.loss))(trainable, base, batch, trial, KEY)
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    assert_close(grads, expected)


def test_lazy_has_two_passes_of_half_a_batch_in_every_second_step(vit):
    step, base, trial = step_of(vit, "lazy"), vit[1], trial_of()
    trainable, batch = trainable_of(step), batch_of(step, trial)
    half = Batch(*(x[: BATCH // 2] for x in batch))
    for number in range(4):
        (loss, _), _ = graded(step, base, trainable, batch, trial, visit_of(number))
        if number % 2:
            key = jax.random.fold_in(KEY, CONSISTENCY)
            logits = logits_by_hand(step, base, trainable, batch.images, trial, key)
            expected = entropy(logits, batch.targets)
        else:
            expected = of_full(step, base, trainable, half, trial)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_fast_compares_with_the_last_visit_and_a_first_one_adds_nothing(vit):
    step, base, trial = step_of(vit, "fast"), vit[1], trial_of()
    trainable, batch = trainable_of(step), batch_of(step, trial)
    key = jax.random.fold_in(KEY, CONSISTENCY)
    memory = empty_memory(8, PADDED).at[1].set(2.0).at[3].set(-1.0)

    def by_hand(trainable):
        logits = logits_by_hand(step, base, trainable, batch.images, trial, key)
        gap = ((logits[1] - 2) ** 2).sum() + ((logits[3] + 1) ** 2).sum()
        return entropy(logits, batch.targets) + WEIGHT * gap / BATCH, logits

    (loss, logits), grads = graded(step, base, trainable, batch, trial, visit_of(0, memory))
    (expected, seen), expected_grads = jax.jit(jax.value_and_grad(by_hand, has_aux=True))(trainable)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(logits[:, :CLASSES], seen, rtol=1e-4, atol=1e-5)
    assert_close(grads, expected_grads)


def test_padded_rows_and_classes_count_as_nothing():
    logits = jnp.array([[1.0, 2.0, -1e30], [5.0, 5.0, -1e30]])
    others = jnp.array([[0.0, 4.0, -1e30], [9.0, 9.0, 7.0]])
    valid = jnp.array([True, False])
    assert difference(logits, others, valid, 2) == 5.0
    assert difference(logits, others, ~valid, 2) == 32.0
    assert difference(logits, others, valid & ~valid, 2) == 0.0
    memory = remember(empty_memory(3, 3), jnp.array([2, 0]), logits, valid)
    assert np.isinf(memory[:2]).all()
    np.testing.assert_array_equal(memory[2], logits[0])
    last = last_visit(memory, jnp.array([2, 1]), others)
    np.testing.assert_array_equal(last, [logits[0], others[1]])


def epochs(vit, form, trials, programs, directory, *, stop=None):
    """Trained numbers and memories after some epochs of a stack."""
    step = programs.setdefault((form, len(trials)), step_of(vit, form, trials=len(trials)))
    stacked = stack(trials, step.mesh)
    states = stack([step.init(int(t.seed), CLASSES, PADDED, capacity=8) for t in trials], step.mesh)
    steps, kept = [int(step.num_steps(t.data.num_examples)) for t in trials], {}
    most = np.int32(max(steps))

    def epoch(states, e):
        kept["states"], losses = step.program(vit[1], states, stacked, np.int32(e), most)
        return kept["states"], losses

    def on_epoch(done, *_):
        if done == stop:
            raise KeyboardInterrupt

    training = Training(epoch, 3, steps, [{}] * len(trials), on_epoch=on_epoch)
    out = training.run(states, directory)
    return out, kept["states"].memory


@pytest.mark.parametrize("form", ["fast", "lazy"])
def test_trials_of_a_stack_train_as_alone_and_a_resumed_run_as_one_never_stopped(
    vit, form, tmp_path
):
    """The second trial's split has fewer images: its last step of each epoch is none."""
    trials, programs = [trial_of(), trial_of(seed=1, count=5)], {}
    whole, memory = epochs(vit, form, trials, programs, epath.Path(tmp_path / "whole"))
    alone, own = epochs(vit, form, trials[1:], programs, epath.Path(tmp_path / "alone"))
    assert_close(alone.trainable[0], whole.trainable[1])
    if form == "fast":
        seen = np.isfinite(memory).all(axis=-1)
        np.testing.assert_array_equal(seen, [[True] * 8, [True] * 5 + [False] * 3])
        np.testing.assert_allclose(own[0][:5], memory[1][:5], rtol=1e-3, atol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        epochs(vit, form, trials, programs, epath.Path(tmp_path / "parts"), stop=2)
    parts, again = epochs(vit, form, trials, programs, epath.Path(tmp_path / "parts"))
    jax.tree.map(np.testing.assert_array_equal, parts.trainable, whole.trainable)
    np.testing.assert_array_equal(parts.losses, whole.losses)
    if form == "fast":
        np.testing.assert_array_equal(memory, again)
    else:
        assert memory is again is None


def test_it_combines_with_mixing_few_bits_and_several_labels(vit):
    step, trial = step_of(vit, "full", mixup=0.3, factor_bits=4), trial_of()
    mixed = step.mixed(batch_of(step, trial), CLASSES, PADDED, KEY)
    (loss, _), grads = graded(step, vit[1], trainable_of(step), mixed, trial, visit_of())
    assert np.isfinite(loss)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads["factors"]))
    step = dataclasses.replace(step_of(vit, "full"), multi_label=True)
    trainable, batch = trainable_of(step), batch_of(step, trial)
    batch = batch._replace(targets=jnp.eye(PADDED, dtype=jnp.int32)[jnp.arange(BATCH) % 3])
    losses = [
        graded(step, vit[1], trainable, batch, trial_of(weight=w), visit_of())[0][0]
        for w in (0.0, 1.0)
    ]
    assert losses[0] < losses[1]


def test_what_makes_no_sense_is_refused(vit):
    with pytest.raises(UserError, match="consistency 'fast' .* cutmix is 0.5"):
        Recipe(consistency="fast", cutmix=0.5)
    with pytest.raises(UserError, match="give init\\(\\) the `capacity`"):
        step_of(vit, "fast").init(0, CLASSES, PADDED)
    step, trial = step_of(vit, "lazy"), trial_of()
    one = Batch(*(x[:1] for x in batch_of(step, trial)))
    with pytest.raises(UserError, match="the batch size is 1"):
        graded(step, vit[1], trainable_of(step), one, trial, visit_of())
    step = step_of(vit, "full", Linear())
    with pytest.raises(UserError, match="Linear has neither low-rank increments nor bottlenecks"):
        graded(step, vit[1], trainable_of(step), batch_of(step, trial), trial, visit_of())
