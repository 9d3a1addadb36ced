"""Properties of every tuning method: effect, gradients, randomness.

tests/parity compares the methods with PyTorch; test_fact.py has FacT-TT and FacT-TK in detail.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import (
    ALL,
    CHANGES,
    EVERYTHING,
    adapted,
    compiled,
    method_of,
    named,
    random_factors,
)

from fact_jax import Adaptation, ViT, features
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import METHODS, NOAH, NOAHSubnet

every_method = pytest.mark.parametrize("name", ALL)
TRAINED = [*CHANGES, "bitfit", "adaptformer_norm"]
# All of them together: a program of half a minute.
TOGETHER = pytest.param("everything", marks=pytest.mark.slow)
FAMILY = ["metatt", "metatt_heads", "metatt_tasks", "lorta", "cara", "efft", "dora"]
KEY_BIAS = "Transformer/encoderblock/MultiHeadDotProductAttention_1/key/bias"


# --- Initial values


@pytest.mark.parametrize(
    "name", [*CHANGES, "lora_noah", "adapter_plus", "fact_tt", "fact_tk", *FAMILY]
)
def test_the_effect_at_initialisation_is_the_source_s(name, small_vit, images):
    """None for most; SSF, prompts, and adapters and NOAH's LoRA (of random weights) have one."""
    model, base = small_vit
    before = np.asarray(compiled(model)(base, images, Adaptation()))
    factors = ALL[name].init(jax.random.key(0), model.config, base)
    adaptation = ALL[name].adaptation(factors, model.config)
    after = np.asarray(compiled(model)(base, images, adaptation))
    if name in ("ssf", "vpt_deep"):
        assert np.abs(after - before).max() > 0.05
    elif name in ("adapter_houlsby", "lora_noah", "adapter_plus"):  # small numbers, twice
        assert 1e-5 < np.abs(after - before).max() < 0.05
    else:
        np.testing.assert_allclose(after, before, atol=2e-6)


# --- Gradients


@pytest.mark.parametrize("name", TRAINED)
def test_gradients_reach_every_parameter_and_no_replaced_one(name, small_vit, images):
    model, base = small_vit
    method, replaces = ALL[name], name in ("full", "bitfit")
    factors = random_factors(method, model.config, base)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1) if replaces else (0,))
    def gradients(factors, base):
        x = features(model, base, images, method.adaptation(factors, model.config))
        return (x**3).sum()

    own, *of_base = gradients(factors, base)
    assert own.keys() == factors.keys()
    for factor, gradient in own.items():
        gradient = np.array(gradient)
        assert np.isfinite(gradient).all(), factor
        if factor in (KEY_BIAS, "k_shift"):  # moves all scores alike: softmax does not see it
            like = own[factor.replace("key/", "query/").replace("k_shift", "q_shift")]
            assert np.abs(gradient).max() < 1e-4 * np.abs(like).max()
            continue
        if factor.endswith("_conv"):
            # Of the last block the class token alone is read, which sees the kernel's centre.
            assert np.all(gradient[-1, 1, 1] != 0)
            assert np.count_nonzero(gradient[-1]) == gradient[-1, 1, 1].size
            gradient = gradient[:-1]
        elif name.startswith("adaptformer"):  # ReLUs may be shut for five class tokens
            assert np.any(gradient[-1] != 0), factor
            gradient = gradient[:-1]
        assert np.count_nonzero(gradient) > 0.97 * gradient.size, factor
        assert all(np.any(part != 0) for part in gradient), factor
    for tree in of_base:  # what the factors stand in for has no say; all else of the net has
        for leaf, gradient in named(tree).items():
            assert np.any(gradient) == (leaf not in factors), leaf


@every_method
def test_every_factor_reaches_the_adaptation(name, small_vit):
    """The test above goes on from there. Along a direction, forward mode is reverse mode."""
    model, base = small_vit
    method = ALL[name]
    factors, direction = (random_factors(method, model.config, base, seed) for seed in (0, 1))

    def loss(factors):
        arrays = jax.tree.leaves(method.adaptation(factors, model.config))
        return sum((x.astype(jnp.float32) ** 3).sum() for x in arrays)

    both = jax.jit(lambda f: (jax.jvp(loss, (f,), (direction,))[1], jax.grad(loss)(f)))
    tangent, gradients = both(factors) if factors else (0.0, {})
    for factor, gradient in gradients.items():
        assert np.count_nonzero(gradient) > 0.97 * gradient.size, factor
    products = sum(jnp.vdot(gradients[f], direction[f]) for f in factors)
    np.testing.assert_allclose(tangent, products, rtol=1e-3)


# --- Training mode


@pytest.mark.parametrize("name", CHANGES)
def test_randomness_is_the_key_s_and_acts_where_there_is_some(name, small_vit, images):
    model, base = small_vit
    x = np.asarray(adapted(name, model, base, images))

    def run(seed, *rates):
        rates = dict(zip(("dropout_rate", "drop_path_rate"), np.float32(rates), strict=True))
        return np.asarray(adapted(name, model, base, images, key=jax.random.key(seed), **rates))

    both = run(1, 0.3, 0.3)
    np.testing.assert_array_equal(run(1, 0.3, 0.3), both)
    assert np.abs(run(2, 0.3, 0.3) - both).max() > 1e-2
    np.testing.assert_allclose(run(1, 0, 0), x, rtol=1e-4, atol=1e-4)
    assert np.abs(run(1, 0, 0.3) - x).max() > 1e-2
    if name in ("full", "ssf"):  # their sources drop nothing
        np.testing.assert_array_equal(run(1, 0, 0.3), both)
    else:
        assert np.abs(run(1, 0.3, 0) - x).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "survives"),
    [
        ("adapter_houlsby", True),  # behind stochastic depth: sees a zero
        ("adaptformer", True),  # no stochastic depth on the bypass
        ("convpass", False),  # one of its own
        ("adapter_plus", False),  # one of its own
        ("repadapter", False),  # within the branch
        ("lora_all", False),
        ("ssf", False),
    ],
)
def test_stochastic_depth_of_a_bypass(name, survives, small_config, images):
    """The last of two blocks is dropped (rate 0 in the first one, all but 1 in the last): what is
    left of it is what a bypass adds beside branches of value zero."""
    config = small_config.replace(depth=2)
    base = init_base(config, jax.random.key(0))
    method, model = ALL[name], ViT(config)
    adaptation = method.adaptation(random_factors(method, config, base), config)
    run, rates = compiled(model), {"dropout_rate": None, "drop_path_rate": np.float32(1 - 2**-23)}
    dropped = run(base, images, adaptation, key=jax.random.key(0), **rates)

    def silent(tree):  # in the last block
        return jax.tree.map(lambda x: x.at[-1].set(0), tree)

    blocks = base["Transformer"]["encoderblock"]
    for site in ("o", "fc2"):
        module, layer = SITES[site]
        blocks[module][layer] = silent(blocks[module][layer])
    kept = dataclasses.replace(
        adaptation,
        **{site: silent(getattr(adaptation, site)) for site in SITES},
        affines={k: silent(v) if k in ("o", "fc2") else v for k, v in adaptation.affines.items()},
    )
    gone = dataclasses.replace(kept, bypasses=silent(adaptation.bypasses))
    with_bypass, without = (run(base, images, a) for a in (kept, gone))
    expected, other = (with_bypass, without) if survives else (without, with_bypass)
    np.testing.assert_allclose(dropped, expected, rtol=1e-4, atol=1e-4)
    if name not in ("lora_all", "ssf", "repadapter"):  # these are silent either way
        assert np.abs(dropped - other).max() > 0.02


@pytest.mark.usefixtures("fresh_traces")
def test_no_two_masks_of_a_block_are_the_same_draw(small_config, monkeypatch):
    """All methods with dropout or stochastic depth at once, 2 blocks: no pair is correlated."""
    config, masks = small_config.replace(depth=2), []
    base = init_base(config, jax.random.key(0))
    factors = EVERYTHING.init(jax.random.key(0), config, base)
    bernoulli = jax.random.bernoulli

    def spy(key, p, shape):
        mask = bernoulli(key, p, shape)
        jax.debug.callback(lambda m: masks.append(np.array(m)), mask, ordered=True)
        return mask

    monkeypatch.setattr(jax.random, "bernoulli", spy)
    adaptation = EVERYTHING.adaptation(factors, config)

    images = jnp.zeros((300, 16, 16, 3))

    @jax.jit
    def run(base, key):
        rates = {"dropout_rate": 0.5, "drop_path_rate": jnp.float32(0.5)}
        return features(ViT(config), base, images, adaptation, key=key, **rates)

    run(base, jax.random.key(1)).block_until_ready()
    jax.effects_barrier()
    # Two prompts' dropouts are one, as the tokens stand side by side; 12 increments (FacT's q, k
    # and v apart here), 7 bottlenecks, and 2 + 2 paths.
    assert len(masks) == 2 * (1 + 12 + 7 + 4)
    drawn = [m.ravel() for m in masks if 0.2 < m.mean() < 0.8]  # not the first block's paths
    short = min(m.size for m in drawn)
    assert short == 300
    assert len(drawn) == len(masks) - 4
    correlation = np.corrcoef(np.stack([m[:short] for m in drawn])) - np.eye(len(drawn))
    # 5 and a half deviations: some 1,000 pairs
    assert np.abs(correlation).max() < 5.5 / short**0.5


# --- The ViT's other ways


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *((n, 3) for n in CHANGES),
        pytest.param("everything", 3, marks=pytest.mark.slow),
        ("convpass", 1),
        ("vpt_deep", 1),
    ],
)
def test_the_last_block_of_the_class_token_alone(name, depth, small_config, images):
    """`mutable="intermediates"` runs the last block on all tokens.

    A ViT of one block has no first and last one apart.
    """
    config = small_config.replace(depth=depth)
    model, base = ViT(config), init_base(config, jax.random.key(0))
    method = method_of(name)
    adaptation = method.adaptation(random_factors(method, config, base), config)

    @jax.jit
    def whole(adaptation, base):
        return model.apply({"params": base}, images, adaptation, mutable="intermediates")

    x, state = whole(adaptation, base)
    np.testing.assert_allclose(adapted(name, model, base, images), x, rtol=1e-4, atol=1e-4)
    prompts = 0 if adaptation.prompts is None else adaptation.prompts.tokens.shape[1]
    tokens = state["intermediates"]["blocks"][0]["tokens"]
    assert tokens.shape == (depth, 5, config.num_tokens + prompts, config.width)


@pytest.mark.parametrize("name", ["full", "convpass", "vpt_deep", "fact_shared_kind", TOGETHER])
def test_trials_under_vmap_are_each_as_alone(name, small_vit, images):
    """Factors, scale, key and rates have the axis, in training mode."""
    model, base = small_vit
    method = method_of(name)
    trials = [
        dict(
            factors=random_factors(method, model.config, base, seed),
            scale=jnp.float32(0.5 + seed),
            key=jax.random.key(seed),
            dropout_rate=jnp.float32(0.1 + 0.3 * seed),
            drop_path_rate=jnp.float32(0.3 - 0.1 * seed),
        )
        for seed in range(2)
    ]

    @jax.jit
    def run(factors, scale, **training):
        adaptation = method.adaptation(factors, model.config, scale)
        return features(model, base, images, adaptation, **training)

    together = jax.vmap(lambda trial: run(**trial))(jax.tree.map(lambda *x: jnp.stack(x), *trials))
    for t, trial in enumerate(trials):
        np.testing.assert_allclose(together[t], run(**trial), rtol=1e-4, atol=1e-4)


@every_method
def test_the_scale_may_be_traced_and_stands_for_the_setting(name, small_vit):
    """It multiplies what the source's s multiplies; methods without one ignore it."""
    model, base = small_vit
    method, config = ALL[name], model.config
    factors = random_factors(method, config, base)
    traced = jax.jit(lambda s: method.adaptation(factors, config, s))(0.25)
    plain = dataclasses.replace(method, scale=0.25).adaptation(factors, config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, plain)
    other = method.adaptation(factors, config, 0.5)
    changed = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (plain, other)), strict=True)]
    said = type(method).__dataclass_fields__["scale"].metadata.get("acts", True)
    assert any(changed) == said
    assert said == (not name.startswith(("linear", "full", "bitfit", "adapter_", "ssf", "vpt")))


@pytest.mark.parametrize("name", ["full", "ssf", "convpass", "vpt_deep", TOGETHER])
def test_in_bfloat16(name, small_vit, images):
    model, base = small_vit
    method, rng = method_of(name), np.random.default_rng(0)
    factors = method.init(jax.random.key(0), model.config, base)
    factors = {k: x + 0.05 * rng.normal(size=x.shape).astype("float32") for k, x in factors.items()}
    adaptation = method.adaptation(factors, model.config)
    half = compiled(ViT(model.config.replace(dtype="bfloat16")))
    x, expected = half(base, images, adaptation), compiled(model)(base, images, adaptation)
    assert x.dtype == jnp.float32
    error = np.abs(x - expected)
    assert error.max() > 1e-4  # it is bfloat16
    assert error.mean() < 0.03 * np.abs(expected).mean()


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient_of_all_methods_together(small_vit, images):
    """The masks of training mode are drawn again."""
    model, base = small_vit
    factors = random_factors(EVERYTHING, model.config, base)

    def gradients(**changes):
        config = model.config.replace(**changes)

        @jax.jit
        @jax.grad
        def run(factors, base):
            adaptation = EVERYTHING.adaptation(factors, config, 0.3)
            rates = dict.fromkeys(("dropout_rate", "drop_path_rate"), np.float32(0.2))
            x = features(ViT(config), base, images, adaptation, key=jax.random.key(3), **rates)
            return (x**2).sum()

        return run(factors, base)

    expected = gradients(remat="none")
    for changes in ({"remat": "attention"}, {"remat": "block"}, {"unroll": True}):
        for name, gradient in gradients(**changes).items():
            error = np.abs(gradient - expected[name]).max()
            bound = np.abs(expected[name]).max()
            assert error <= 2e-4 * bound or name.endswith(("key/bias", "k_shift")), (name, changes)


# --- Structure


def test_every_method_of_the_table_is_tested_here():
    elsewhere = {NOAH, NOAHSubnet}  # test_noah.py
    assert {type(m) for m in ALL.values()} | elsewhere == set(METHODS.values())
