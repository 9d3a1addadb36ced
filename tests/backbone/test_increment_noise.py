"""Noise of increments: where it acts, how it falls with depth, and what it leaves alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import random_factors

from fact_jax import FacTTT, ViT, features
from fact_jax.backbone.adaptation import SITES, Bottleneck, LowRank
from fact_jax.backbone.block import Block, Mode
from fact_jax.backbone.noise import IncrementNoise, levels, takes_noise
from fact_jax.tuning import SSF, Adapter, BitFit, CaRA, Convpass, DoRA, Full, Linear, LoRA, VPTDeep

KEY = jax.random.key(3)


def test_the_levels_are_those_of_the_released_code():
    """train.py: blocks 0 to l - 1 and the head, which has the number l."""
    for depth in (2, 3, 12):
        released = np.concatenate([np.zeros(1), np.linspace(0, 1.0, depth + 1)[-1:0:-1]])
        np.testing.assert_allclose(levels(depth), released, rtol=1e-6)


def test_z_has_one_factor_for_each_image_and_channel_and_the_moments_of_its_sigma():
    noise = IncrementNoise(KEY, 0.5)
    z = np.asarray(noise.times(jnp.ones((400, 3, 50))))
    np.testing.assert_array_equal(z, np.broadcast_to(z[:, :1], z.shape))
    assert len(np.unique(z)) > 0.99 * 400 * 50
    np.testing.assert_allclose([z.mean(), z.std()], [1.0, 0.5], atol=0.01)
    other = np.asarray(noise.times(jnp.ones((400, 3, 50)), 1))
    assert abs(np.corrcoef(z[:, 0].ravel(), other[:, 0].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("method", [FacTTT(2), Adapter(2)], ids=["fact_tt", "adapter"])
def test_the_noise_acts_from_the_second_block_on(small_vit, images, method, layer):
    """An adaptation of one block alone shows what that block's noise does."""
    model, base = small_vit
    adaptation = method.adaptation(random_factors(method, model.config, base), model.config)
    adaptation = jax.tree.map(lambda x: x * jnp.zeros_like(x).at[layer].set(1), adaptation)
    plain = features(model, base, images, adaptation, merged=False)
    noisy = features(model, base, images, adaptation, increment_noise=IncrementNoise(KEY, 0.5))
    silent = features(model, base, images, adaptation, increment_noise=IncrementNoise(KEY, 0.0))
    np.testing.assert_allclose(silent, plain, rtol=1e-4, atol=1e-5)
    assert (np.abs(noisy - plain).max() > 1e-3) == (layer > 0)


def test_a_block_multiplies_each_increment_and_each_bottleneck(small_config, small_vit):
    """Each of them alone, by the z of its own place in the order of the keys."""
    _, base = small_vit
    weights = jax.tree.map(lambda x: x[0], base["Transformer"]["encoderblock"])
    rng, d, mlp = np.random.default_rng(0), small_config.width, small_config.mlp_dim
    x = jnp.asarray(rng.normal(size=(2, 17, d)), jnp.float32)
    noise = IncrementNoise(KEY, 0.7)

    def drawn(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)

    def run(changes, mode):
        return Block(small_config, weights, changes, mode)(x)

    empty = FacTTT(2).adaptation(FacTTT(2).init(KEY, small_config), small_config).blocks()
    empty = dataclasses.replace(empty, **dict.fromkeys((*SITES, "qkv")))
    for number, site in enumerate(SITES):
        widths = {"fc1": (d, mlp), "fc2": (mlp, d)}.get(site, (d, d))
        pair = LowRank(drawn(widths[0], 2), drawn(2, widths[1]))
        changes = dataclasses.replace(empty, **{site: pair})
        _, frozen = run(empty, Mode())
        _, plain = run(changes, Mode(merged=False))
        _, noisy = run(changes, Mode(increment_noise=noise))
        added = plain[site] - frozen[site]
        expected = frozen[site] + noise.times(added, number)
        np.testing.assert_allclose(noisy[site], expected, rtol=1e-4, atol=1e-5)
    f = Bottleneck(drawn(d, 3), drawn(3, d), up_bias=drawn(d), activation="relu")
    changes = dataclasses.replace(empty, bypasses={"after_mlp": (f,)})
    y, plain = (run(of, Mode())[0] for of in (empty, changes))
    noisy = run(changes, Mode(increment_noise=noise))[0]
    np.testing.assert_allclose(noisy, y + noise.times(plain - y, 6), rtol=1e-4, atol=1e-4)


def test_what_takes_noise_is_decided_by_the_changes(small_config, small_vit):
    def takes(method):
        factors = random_factors(method, small_config, small_vit[1])
        return takes_noise(method.adaptation(factors, small_config))

    assert all(map(takes, (FacTTT(2), LoRA(2), Adapter(2), Convpass(2))))
    assert not any(map(takes, (Linear(), BitFit(), SSF(), VPTDeep(2), Full())))


@pytest.mark.parametrize(
    ("method", "increments"),
    [(CaRA(2), ("A2", "P2")), (DoRA(2), ("B_q", "B_v"))],
    ids=["biases of cara", "norms of dora"],
)
def test_what_is_no_increment_has_no_noise(small_vit, images, method, increments):
    model, base = small_vit
    factors = random_factors(method, model.config, base)
    noise = IncrementNoise(KEY, 0.5)

    def outputs(factors, **noise):
        adaptation = method.adaptation(factors, model.config)
        return np.asarray(features(model, base, images, adaptation, merged=False, **noise))

    noisy = outputs(factors, increment_noise=noise)
    assert np.abs(noisy - outputs(factors)).max() > 1e-3
    factors |= {name: jnp.zeros_like(factors[name]) for name in increments}
    plain = outputs(factors)
    np.testing.assert_allclose(outputs(factors, increment_noise=noise), plain, rtol=1e-4, atol=1e-5)
    frozen = np.asarray(features(model, base, images))
    assert np.abs(plain - frozen).max() > 1e-3


def test_rematerialisation_and_bfloat16_draw_the_same_noise(small_vit, images):
    model, base = small_vit
    method = FacTTT(2)
    factors = random_factors(method, model.config, base)
    noise = IncrementNoise(KEY, 0.5)

    def gradient(**changes):
        vit = ViT(model.config.replace(**changes))

        def loss(factors):
            adaptation = method.adaptation(factors, vit.config)
            return (features(vit, base, images, adaptation, increment_noise=noise) ** 2).mean()

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(factors))

    plain = gradient()
    for name, value in gradient(remat="block").items():
        np.testing.assert_allclose(value, plain[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for name, value in gradient(dtype="bfloat16").items():
        scale = np.abs(plain[name]).max()
        assert np.abs(value - plain[name]).max() < 0.1 * scale, name
