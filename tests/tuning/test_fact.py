"""FacT-TT and FacT-TK against the formulas written out slice by slice."""

import itertools

import numpy as np
import pytest
from tried_methods import random_factors

from fact_jax import FacTTK, FacTTT
from fact_jax.backbone.adaptation import SITES

ATTENTION = ("q", "k", "v", "o")


def in_slices(u, cores, v, site):
    """U S V for each square slice, fc1 cut along its output, fc2 along its input."""
    return np.concatenate([u @ core @ v for core in cores], axis=1 if site == "fc1" else 0)


def tt_increment(factors, layer, site):
    u, s, v = (np.asarray(factors[k], np.float64) for k in "USV")
    if site in ATTENTION:
        return u @ s[layer, ATTENTION.index(site)] @ v
    return in_slices(u, s[layer, 4:8] if site == "fc1" else s[layer, 8:], v, site)


def tk_increment(factors, layer, site, released):
    """The released code's steps, in its own PyTorch layout where the reshape matters."""
    u, c, p, v = (np.asarray(factors[k], np.float64) for k in "UCPV")
    r = u.shape[1]
    columns = c @ p[:, 12 * layer : 12 * layer + 12]  # [r, r, 12]: contracts the third index
    if site in ATTENTION:
        return u @ columns[:, :, ATTENTION.index(site)] @ v
    cores = columns[:, :, 4:8] if site == "fc1" else columns[:, :, 8:12]  # [r, r, 4]
    if not released:
        return in_slices(u, np.moveaxis(cores, -1, 0), v, site)
    flat = cores.reshape(r, 4 * r)  # no permutation: column = j * 4 + slice
    # fc1: x U @ flat gives 4r values, cut into 4 groups of r, V on each. fc2: the 4 parts of x
    # through U, side by side (4r values), times flat transposed, V.
    parts = np.split(flat, 4, axis=1) if site == "fc1" else np.split(flat.T, 4)
    return in_slices(u, parts, v, site)


@pytest.mark.parametrize("rank", [1, 5])
@pytest.mark.parametrize("form", ["tt", "released", "formula"])
def test_increments_are_the_released_code_or_the_formula(small_config, form, rank):
    method = FacTTT(rank, 0.7) if form == "tt" else FacTTK(rank, 10.0, mlp_cores=form)
    factors = random_factors(method, small_config, {})
    adaptation = method.adaptation(factors, small_config)
    for site, layer in itertools.product(SITES, range(small_config.depth)):
        if form == "tt":
            expected = tt_increment(factors, layer, site)
        else:
            expected = tk_increment(factors, layer, site, form == "released")
        actual = adaptation.site(site)[0].increment()[layer]
        np.testing.assert_allclose(actual, method.scale * expected, rtol=1e-4, atol=1e-5)
