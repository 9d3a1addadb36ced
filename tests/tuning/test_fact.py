"""FacT-TT and FacT-TK against the formulas written out slice by slice."""

import jax
import numpy as np
import pytest
from tried_methods import random_factors

from fact_jax import FacTTK, FacTTT, get_variant
from fact_jax.backbone.adaptation import SITES

ATTENTION = ("q", "k", "v", "o")


def tt_increment(factors, config, layer, site):
    """s U S V for each square slice, fc1 cut along its output, fc2 along its input."""
    u, s, v = (np.asarray(factors[k], np.float64) for k in "USV")
    if site in ATTENTION:
        return u @ s[layer, ATTENTION.index(site)] @ v
    first = 4 if site == "fc1" else 8
    slices = [u @ s[layer, first + i] @ v for i in range(4)]
    return np.concatenate(slices, axis=1 if site == "fc1" else 0)


def tk_increment(factors, config, layer, site, released):
    """The released code's steps, in its own PyTorch layout where the reshape matters."""
    u, c, p, v = (np.asarray(factors[k], np.float64) for k in "UCPV")
    r = u.shape[1]
    columns = c @ p[:, 12 * layer : 12 * layer + 12]  # [r, r, 12]: contracts the third index
    if site in ATTENTION:
        return u @ columns[:, :, ATTENTION.index(site)] @ v
    cores = columns[:, :, 4:8] if site == "fc1" else columns[:, :, 8:12]  # [r, r, 4]
    if not released:
        slices = [u @ cores[:, :, i] @ v for i in range(4)]
        return np.concatenate(slices, axis=1 if site == "fc1" else 0)
    flat = cores.reshape(r, 4 * r)  # no permutation: column = j * 4 + slice
    if site == "fc1":  # x U @ flat -> 4r values, cut into 4 groups of r, V on each
        wide = u @ flat
        return np.concatenate([wide[:, g * r : (g + 1) * r] @ v for g in range(4)], axis=1)
    # fc2: the 4 parts of x through U, side by side (4r values), times flat transposed, V
    return np.concatenate([u @ flat.T[g * r : (g + 1) * r] @ v for g in range(4)], axis=0)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("rank", [1, 5])
def test_tt_increment_is_the_formula(small_config, rank, site):
    method = FacTTT(rank, scale=0.7)
    factors = random_factors(method, small_config, {})
    actual = method.adaptation(factors, small_config).site(site)[0].increment()
    for layer in range(small_config.depth):
        expected = 0.7 * tt_increment(factors, small_config, layer, site)
        np.testing.assert_allclose(actual[layer], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("mlp_cores", ["released", "formula"])
@pytest.mark.parametrize("rank", [1, 5])
def test_tk_increment_is_the_released_code_or_the_formula(small_config, rank, mlp_cores, site):
    method = FacTTK(rank, scale=10.0, mlp_cores=mlp_cores)
    factors = random_factors(method, small_config, {})
    actual = method.adaptation(factors, small_config).site(site)[0].increment()
    for layer in range(small_config.depth):
        expected = 10 * tk_increment(factors, small_config, layer, site, mlp_cores == "released")
        np.testing.assert_allclose(actual[layer], expected, rtol=1e-4, atol=1e-4)


def test_initial_distributions():
    """Uniform within the bounds of the facts: extremes near them, the deviation over sqrt(3)."""
    config = get_variant("vit_b16")

    def check(x, bound):
        assert bound * 0.98 < np.abs(x).max() <= bound
        assert np.std(x) == pytest.approx(bound / 3**0.5, rel=0.03)

    tt = FacTTT(16).init(jax.random.key(1), config)
    check(tt["U"], 768**-0.5)
    assert not np.any(tt["V"])
    check(tt["S"][:, :8], 16**-0.5)  # q, k, v, o, fc1
    check(tt["S"][:, 8:], 64**-0.5)  # fc2: fan-in 4r
    tk = FacTTK(32).init(jax.random.key(2), config)
    check(tk["U"], 768**-0.5)
    assert not np.any(tk["V"])
    check(tk["C"], 3**0.5 / 32)
    check(tk["P"], (6 / (32 + 144)) ** 0.5)
