"""Laws of task arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CONFIG, dense, random_factors, random_increments
from tried_methods import ALL

from fact_jax import FacTTT, UserError
from fact_jax.algebra.arithmetic import Cores, average, dare, interpolate, ties
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.rounding import round_to


@settings(max_examples=15, deadline=None)
@given(
    x=st.sampled_from(["fact_tt", "lora_qv", "fact_shared_kind"]),
    y=st.sampled_from(["fact_cp", "lora_all"]),
    weight=st.floats(-2, 2),
)
def test_sums_and_means_are_those_of_the_matrices(x: str, y: str, weight: float):
    a, b = random_increments(ALL[x], 1), random_increments(ALL[y], 2)
    close = {"rtol": 1e-5, "atol": 1e-4}
    np.testing.assert_allclose(dense(a + b), dense(a) + dense(b), **close)
    np.testing.assert_allclose(dense(a - weight * b), dense(a) - weight * dense(b), **close)
    np.testing.assert_allclose(dense(-a), -dense(a), **close)
    mean = average([a, b], [3, 1])
    np.testing.assert_allclose(dense(mean), 0.75 * dense(a) + 0.25 * dense(b), **close)
    between = (1 - weight) * dense(a) + weight * dense(b)
    np.testing.assert_allclose(dense(interpolate(a, b, weight)), between, **close)


def test_the_difference_of_a_task_with_itself_is_nothing():
    a = random_increments(ALL["fact_tt"])
    assert (a - a).norm < 1e-10 * a.norm


def test_two_tensor_trains_add_up_to_one_of_both_ranks():
    a, b = random_increments(FacTTT(2), 1), random_increments(FacTTT(3), 2)
    assert round_to(FacTTT(5), a + b, CONFIG).error < 1e-6
    assert round_to(FacTTT(4), a + b, CONFIG).error > 1e-3


def by_hand(cores: np.ndarray, density: float) -> np.ndarray:
    """TIES number by number, as its algorithm 1 reads."""
    trimmed = np.zeros_like(cores)
    for task, numbers in enumerate(cores):
        order = np.argsort(-np.abs(numbers), axis=None)[: round(density * numbers.size)]
        trimmed[task].flat[order] = numbers.flat[order]
    merged = np.zeros_like(cores[0])
    for place in np.ndindex(merged.shape):
        values = [task[place] for task in trimmed]
        sign = np.sign(sum(values))
        agree = [value for value in values if value and np.sign(value) == sign]
        merged[place] = sum(agree) / len(agree) if agree else 0
    return merged


def test_ties_is_its_algorithm_on_the_shared_cores():
    tasks = [random_increments(FacTTT(2), seed) for seed in range(3)]
    shared = Cores.of(tasks)
    assert shared.cores.shape == (3, 16, 6, 6)
    back = shared.left @ shared.cores[1] @ shared.right
    np.testing.assert_allclose(back, dense(tasks[1]), atol=1e-4)
    merged = ties(tasks, density=0.3, scale=0.5)
    expected = 0.5 * shared.left @ by_hand(shared.cores, 0.3) @ shared.right
    np.testing.assert_allclose(dense(merged), expected, atol=1e-6)


def test_ties_of_one_task_at_full_density_is_that_task():
    a = random_increments(ALL["fact_tk"])
    np.testing.assert_allclose(dense(ties([a, a], density=1.0)), dense(a), atol=1e-4)


def test_a_rank_that_loses_nothing_changes_nothing():
    """Three tasks with one U: their joint column space is of dimension 2, their row space of 6."""
    tasks, common = [], random_factors(FacTTT(2))["U"]
    for seed in range(3):
        factors = {**random_factors(FacTTT(2), seed), "U": common}
        tasks.append(Increments.of(FacTTT(2), factors, CONFIG))
    assert Cores.of(tasks).cores.shape == Cores.of(tasks, rank=6).cores.shape == (3, 16, 2, 6)
    wanted = dense(ties(tasks, density=0.3))
    actual = dense(ties(tasks, density=0.3, rank=6))
    np.testing.assert_allclose(actual, wanted, atol=1e-4 * np.abs(wanted).max())


def test_a_shared_rank_bounds_the_cores_of_loras():
    tasks = [random_increments(ALL["lora_all"], seed) for seed in range(2)]
    assert Cores.of(tasks, rank=4).cores.shape == (2, 16, 4, 4)


def test_dare_is_right_in_the_mean():
    a = random_increments(FacTTT(2))
    np.testing.assert_allclose(dense(dare(a, 0.0, 0)), dense(a), atol=1e-4)
    several = [dare(a, 0.5, seed) for seed in range(400)]
    errors = [(one - a).norm / a.norm for one in several]
    assert 0.8 < np.mean(errors) < 1.2  # sqrt(drop / (1 - drop)) of the norm
    mean = Increments(*(several[0].u, several[0].s, several[0].v))
    cores = np.mean([dense(one) for one in several], axis=0)
    assert np.linalg.norm(cores - dense(a)) < 0.1 * a.norm
    assert mean.norm > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda a: average([]), "the list is empty"),
        (lambda a: average([a, a], [1.0]), "expected one for each of 2 tasks"),
        (lambda a: average([a, a], [1.0, -1.0]), "sum that is not 0"),
        (lambda a: ties([a], density=0.0), "density is 0.0"),
        (lambda a: dare(a, 1.0, 0), "drop is 1.0"),
        (lambda a: a + Increments(a.u[:, :6], a.s, a.v), "different ViTs"),
    ],
)
def test_mistakes_are_answered(wrong, words: str):
    with pytest.raises(UserError, match=words):
        wrong(random_increments(FacTTT(2)))
