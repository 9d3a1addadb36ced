"""The protocol's schedule, optimiser, batches, resuming and evaluation."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from fact_jax import FacTTT, features
from fact_jax.images.normalise import normalise
from fact_jax.training import run as run_module
from fact_jax.training.evaluation import Evaluator, Merged
from fact_jax.training.mesh import make_mesh, stack
from fact_jax.training.run import Training
from fact_jax.training.schedule import learning_rate
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, train_set

METHOD = FacTTT(4)
NO_DROP = dict(dropout_rate=jnp.float32(0), drop_path_rate=jnp.float32(0))


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40).astype(np.int32)
    images = rng.integers(0, 60, (40, 16, 16, 3)) + 60 * labels[:, None, None, None]
    return images.astype(np.uint8), labels


@functools.cache
def step_of(model, normalisation="none", method=METHOD):
    """One for all tests, whose program is then traced once; batches of 8."""
    return TrainStep(model, method, normalisation, 8, make_mesh(8, jax.devices()[:1]))


def test_the_learning_rate_of_all_100_epochs():
    """f(t) of timm 0.4.12's CosineLRScheduler as FacT drives it; epoch e runs at f(e - 1)."""
    warmup = [1e-6 + t * 9.99e-5 for t in range(10)]
    cosine = [1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * t / 100)) for t in range(10, 99)]
    table = [1e-6, *warmup, *cosine]
    assert len(table) == 100
    np.testing.assert_allclose([learning_rate(e) for e in range(100)], table, rtol=1e-12)
    # Values as a person worked them out; the peak of 1e-3 is never reached.
    facts = [(0, 1e-6), (1, 1e-6), (2, 1.009e-4), (10, 9.001e-4), (11, 9.758e-4), (50, 5.205e-4)]
    for epoch, rate in (*facts, (51, 5.05e-4), (99, 1.098e-5)):
        assert table[epoch] == pytest.approx(rate, rel=1e-3)
    assert table.index(max(table)) == 11


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("inception", -1.0, 1.0), ("none", 0.0, 1.0), ("imagenet", -0.485 / 0.229, 0.515 / 0.229)],
)
def test_normalisation(name, low, high):
    x = normalise(jnp.array([[[[0, 0, 0], [255, 255, 255]]]], jnp.uint8), name)
    np.testing.assert_allclose(x[0, 0, :, 0], [low, high], rtol=1e-6)


def test_padding_changes_nothing(small_vit, split):
    """Rows past the split's and classes past the task's do not act."""
    hyper = Hyper(jnp.float32(0.01), **NO_DROP)
    model, base = small_vit
    step, data = step_of(model), train_set(*split, 3, 48)
    outcomes = []
    for padded, fill in ((3, 0), (9, 0), (9, 255)):
        images = data.images.copy()
        images[40:] = fill
        trial = Trial(data._replace(images=images), hyper, 7)
        state, _ = step.alone(base, step.init(7, 3, padded), trial, 0)
        head = state.trainable["head"]
        assert not np.any(head["kernel"][:, 3:])
        outcomes.append((state.trainable["factors"], head["kernel"][:, :3]))
    for other in outcomes[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), outcomes[0], other
        )


def test_each_epoch_and_seed_has_its_own_order_and_masks(small_vit, split):
    """The losses of the batches from one state differ with the epoch's key, and only with it."""
    losses, (model, base) = {}, small_vit
    step = step_of(model)
    for name, seed, e in [("a", 7, 0), ("again", 7, 0), ("next", 7, 1), ("other seed", 8, 0)]:
        hyper = Hyper(jnp.float32(0), **NO_DROP)  # nothing learnt, nothing dropped: the order alone
        trial = Trial(train_set(*split, 3), hyper, seed)
        losses[name] = np.asarray(step.alone(base, step.init(7, 3, 3), trial, e)[1])
    np.testing.assert_array_equal(losses["a"], losses["again"])
    assert np.abs(losses["a"] - losses["next"]).max() > 1e-3
    assert np.abs(losses["a"] - losses["other seed"]).max() > 1e-3
    # The same images in the end: the mean over the epoch is that of the whole split.
    assert losses["a"].mean() == pytest.approx(losses["next"].mean(), rel=1e-4)


def test_numbers_are_traced_so_that_one_program_serves_all(small_vit, split, compiled):
    model, base = small_vit
    mesh = make_mesh(8, jax.devices()[:1])
    step = TrainStep(model, METHOD, "none", 8, mesh)
    state = step.init(0, 3, 5)
    for seed, n, scale in ((0, 40, 0.1), (1, 24, 10.0)):
        data = train_set(split[0][:n], split[1][:n], 3 - seed, 40)
        hyper = Hyper(*map(jnp.float32, (1e-3, 0.0, scale, 0.1 * seed, 0.2)))
        state, losses = step.alone(base, state, Trial(data, hyper, seed), 0)
        assert (losses > 0).sum() == n // 8
    assert [name for name in compiled if "epoch" in name] == ["jit(epoch)"]


def make_stack(small_vit, split, seeds=(7,), scales=(1.0,)):
    """(epoch(states, e), fresh states) of trials on the same split, batches of 8."""
    model, base = small_vit
    step = step_of(model, "inception")
    mesh = step.mesh
    hypers = [Hyper(np.float32(1e-2), scale=np.float32(scale)) for scale in scales]
    data = train_set(*split, 3, 48)
    trials = stack([Trial(data, *both) for both in zip(hypers, np.int32(seeds), strict=True)], mesh)

    def epoch(states, e):
        return step.program(base, states, trials, e, 5)

    return epoch, stack([step.init(seed, 3, 5) for seed in seeds], mesh)


def flat(state):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(state)])


def run_train(small_vit, split, directory, stop_after=None, epochs=6):
    epoch, state = make_stack(small_vit, split)

    def on_epoch(done, losses, accuracies):
        if done == stop_after:
            raise KeyboardInterrupt

    out = Training(
        epoch,
        epochs=epochs,
        steps=[5],
        settings=[{}],
        evaluate=lambda t, trained: float(flat(trained).sum()),
        eval_every=2,
        on_epoch=on_epoch,
    ).run(state, epath.Path(directory))
    return out.trainable[0], out.losses[0], out.accuracies[0]


def test_a_checkpoint_is_written_now_and_then_and_when_a_run_is_told_to_end(
    small_vit, split, tmp_path, monkeypatch
):
    """Checkpoints follow evaluations (every second epoch here), the end, and a stop."""
    saved, save = [], ocp.training.Checkpointer.save

    def spy(self, step, *args, **kwargs):
        saved.append(step)
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.training.Checkpointer, "save", spy)
    monkeypatch.setattr(run_module, "SAVE_EVERY", 3600.0)
    with pytest.raises(KeyboardInterrupt):
        run_train(small_vit, split, tmp_path / "a", stop_after=3)
    assert saved == [1, 2]
    saved.clear()
    run_train(small_vit, split, tmp_path / "a")
    assert saved == [3, 5, 6]  # 6: the last one with its accuracies
    saved.clear()
    monkeypatch.setattr(run_module, "SAVE_EVERY", 0.0)
    run_train(small_vit, split, tmp_path / "b")
    assert saved == [0, 1, 2, 3, 4, 5, 6]


def test_a_resumed_run_equals_one_never_stopped(small_vit, split, tmp_path):
    whole = run_train(small_vit, split, tmp_path / "whole")
    for stop in (1, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            run_train(small_vit, split, tmp_path / "parts", stop_after=stop)
    for place in ("parts", "whole"):  # the latter is finished: nothing is run
        again = run_train(small_vit, split, tmp_path / place)
        jax.tree.map(np.testing.assert_array_equal, again, whole)
    assert np.flatnonzero(np.isfinite(whole[2])).tolist() == [1, 3, 5]


def test_an_evaluation_that_fails_costs_no_training(small_vit, split, tmp_path):
    """Every trial is evaluated once, whatever became of the others' evaluations."""
    program, states = make_stack(small_vit, split, seeds=(7, 8), scales=(1.0, 1.0))
    epochs, evaluated = [], []

    def epoch(states, e):
        epochs.append(e)
        return program(states, e)

    def run(broken):
        def evaluate(t, trained):
            if t == broken:
                raise OSError("the test images cannot be read")
            evaluated.append(t)
            return 50.0 + t

        training = Training(epoch, epochs=2, steps=[5, 5], settings=[{}, {}], evaluate=evaluate)
        return training.run(jax.tree.map(jnp.copy, states), epath.Path(tmp_path / "x"))

    with pytest.raises(OSError, match="test images"):
        run(broken=1)
    assert (epochs, evaluated) == ([0, 1], [0])
    out = run(broken=None)
    assert epochs == [0, 1]
    assert [a[-1] for a in out.accuracies] == [50.0, 51.0]
    evaluated.clear()
    assert [a[-1] for a in run(broken=None).accuracies] == [50.0, 51.0]
    assert evaluated == []  # kept by the last checkpoint


def infinite_loss(state, losses, e):
    return state, losses.at[0, 2].set(jnp.inf) if e == 1 else losses


def broken_update(state, losses, e):
    """The last step's loss is finite, but what it made of the factors is not."""
    state.trainable["head"]["bias"] *= jnp.nan
    return state, losses


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (infinite_loss, r"inf at step 7 \(epoch 1\)\..* with task=dtd, scale=100"),
        (broken_update, r"non-finite at step 4 \(epoch 0\)"),
        (None, r"nan at step 0 \(epoch 0\)"),  # of the base
    ],
)
def test_numbers_that_are_not_finite_stop_a_run_with_step_and_settings(
    small_vit, split, tmp_path, change, words
):
    model, base = small_vit
    base = base if change else {**base, "cls": base["cls"] * np.nan}
    program, state = make_stack((model, base), split)

    def epoch(state, e):
        return change(*program(state, e), e) if change else program(state, e)

    training = Training(epoch, epochs=2, steps=[5], settings=[{"task": "dtd", "scale": 100}])
    out = training.run(state, epath.Path(tmp_path / "x"))
    assert re.search(words, str(out.errors[0]))


def test_evaluation_counts_every_image_once_with_merged_weights(small_vit, split):
    model, base = small_vit
    images, labels = split
    factors = METHOD.init(jax.random.key(0), model.config)
    factors["V"] = jax.random.normal(jax.random.key(1), factors["V"].shape)
    x = normalise(jnp.asarray(images), "none")
    adapted = features(model, base, x, METHOD.adaptation(factors, model.config, 0.3))
    kernel = jax.random.normal(jax.random.key(2), (24, 5))  # two classes of padding
    head = {"kernel": kernel, "bias": -adapted.mean(0) @ kernel}
    predicted = np.argmax(adapted @ head["kernel"][:, :3] + head["bias"][None, :3], -1)
    assert len(set(predicted.tolist())) > 1
    evaluator = Evaluator(model.config, "none", 16, make_mesh(16, jax.devices()[:1]))
    batches = [(images[i : i + 16], labels[i : i + 16]) for i in range(0, 40, 16)]
    trainable = {"factors": factors, "head": head}
    trained = Merged.of(METHOD, model.config, base, trainable, 0.3)
    correct = int((predicted == labels).sum())
    assert evaluator.count(trained, 3, batches) == (correct, 40)
    # Labels equal to the predictions: all correct, none of the padding counted.
    perfect = [(images[i : i + 16], predicted[i : i + 16]) for i in range(0, 40, 16)]
    assert evaluator.count(trained, 3, perfect) == (40, 40)
