"""FacT-TT and FacT-TK against the formulas written out slice by slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fact_jax import FacTTK, FacTTT, LowRank, UserError, get_variant
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.dense import adapted_dense
from fact_jax.tuning import count_parameters

ATTENTION = ("q", "k", "v", "o")


def random_factors(method, config, seed=0):
    """Factors with every entry random: V is zero at the start, which would hide mistakes."""
    structs = jax.eval_shape(lambda: method.init(jax.random.key(0), config))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype("float32") * 0.3, structs)


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
@pytest.mark.parametrize("rank", [1, 4, 5])
def test_tt_increment_is_the_formula(small_config, rank, site):
    method = FacTTT(rank, scale=0.7)
    factors = random_factors(method, small_config)
    actual = method.adaptation(factors, small_config).site(site)[0].increment()
    for layer in range(small_config.depth):
        expected = 0.7 * tt_increment(factors, small_config, layer, site)
        np.testing.assert_allclose(actual[layer], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("mlp_cores", ["released", "formula"])
@pytest.mark.parametrize("rank", [1, 4, 5])
def test_tk_increment_is_the_released_code_or_the_formula(small_config, rank, mlp_cores, site):
    method = FacTTK(rank, scale=10.0, mlp_cores=mlp_cores)
    factors = random_factors(method, small_config)
    actual = method.adaptation(factors, small_config).site(site)[0].increment()
    for layer in range(small_config.depth):
        expected = 10 * tk_increment(factors, small_config, layer, site, mlp_cores == "released")
        np.testing.assert_allclose(actual[layer], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rank", "tt", "tk"),
    [(4, 8_448, 6_784), (8, 21_504, 13_952), (16, 61_440, 30_976), (32, 196_608, 86_528)],
)
def test_parameter_counts_on_vit_b16(rank, tt, tk):
    config = get_variant("vit_b16")
    for method, expected in ((FacTTT(rank), tt), (FacTTK(rank), tk)):
        structs = jax.eval_shape(lambda m=method: m.init(jax.random.key(0), config))
        assert count_parameters(structs) == expected


@pytest.mark.parametrize("method", [FacTTT(8), FacTTK(8), FacTTK(8, mlp_cores="formula")])
def test_no_effect_at_initialisation(small_config, method):
    adaptation = method.adaptation(method.init(jax.random.key(0), small_config), small_config)
    for site in SITES:
        assert not np.any(adaptation.site(site)[0].increment())


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


def test_dropout_acts_on_the_rank_space():
    """The increment's output is the dropped rank activations, as a and b are identities."""
    rank, rate = 16, 0.25
    pair = LowRank(jnp.eye(rank), jnp.eye(rank))
    x = jnp.ones((200, 50, rank))
    zero = {"kernel": jnp.zeros((rank, rank)), "bias": jnp.zeros(rank)}
    (y,) = map(np.asarray, adapted_dense(x, [zero], pair, jnp.float32(rate), jax.random.key(0)))
    values, counts = np.unique(y, return_counts=True)
    np.testing.assert_allclose(values, [0.0, 1 / (1 - rate)], rtol=1e-6)
    assert counts[0] / y.size == pytest.approx(rate, abs=0.01)
    # Independent between examples, tokens and rank components.
    centred = (y > 0) - (1 - rate)
    for axis in range(3):
        both = (centred * np.roll(centred, 1, axis)).mean() / (rate * (1 - rate))
        assert abs(both) < 0.02


def test_fc1_drops_each_group_apart():
    """FacT drops all 4r values of fc1, not r values shared by its four slices."""
    pair = LowRank(jnp.ones((1, 4)), jnp.ones((1, 1)))  # r = 1, g = 4
    x = jnp.ones((4000, 1))
    zero = {"kernel": jnp.zeros((1, 4)), "bias": jnp.zeros(4)}
    (y,) = adapted_dense(x, [zero], pair, 0.5, jax.random.key(0))
    correlation = np.corrcoef((np.asarray(y) > 0).T) - np.eye(4)
    assert np.abs(correlation).max() < 0.08


def test_bad_settings_are_refused(small_config):
    with pytest.raises(UserError, match="rank is 0"):
        FacTTT(0)
    with pytest.raises(UserError, match="mlp_cores is 'paper'"):
        FacTTK(4, mlp_cores="paper")
    with pytest.raises(UserError, match="multiple of width 24"):
        FacTTT(4).init(jax.random.key(0), small_config.replace(mlp_dim=100))
