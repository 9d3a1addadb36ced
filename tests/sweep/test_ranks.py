"""Rank-adaptive training: what is refused, what is stored, and a run that was stopped."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from etils import epath
from told import Told

from configs import base, quickstart
from fact_jax import UserError, load_factors
from fact_jax.cli.local import run_sweep
from fact_jax.cli.terminal import Console
from fact_jax.sweep.findings import Findings
from fact_jax.sweep.plan import make_plan
from fact_jax.sweep.ranks import Phase, phase_at, phases, rounded_to, trained_method
from fact_jax.sweep.record import reported
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.runs import Run
from fact_jax.sweep.stacks import RunStack
from fact_jax.sweep.trainer import Trainer
from fact_jax.training.step import TrainStep
from fact_jax.tuning import FacTTT


def config(method="fact_tt", **changes):
    c = quickstart.get_config()
    c.tasks, c.methods, c.epochs, c.train_limit, c.eval_limit = "digits", method, 4, 32, 40
    c.batch_size, c.warmup_epochs = 16, 0
    if method not in c:
        c[method] = base.method(method)
    c[method].update({"rank": 2, "start_ranks": (4, 3), "round_epochs": (1, 2)})
    c.update_from_flattened_dict(changes)
    return c


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fact_tt.start_ranks": (4,)}, "start_ranks has 1 ranks and .* 2 epochs"),
        ({"fact_tt.start_ranks": (4, 2)}, "start_ranks is \\(4, 2\\), and the method's rank is 2"),
        ({"fact_tt.start_ranks": (3, 4)}, "expected ranks that become smaller"),
        ({"fact_tt.round_epochs": (2, 2)}, "round_epochs is \\(2, 2\\); expected epochs"),
        ({"fact_tt.round_epochs": (0, 2)}, "from 1 to 3 in a training of 4"),
        ({"fact_tt.round_epochs": (2, 4)}, "from 1 to 3 in a training of 4"),
        ({"fact_tt.start_from": "x"}, "start_ranks and .*start_from are both set"),
        ({"fact_tt.shared": "learn"}, "start_ranks and .*shared are both set"),
        ({"fact_tt.scales": (0.0, 1.0)}, "fact_tt.scale is 0, or one of its candidates"),
        ({"fact_tt.learning_rate": 0.0}, "fact_tt.learning_rate is 0, or one of its candidates"),
    ],
)
def test_ranks_that_make_no_sense_are_refused(changes, words):
    make_plan(config())
    with pytest.raises(UserError, match=words):
        make_plan(config(**changes))


def test_lora_on_an_mlp_without_squares_is_refused_before_it_trains():
    c = config("lora", variant="siglip2_so400m14", image_size=56)
    with pytest.raises(UserError, match="lora.start_ranks is \\(4, 3\\), .* 4304 and 1152"):
        make_plan(c)
    c.lora.start_ranks = c.lora.round_epochs = ()
    make_plan(c)


def test_methods_that_cannot_be_rounded_are_refused():
    c = config()
    c.methods, c.start_ranks, c.round_epochs = "linear", (4,), (1,)
    with pytest.raises(UserError, match="Linear cannot be rounded to a smaller rank"):
        make_plan(c)


def test_phases_have_their_epochs_and_are_known_by_their_shapes(small_config):
    (cell,) = make_plan(config())
    several = phases(cell.method, cell.settings)
    assert [(p.start, p.method.rank) for p in several] == [(0, 4), (1, 3), (2, 2)]
    assert several[-1].method == cell.method
    assert [phase_at(several, e) for e in range(5)] == [0, 1, 2, 2, 2]
    for phase in several:
        factors = phase.method.init(jax.random.key(0), small_config)
        assert trained_method(several, factors, small_config) == phase.method


def test_a_trial_that_has_failed_stays_failed(small_config):
    before, after = Phase(0, FacTTT(4)), Phase(1, FacTTT(2))
    factors = jax.tree.map(np.array, before.method.init(jax.random.key(0), small_config))
    factors["S"][0, 0, 0, 0] = np.nan
    trainable, error = rounded_to(after, before, {"factors": factors}, 1.0, small_config)
    assert np.isnan(error)
    assert all(np.isnan(x).all() for x in trainable["factors"].values())
    assert trainable["factors"]["U"].shape == (small_config.width, 2)


class Epochs:
    """Stands for an epoch's program: all trained numbers move, each by another number.

    Attributes:
      begun: of each epoch, whether its moments were zero, and the memory that it began with.
    """

    def __init__(self):
        self.begun = []

    def __call__(self, base, states, trials, number, steps):
        zero = all(not np.any(x) for x in jax.tree.leaves(states.moments))
        self.begun.append((zero, np.unique(states.memory)[0]))
        moved = jax.tree.map(
            lambda x: (
                x + 0.1 * np.sin(np.arange(x.size).reshape(x.shape) + number).astype("float32")
            ),
            states.trainable,
        )
        moments = jax.tree.map(lambda x: x + 1, states.moments)
        changed = moved, moments, np.full_like(states.memory, number)
        changed = jax.device_put(changed, jax.tree.leaves(states)[0].sharding)
        names = ("trainable", "moments", "memory")
        states = dataclasses.replace(states, **dict(zip(names, changed, strict=True)))
        return states, np.full((1, 2), number, np.float32)


def test_a_run_that_was_stopped_in_any_phase_equals_one_that_was_not(tiny, tmp_path, monkeypatch):
    epochs = Epochs()
    monkeypatch.setattr(TrainStep, "program", epochs)
    c = config(protocol="paper", eval_every=1, **{"fact_tt.consistency": "fast"}, **tiny)
    (cell,) = make_plan(c)
    trainer, ranks = Trainer(read_settings(c), Told()), []
    run = Run(cell, "final", cell.candidates[0])

    def measure(run, trainable, batches):
        ranks.append(trainable["factors"]["U"].shape[1])
        findings = Findings(10)
        findings.add(np.zeros((2, 16, 16, 3), np.uint8), np.array([0, 1]), np.eye(10)[:2])
        return findings

    def train(folder, stop=None):
        def epoch(done, losses, accuracies):
            if done == stop:
                raise KeyboardInterrupt

        trainer.progress.epoch = epoch
        (trained,) = RunStack(trainer, [run], 1).train(epath.Path(tmp_path / folder))
        return trained

    monkeypatch.setattr(trainer, "measure", measure)
    whole = train("whole")
    assert ranks == [4, 3, 2, 2]
    assert [zero for zero, _ in epochs.begun] == [True, True, True, False]
    assert [number for _, number in epochs.begun[1:]] == [0, 1, 2]  # memory goes on
    notes = [text.partition(", relative")[0] for text in trainer.progress.notes]
    assert [text.partition("rounded ")[2] for text in notes] == [
        "from rank 4 to 3 after epoch 1",
        "from rank 3 to 2 after epoch 2",
    ]
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train("parts", stop)
    epochs.begun.clear()
    parts = train("parts")
    assert epochs.begun == [(False, 2)]
    assert (parts.losses, parts.accuracies) == (whole.losses, whole.accuracies)
    jax.tree.map(np.testing.assert_array_equal, parts.trainable, whole.trainable)


@pytest.mark.slow
def test_a_sweep_ends_at_the_method_s_rank(tiny, tmp_path):
    ranks = {"fact_tt.start_ranks": (4,), "fact_tt.round_epochs": (1,)}
    c = config(protocol="paper", eval_every=1, epochs=2, **ranks, **tiny)
    (cell,) = make_plan(c)
    (result,) = run_sweep(c, str(tmp_path), Console(quiet=True))
    assert result.settings["start_ranks"] == [4]
    task = load_factors(tmp_path / "factors" / f"{cell.name}.safetensors")
    assert task.method == cell.method
    assert task.metadata["trained_ranks"] == [{"epoch": 0, "rank": 4}, {"epoch": 1, "rank": 2}]


@pytest.mark.parametrize(
    ("protocol", "accuracies", "accuracy"),
    [
        ("paper", [90.0, 80.0, 60.0, 50.0], 60.0),  # ranks 4, 3, 2, 2
        ("paper", [90.0, math.nan, math.nan, 50.0], 50.0),
        ("val", [math.nan, math.nan, math.nan, 50.0], 50.0),
    ],
)
def test_the_accuracy_is_that_of_the_rank_that_is_stored(protocol, accuracies, accuracy):
    (cell,) = make_plan(config(protocol=protocol))
    assert reported(cell, accuracies) == accuracy
