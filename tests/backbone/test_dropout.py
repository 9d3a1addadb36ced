"""Dropout in rank space and stochastic depth, their masks read off the real forward pass.

The networks here have frozen kernels of zero and biases such that every masked number appears by
itself in the output of a layer. Letters: `l` layer, `b` image, `n` token, `g` slice of fc1, `r`
rank. Bounds are five standard deviations of what independent draws would give.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from tried_methods import random_factors

from fact_jax import Adaptation, FacTTT, LowRank, ViT, ViTConfig, features, normalise
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.block import Block, Mode
from fact_jax.backbone.dense import dropout
from fact_jax.backbone.vit import init_base
from fact_jax.training.evaluation import Merged, merged, predict
from fact_jax.training.mesh import make_mesh
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, train_set

CONFIG = ViTConfig(width=8, depth=4, num_heads=2, mlp_dim=32, patch_size=4, image_size=8)
RANK, RATE = 4, 0.3
METHOD = FacTTT(RANK)


def bare_base(config):
    """All zero, but both norms of a block put out ones, whatever comes in."""
    base = jax.tree.map(jnp.zeros_like, init_base(config, jax.random.key(0)))
    blocks = base["Transformer"]["encoderblock"]
    for name in ("LayerNorm_0", "LayerNorm_2"):
        blocks[name]["bias"] += 1
    return base, blocks


def intermediates(config, base, count, key, adaptation=None, dropout_rate=0.0, drop_path_rate=0.0):
    """Outputs of each block for so many black images, in training mode."""
    _, state = ViT(config).apply(
        {"params": base},
        jnp.zeros((count, 8, 8, 3)),
        adaptation,
        True,
        dropout_rate,
        drop_path_rate,
        rngs={"dropout": key},
        mutable="intermediates",
    )
    return state["intermediates"]["blocks"][0]


@pytest.fixture(scope="module")
def draw():
    """``draw(key, rate) -> {site: array [l, b, n, g, r]}``, each number 0 or 1/(1 - rate).

    Six pairs put one on every rank-r value, and the outputs' first r columns (of each slice) show
    them. The last column carries a constant to the sites whose input is itself computed: value ->
    output projection, fc1 -> GELU (10 stays 10) -> fc2.
    """
    base, blocks = bare_base(CONFIG)
    d, depth = CONFIG.width, CONFIG.depth
    attention, mlp = blocks["MultiHeadDotProductAttention_1"], blocks["MlpBlock_3"]
    attention["value"]["bias"] = attention["value"]["bias"].at[:, -1].set(1.0)
    mlp["Dense_0"]["bias"] = mlp["Dense_0"]["bias"].at[:, -1].set(10.0)
    shown = jnp.broadcast_to(jnp.eye(RANK, d), (depth, RANK, d))

    def pair(rows, columns, weight, only_last=False):
        a = jnp.zeros((depth, rows, columns))
        a = a.at[:, -1].set(weight) if only_last else a + weight
        return LowRank(a, shown)

    adaptation = Adaptation(
        **{site: pair(d, RANK, 1 / d) for site in "qkv"},
        o=pair(d, RANK, 1.0, only_last=True),
        fc1=pair(d, 4 * RANK, 1 / d),
        fc2=pair(4 * d, RANK, 0.1, only_last=True),
    )

    @jax.jit
    def run(key, rate):
        return intermediates(CONFIG, base, 400, key, adaptation, dropout_rate=rate)

    def draw(key, rate):
        kept = run(key, jnp.float32(rate))
        return {
            s: np.asarray(kept[s]).reshape(*kept[s].shape[:3], -1, d)[..., :RANK] for s in SITES
        }

    return draw


def correlation(x, y):
    """The correlation of two arrays of masks, in standard deviations of independent ones."""
    x, y = (v.ravel() - v.mean() for v in (x, y))
    return float(x @ y / np.sqrt((x @ x) * (y @ y)) * np.sqrt(x.size))


@pytest.mark.parametrize("site", SITES)
def test_rank_space_masks_are_independent_draws_of_the_rate_and_scaled(draw, site):
    """Along layers, images, tokens, the slices of fc1, and the rank-r values."""
    np.testing.assert_allclose(draw(jax.random.key(4), 0.0)[site], 1.0, rtol=1e-6)
    masks = draw(jax.random.key(0), RATE)[site]
    groups = 4 if site == "fc1" else 1
    assert masks.shape == (CONFIG.depth, 400, CONFIG.num_tokens, groups, RANK)
    kept = masks > 0
    np.testing.assert_allclose(masks, np.where(kept, 1 / (1 - RATE), 0), rtol=1e-5)
    sigma = np.sqrt(RATE * (1 - RATE) / kept.size)
    assert abs(kept.mean() - (1 - RATE)) < 5 * sigma
    # Of every layer, token, slice and rank-r value, not only on average.
    each = kept.mean(axis=1)
    assert np.abs(each - (1 - RATE)).max() < 5 * np.sqrt(RATE * (1 - RATE) / kept.shape[1])
    for axis, size in enumerate(kept.shape):
        for shift in range(1, min(size, 4)):
            first, second = (
                np.take(kept, range(start, size - shift + start), axis) for start in (0, shift)
            )
            assert abs(correlation(first, second)) < 5, (axis, shift)


def test_rank_space_masks_are_independent_between_sites_and_keys(draw):
    """Two steps have two keys; the same key gives the same masks."""
    now, again, later = (draw(jax.random.key(i), RATE) for i in (2, 2, 3))
    for site in SITES:
        np.testing.assert_array_equal(now[site], again[site])
        assert abs(correlation(now[site] > 0, later[site] > 0)) < 5
    for pair in itertools.combinations(SITES, 2):
        first, second = (now[site][..., 0, :] > 0 for site in pair)
        assert abs(correlation(first, second)) < 5, pair


@pytest.fixture(scope="module")
def depth_masks():
    """``(key, rate) -> [l, b, n, 2]``: what attention (0) and MLP (1) add in each block.

    Both branches put out their bias, a one in a column of its own, and every block's output is
    the sum so far.
    """
    base, blocks = bare_base(CONFIG)
    attention, mlp = blocks["MultiHeadDotProductAttention_1"], blocks["MlpBlock_3"]
    attention["out"]["bias"] = attention["out"]["bias"].at[:, 0].set(1.0)
    mlp["Dense_1"]["bias"] = mlp["Dense_1"]["bias"].at[:, 1].set(1.0)

    @jax.jit
    def run(key, rate):
        return intermediates(CONFIG, base, 2000, key, drop_path_rate=rate)["tokens"]

    def draw(key, rate):
        tokens = np.asarray(run(key, jnp.float32(rate)))
        return np.diff(tokens, axis=0, prepend=0)[..., :2]

    return draw


def test_stochastic_depth_drops_branches_of_whole_images_at_linear_rates(depth_masks):
    rate, depth = 0.6, CONFIG.depth
    masks = depth_masks(jax.random.key(0), rate)
    assert np.ptp(masks, axis=2).max() < 1e-5  # all tokens of an image alike
    masks = masks[:, :, 0]
    for layer in range(depth):
        keep = 1 - rate * layer / (depth - 1)
        kept = masks[layer] > 0.5
        np.testing.assert_allclose(masks[layer], np.where(kept, 1 / keep, 0), rtol=1e-5, atol=1e-5)
        sigma = np.sqrt(keep * (1 - keep) / kept.shape[0])
        assert np.all(np.abs(kept.mean(axis=0) - keep) <= 5 * sigma), layer
    assert np.all(masks[0] == 1)  # 0 -> p: the first block is never dropped


def test_stochastic_depth_draws_branches_layers_images_and_steps_apart(depth_masks):
    now, later = (depth_masks(jax.random.key(i), 0.6)[1:, :, 0] > 0.5 for i in (1, 2))
    drawn = [*now.transpose(0, 2, 1).reshape(-1, 2000), *later.transpose(0, 2, 1).reshape(-1, 2000)]
    for first, second in itertools.combinations(drawn, 2):
        assert abs(correlation(first, second)) < 5
    for images in drawn:
        assert abs(correlation(images[1:], images[:-1])) < 5


def test_a_block_projects_its_tokens_once_for_query_key_and_value():
    """The first product [b, n, d] x [d, r] is for q, k and v, the others for the output projection
    and fc1."""
    base = init_base(CONFIG, jax.random.key(0))
    weights = jax.tree.map(lambda x: x[0], base["Transformer"]["encoderblock"])
    factors = METHOD.init(jax.random.key(0), CONFIG)
    adaptation = jax.tree.map(lambda x: x[0], METHOD.adaptation(factors, CONFIG).blocks())
    n, d = CONFIG.num_tokens, CONFIG.width

    mode = Mode(jax.random.key(0), RATE, RATE)
    block = Block(CONFIG, weights, adaptation, mode)
    jaxpr = jax.make_jaxpr(lambda x: block(x)[0])(jnp.zeros((2, n, d)))
    shapes = [
        [v.aval.shape for v in e.invars]
        for e in equations(jaxpr.jaxpr)
        if e.primitive.name in ("dot_general", "factor_product")
    ]
    assert shapes.count([(2, n, d), (d, RANK)]) == 3


def test_without_a_key_the_rates_do_not_act(small_vit, images):
    """tests/tuning/test_methods.py tests what methods do with a rate."""
    model, base = small_vit
    adaptation = METHOD.adaptation(random_factors(METHOD, model.config, base), model.config)
    plain = features(model, base, images, adaptation)
    rates = {"dropout_rate": 0.9, "drop_path_rate": 0.9}
    np.testing.assert_array_equal(plain, features(model, base, images, adaptation, **rates))


def test_the_evaluation_programs_draw_no_random_number(small_vit):
    model, base = small_vit
    config, factors = model.config, random_factors(METHOD, model.config, base)
    trained = Merged(base, Adaptation(), {"kernel": jnp.zeros((24, 3)), "bias": jnp.zeros(3)})
    uint8 = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    for program in (
        jax.make_jaxpr(merged, (0, 1))(METHOD, config, base, factors, scale=1.0),
        jax.make_jaxpr(predict, (0, 1))(config, "none", trained, 3, uint8),
    ):
        assert "random" not in str(program)
        assert "threefry" not in str(program)
    trained = jax.make_jaxpr(
        lambda key: features(model, base, normalise(uint8, "none"), key=key, drop_path_rate=0.1)
    )
    assert "random_bits" in str(trained(jax.random.key(0)))  # the word to look for


def test_each_training_step_and_epoch_has_its_own_masks(small_vit):
    """All images are one image, and nothing is learnt: the losses differ by the masks alone."""
    model, base = small_vit
    factors = random_factors(METHOD, model.config, base)
    step = TrainStep(model, METHOD, "none", 4, make_mesh(4, jax.devices()[:1]))
    image = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3)).astype(np.uint8)
    data = train_set(np.repeat(image, 24, 0), np.zeros(24, np.int32), 3)
    # Of 3 blocks only two are ever dropped: two steps may well drop as much.
    for *rates, different in ((0.0, 0.0, 0), (0.3, 0.0, 17), (0.0, 0.3, 12)):
        hyper = Hyper(*map(jnp.float32, (0, 0, 1, *rates)))
        losses = []
        for seed, epoch in ((0, 0), (0, 1), (1, 0)):
            state = step.init(0, 3, 3)
            trainable = {**state.trainable, "factors": jax.tree.map(jnp.copy, factors)}  # donated
            state = dataclasses.replace(state, trainable=trainable)
            trial = Trial(data, hyper, seed)
            losses.extend(np.asarray(step.alone(base, state, trial, epoch)[1]))
        assert len(losses) == 18
        gaps = np.sum(np.diff(np.sort(losses)) > 1e-5)
        assert gaps == 0 if different == 0 else gaps >= different, rates


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_keeps_the_expectation_to_the_fourth_digit(dtype):
    """Dividing by bfloat16's 1 - 0.1, which is 0.8984, would add 0.17 %."""
    x = jax.random.uniform(jax.random.key(0), (200_000,), minval=1.0, maxval=2.0).astype(dtype)
    y = dropout(x, jnp.float32(0.1), jax.random.key(1))
    assert y.dtype == x.dtype
    kept = np.asarray(y) != 0
    ratio = np.asarray(y, np.float64)[kept].sum() / np.asarray(x, np.float64)[kept].sum()
    assert ratio == pytest.approx(1 / 0.9, rel=1e-4)


def test_stochastic_depth_in_bfloat16_divides_by_the_true_probability():
    """0.9 again, in the second of two blocks, whose MLP branch adds 1.5."""
    config = CONFIG.replace(depth=2, dtype="bfloat16")
    base, blocks = bare_base(config)
    bias = blocks["MlpBlock_3"]["Dense_1"]["bias"]
    blocks["MlpBlock_3"]["Dense_1"]["bias"] = bias.at[1].add(1.5)
    rate = jnp.float32(0.1)
    tokens = intermediates(config, base, 50, jax.random.key(0), drop_path_rate=rate)["tokens"]
    nearest = 1.6640625  # to 1.5 / 0.9; 1.5 / 0.8984 would give 1.671875
    assert set(np.unique(np.asarray(tokens[1, ..., 1], np.float32))) == {0.0, nearest}
