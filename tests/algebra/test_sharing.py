"""Laws of a dictionary that is made of trained tasks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import CONFIG, dense, random_factors, random_increments
from tried_methods import ALL

from fact_jax import FacTTK, FacTTT, LoRA, UserError
from fact_jax.algebra import Increments, conditioned, round_to, share
from fact_jax.tuning.method import Method

KINDS: list[Method] = [FacTTT(2, 3.0), FacTTK(2, 3.0, "formula")]


@pytest.mark.parametrize("method", [FacTTT(6, 0.5), FacTTK(32, 0.5, "formula")])
def test_enough_rank_keeps_two_tasks_exactly_and_their_dictionary_is_one(method: Method):
    several = [random_increments(FacTTT(3, 1.0), seed) for seed in range(2)]
    several[1] = 100.0 * several[1]
    rounded = share(several, method, CONFIG)
    for one, task in zip(several, rounded, strict=True):
        assert task.error < 1e-5
        wanted = dense(one)
        actual = dense(Increments.of(task.method, task.factors, CONFIG))
        np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())
    for name in method.shared:  # type: ignore[attr-defined]
        np.testing.assert_array_equal(rounded[0].factors[name], rounded[1].factors[name])


@settings(max_examples=8, deadline=None)
@given(method=st.sampled_from(KINDS), seed=st.integers(0, 99), factor=st.floats(0.01, 100))
def test_a_task_counts_by_its_directions_and_not_by_its_size(
    method: Method, seed: int, factor: float
):
    a, b = random_increments(ALL["fact_tt"], seed), random_increments(ALL["fact_tt"], seed + 100)
    plain, scaled = share([a, b], method, CONFIG), share([a, factor * b], method, CONFIG)
    for one, other in zip(plain, scaled, strict=True):
        assert one.error == pytest.approx(other.error, abs=1e-3)


@pytest.mark.parametrize("method", [FacTTT(3, 2.0), FacTTK(4, 2.0), FacTTK(4, 2.0, "formula")])
def test_factors_of_unit_size_stand_for_the_same_increments(method: Method):
    trained = {name: 0.01 * x for name, x in random_factors(method).items()}
    factors = conditioned(method, trained)
    wanted = dense(Increments.of(method, trained, CONFIG))
    actual = dense(Increments.of(method, factors, CONFIG))
    np.testing.assert_allclose(actual, wanted, atol=1e-6 * np.abs(wanted).max())
    assert np.linalg.norm(factors["U"]) == pytest.approx(method.rank**0.5)  # type: ignore[attr-defined]
    if isinstance(method, FacTTT):
        np.testing.assert_allclose(factors["V"] @ factors["V"].T, np.eye(3), atol=1e-6)
    zero = method.init(jax.random.key(0), CONFIG)  # V is zero
    assert not dense(Increments.of(method, conditioned(method, zero), CONFIG)).any()


def test_a_rank_above_the_width_keeps_its_shapes():
    method = FacTTT(CONFIG.width + 3)
    trained = random_factors(method)
    factors = conditioned(method, trained)
    assert {n: x.shape for n, x in factors.items()} == {n: x.shape for n, x in trained.items()}
    wanted = dense(Increments.of(method, trained, CONFIG))
    actual = dense(Increments.of(method, factors, CONFIG))
    np.testing.assert_allclose(actual, wanted, atol=1e-5 * np.abs(wanted).max())


def test_one_task_is_rounded_as_alone():
    one = random_increments(ALL["lora_all"], 0)
    (task,) = share([one], FacTTT(3), CONFIG)
    assert task.error == pytest.approx(round_to(FacTTT(3), one, CONFIG).error, abs=1e-5)


def test_what_shares_nothing_is_refused():
    one = random_increments(ALL["fact_tt"])
    zero = Increments.of(FacTTT(2), FacTTT(2).init(jax.random.key(0), CONFIG), CONFIG)
    for several, method, words in [
        ([], FacTTT(2), "the list is empty"),
        ([one, zero], FacTTT(2), "The increments of a task are all zero"),
        ([one], FacTTT(2, 0.0), "The scale is 0"),
        ([one], LoRA(2), "cannot share factors of LoRA"),
    ]:
        with pytest.raises(UserError, match=words):
            share(several, method, CONFIG)
