"""Factors at a smaller rank: exact where it suffices, near the best elsewhere, of the old sizes."""

import dataclasses

import numpy as np
import pytest
from made_up import CONFIG, random_factors

from fact_jax import FacTCP, FacTTK, FacTTT, LoRA, UserError
from fact_jax.algebra.increments import Increments
from fact_jax.algebra.reduction import reduced, reducible
from fact_jax.algebra.rounding import round_to
from fact_jax.tuning import Adapter, Linear, MetaTT, MetaTTHeads
from fact_jax.tuning.method import factor_shapes

METHODS = [
    FacTTT(5, 2.0),
    FacTTK(5, 2.0),
    FacTTK(5, mlp_cores="formula"),
    FacTCP(5),
    LoRA(5),
    MetaTT(5, 2.0),
    MetaTTHeads(4),
]

# Not FacT-CP, whose best factors are not found for sure, and not FacT-TK's released order of cores,
# which depends on the rank.
EXACT = [m for m in METHODS if not isinstance(m, FacTCP) and m != FacTTK(5, 2.0)]


def error_of(result, method, factors):
    increments = Increments.of(method, factors, CONFIG)
    difference = increments - Increments.of(result.method, result.factors, CONFIG)
    return difference.norm / increments.norm


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_smaller_rank_has_the_error_that_it_says_and_arrays_of_the_old_sizes(method):
    factors = random_factors(method)
    result = reduced(method, factors, 2, CONFIG)
    assert result.method == dataclasses.replace(method, rank=2)
    shapes = {name: x.shape for name, x in result.factors.items()}
    assert shapes == factor_shapes(result.method, CONFIG)
    assert 0 < result.error < 1
    np.testing.assert_allclose(error_of(result, method, factors), result.error, rtol=1e-4)
    sizes = {k: np.sqrt((np.asarray(x) ** 2).mean()) for k, x in result.factors.items()}
    before = {k: np.sqrt((x**2).mean()) for k, x in factors.items()}
    for site in {name.partition("_")[2] for name in sizes}:
        ratios = [sizes[n] / before[n] for n in sizes if n.partition("_")[2] == site]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


@pytest.mark.parametrize("method", EXACT, ids=repr)
def test_a_rank_that_suffices_loses_nothing(method):
    """The factors of rank 2, among zeros up to the rank."""
    small = dataclasses.replace(method, rank=2)
    factors = {
        name: np.pad(x, [(0, to - n) for n, to in zip(x.shape, shape, strict=True)])
        for (name, x), shape in zip(
            random_factors(small).items(), factor_shapes(method, CONFIG).values(), strict=True
        )
    }
    result = reduced(method, factors, 2, CONFIG)
    assert result.error < 1e-5
    assert error_of(result, method, factors) < 1e-5


def test_a_chain_is_nearly_as_near_as_the_best_tensor_train():
    """MetaTT's cores are products, so that FacT-TT's free ones are never farther away."""
    method = MetaTT(5)
    factors = random_factors(method)
    free = round_to(FacTTT(3), Increments.of(method, factors, CONFIG), CONFIG).error
    assert free < reduced(method, factors, 3, CONFIG).error < 2 * free


def test_what_cannot_be_reduced_is_known_before_and_refused():
    assert all(reducible(method) for method in METHODS)
    assert not any(reducible(m) for m in (Linear(), Adapter(4), LoRA(4, shared_input=True)))
    zero = {name: 0 * x for name, x in random_factors(MetaTT(3)).items()}
    with pytest.raises(UserError, match="all zero"):
        reduced(MetaTT(3), zero, 2, CONFIG)
    lora = LoRA(3)
    factors = random_factors(lora)
    factors["B_v"] = 0 * factors["B_v"]
    with pytest.raises(UserError, match="a site may have no increment yet"):
        reduced(lora, factors, 2, CONFIG)
