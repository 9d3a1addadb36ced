"""Properties of every tuning method: sizes, initial values, gradients, randomness.

tests/parity compares the methods with PyTorch; test_fact.py has FacT-TT and FacT-TK in detail.
"""

import ast
import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import ALL, EVERYTHING, adapted, compiled, method_of, named, random_factors

import fact_jax
from fact_jax import Adaptation, UserError, ViT, ViTConfig, features, get_variant
from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.block import norm
from fact_jax.backbone.vit import init_base
from fact_jax.ranges import allowed_values
from fact_jax.tuning import (
    METHODS,
    NOAH,
    SSF,
    Adapter,
    AdaptFormer,
    BitFit,
    Combination,
    Convpass,
    FacTCP,
    FacTShared,
    FacTTK,
    FacTTT,
    Full,
    Linear,
    LoRA,
    NOAHSubnet,
    RepAdapter,
    VPTDeep,
    VPTShallow,
    count_parameters,
)
from fact_jax.tuning.registry import build_stored, describe

VIT_B16 = get_variant("vit_b16")
every_method = pytest.mark.parametrize("name", ALL)
# One for each way in which a method changes the ViT.
CHANGES = ["full", "adapter_houlsby", "lora_qv", "ssf", "convpass", "repadapter", "vpt_deep"]
TRAINED = [*CHANGES, "bitfit", "adaptformer_norm", "lora_all", "fact_tt"]
# All of them together: a program of half a minute.
TOGETHER = pytest.param("everything", marks=pytest.mark.slow)
KEY_BIAS = "Transformer/encoderblock/MultiHeadDotProductAttention_1/key/bias"


# --- Sizes

NUMBERS = [  # fact_facts.md, section 6, where it has the number; else the source's shapes
    (Linear(), 0),
    (Full(), 85_798_656),
    (BitFit(), 102_912),
    (Adapter(8), 156_768),
    (Adapter(8, "houlsby"), 2 * 156_768),
    (AdaptFormer(8), 156_768),
    (AdaptFormer(8, layer_norm=True), 156_768 + 12 * 2 * 768),
    (AdaptFormer(8, form="petl"), 147_456),
    (LoRA(8), 294_912),
    (LoRA(8, sites="q,k,v", shared_input=True), 294_912),
    (LoRA(8, sites="q,k,v,o,fc1,fc2"), 12 * 8 * (4 * 2 * 768 + 2 * 5 * 768)),
    (SSF(), 205_824),
    (Convpass(8), 327_552),
    (Convpass(8, attention_only=True), 327_552 // 2),
    (RepAdapter(8), 24 * (768 * 8 + 8 + 768 * 8 // 2 + 768)),
    (RepAdapter(8, attention_only=True), 12 * (768 * 8 + 8 + 768 * 8 // 2 + 768)),
    (VPTShallow(50), 50 * 768),
    (VPTDeep(10), 12 * 10 * 768),
    (FacTTT(16), 61_440),
    (FacTTK(32), 86_528),
    (FacTCP(32), 2 * 768 * 32 + 144 * 32),
    (FacTShared(4), 2 * 12 * 768 * 4 + 144 * 16),
    (FacTShared(4, share="kind"), 2 * 12 * 768 * 4 + 144 * 16),
    (Combination((("fact", FacTTT(16)), ("vpt", VPTDeep(10)))), 61_440 + 92_160),
]


@pytest.mark.parametrize(("method", "number"), NUMBERS, ids=[str(m) for m, _ in NUMBERS])
def test_parameter_counts_on_vit_b16(method, number):
    base = jax.eval_shape(lambda: init_base(VIT_B16, jax.random.key(0)))
    factors = jax.eval_shape(lambda b: method.init(jax.random.key(0), VIT_B16, b), base)
    assert count_parameters(factors) == number
    assert all(leaf.dtype == jnp.float32 for leaf in factors.values())


# --- Initial values


@pytest.mark.parametrize("name", ALL)
def test_the_effect_at_initialisation_is_the_source_s(name, small_vit, images):
    """None for most; SSF, prompts, and adapters and NOAH's LoRA (of random weights) have one."""
    model, base = small_vit
    before = np.asarray(compiled(model)(base, images, Adaptation()))
    factors = ALL[name].init(jax.random.key(0), model.config, base)
    adaptation = ALL[name].adaptation(factors, model.config)
    after = np.asarray(compiled(model)(base, images, adaptation))
    if name in ("ssf", "vpt_shallow", "vpt_deep"):
        assert np.abs(after - before).max() > 0.05
    elif name in ("adapter_houlsby", "adapter_noah", "lora_noah"):  # small numbers, twice
        assert 1e-5 < np.abs(after - before).max() < 0.05
    else:
        np.testing.assert_allclose(after, before, atol=2e-6)


def moments(x, deviation, mean=0.0):
    """Within five deviations of what so many numbers have."""
    assert np.std(x) == pytest.approx(deviation, rel=5 * (2 * x.size) ** -0.5)
    assert abs(np.mean(x) - mean) < 5 * deviation * x.size**-0.5


def uniform(x, bound):
    moments(x, bound / 3**0.5)
    assert 0.98 * bound < np.abs(x).max() <= bound


def normal(x, deviation, mean=0.0):
    moments(x, deviation, mean)
    assert np.abs(x - mean).max() > 2.1 * deviation  # neither uniform nor cut at two


def cut_normal(x, deviation):
    moments(x, 0.8796 * deviation)
    assert 1.98 * deviation < np.abs(x).max() <= 2 * deviation


def constant(x, value):
    np.testing.assert_array_equal(x, np.broadcast_to(value, x.shape))


def xavier(rows, columns):
    return uniform, (6 / (rows + columns)) ** 0.5


IDENTITY = np.zeros((3, 3, 8, 8)) + np.eye(8) * (np.arange(9) == 4).reshape(3, 3, 1, 1)
# Of ViT-B/16, by the ends of the factors' names: (check, numbers).
INITIAL = [
    (
        Adapter(8),
        {
            "_down": (normal, 0.02),
            "_up": (normal, 0.02),
            "_bias": (constant, 0),
        },
    ),
    (
        Adapter(8, "houlsby"),
        {
            "_down": (cut_normal, 0.01),
            "_up": (cut_normal, 0.01),
            "_bias": (constant, 0),
        },
    ),
    (
        AdaptFormer(8, layer_norm=True),
        {
            "down": (uniform, 768**-0.5),
            "up": (constant, 0),
            "down_bias": (constant, 0),
            "up_bias": (constant, 0),
            "norm_scale": (constant, 1),
            "norm_bias": (constant, 0),
        },
    ),
    (AdaptFormer(8, form="petl"), {"down": (uniform, 768**-0.5), "up": (constant, 0)}),
    (
        LoRA(8, sites="q,fc1,fc2"),
        {
            "A_q": (uniform, 768**-0.5),
            "A_fc1": (uniform, 768**-0.5),
            "A_fc2": (uniform, 3072**-0.5),
            "B_q": (constant, 0),
            "B_fc1": (constant, 0),
            "B_fc2": (constant, 0),
        },
    ),
    (
        LoRA(8, sites="q,k,v", shared_input=True),
        {
            "A": (normal, 0.02),
            "B_q": (normal, 0.02),
            "B_k": (normal, 0.02),
            "B_v": (normal, 0.02),
        },
    ),
    (SSF(), {"_scale": (normal, 0.02, 1.0), "_shift": (normal, 0.02)}),
    (
        Convpass(8),
        {
            "_down": xavier(768, 8),
            "_up": (constant, 0),
            "_conv": (constant, IDENTITY),
            "_bias": (constant, 0),
        },
    ),
    (
        Convpass(8, xavier=True),
        {
            "_down": xavier(768, 8),
            "_up": (constant, 0),
            "_conv": xavier(9 * 8, 9 * 8),
            "_bias": (constant, 0),
        },
    ),
    (RepAdapter(8), {"_down": xavier(768, 8), "_up": (constant, 0), "_bias": (constant, 0)}),
    (VPTShallow(50), {"tokens": xavier(3 * 16**2, 768)}),
    (VPTDeep(10), {"tokens": xavier(3 * 16**2, 768)}),
    (FacTCP(32), {"U": (uniform, 768**-0.5), "C": (uniform, 1.0), "V": (constant, 0)}),
    (FacTShared(4), {"U": (uniform, 768**-0.5), "S": (uniform, 0.5), "V": (constant, 0)}),
]


@pytest.mark.parametrize(("method", "expected"), INITIAL, ids=[str(m) for m, _ in INITIAL])
def test_initial_values_are_the_source_s(method, expected):
    factors = method.init(jax.random.key(3), VIT_B16)
    for name, x in factors.items():
        (end,) = [e for e in sorted(expected, key=len, reverse=True) if name.endswith(e)][:1]
        check, *numbers = expected[end]
        check(np.asarray(x), *numbers)
        if check is not constant:  # no two of a factor's blocks are the same draw
            assert len(x) == 1 or len({part.tobytes() for part in np.asarray(x)}) == len(x)
    drawn = [x for x in factors.values() if np.ptp(x) > 0 and np.size(np.unique(x[0])) > 2]
    assert len({np.asarray(x).tobytes() for x in drawn}) == len(drawn)  # nor two factors


@pytest.mark.parametrize("method", [Full(), BitFit()])
def test_weights_begin_at_the_base_s(method, small_vit):
    model, base = small_vit
    factors = method.init(jax.random.key(0), model.config, base)
    leaves = named(base)
    assert factors.keys() == {n for n in leaves if n.endswith("/bias") or method == Full()}
    for name, x in factors.items():
        np.testing.assert_array_equal(x, leaves[name])
    with pytest.raises(UserError, match="give init\\(\\) the base"):
        method.init(jax.random.key(0), model.config)


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


@pytest.mark.parametrize("name", [name for name in ALL if name != "linear"])
def test_every_factor_reaches_the_adaptation(name, small_vit):
    """The test above goes on from there, through each part of the ViT."""
    model, base = small_vit
    method = ALL[name]

    @jax.jit
    @jax.grad
    def gradients(factors):
        arrays = jax.tree.leaves(method.adaptation(factors, model.config))
        return sum((x.astype(jnp.float32) ** 3).sum() for x in arrays)

    for factor, gradient in gradients(random_factors(method, model.config, base)).items():
        assert np.count_nonzero(gradient) > 0.97 * gradient.size, factor


# --- Training mode


@pytest.mark.parametrize("name", CHANGES)
def test_randomness_is_the_key_s_and_acts_where_there_is_some(name, small_vit, images):
    model, base = small_vit
    x = np.asarray(adapted(name, model, base, images))

    def run(seed, *rates):
        rates = dict(zip(("dropout_rate", "drop_path_rate"), np.float32(rates), strict=True))
        return np.asarray(adapted(name, model, base, images, key=jax.random.key(seed), **rates))

    np.testing.assert_array_equal(run(1, 0.3, 0.3), run(1, 0.3, 0.3))
    assert np.abs(run(1, 0.3, 0.3) - run(2, 0.3, 0.3)).max() > 1e-2
    np.testing.assert_allclose(run(1, 0, 0), x, rtol=1e-4, atol=1e-4)
    assert np.abs(run(1, 0, 0.3) - x).max() > 1e-2
    if name in ("linear", "full", "bitfit", "ssf"):  # their sources drop nothing
        np.testing.assert_array_equal(run(1, 0.3, 0.3), run(1, 0, 0.3))
    else:
        assert np.abs(run(1, 0.3, 0) - x).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "survives"),
    [
        ("adapter_noah", True),  # behind stochastic depth: sees a zero
        ("adapter_houlsby", True),
        ("adaptformer", True),  # no stochastic depth on the bypass
        ("adaptformer_petl", True),
        ("convpass", False),  # one of its own
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
    run = compiled(model)
    dropped = run(
        base,
        images,
        adaptation,
        key=jax.random.key(0),
        dropout_rate=None,
        drop_path_rate=np.float32(1 - 2**-23),
    )

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

    @jax.jit
    def run(base, key):
        return features(
            ViT(config),
            base,
            jnp.zeros((300, 16, 16, 3)),
            adaptation,
            key=key,
            dropout_rate=0.5,
            drop_path_rate=jnp.float32(0.5),
        )

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


@pytest.mark.parametrize("name", [*CHANGES, TOGETHER])
def test_the_last_block_of_the_class_token_alone(name, small_vit, images):
    """`mutable="intermediates"` runs the last block on all tokens."""
    model, base = small_vit
    method = method_of(name)
    adaptation = method.adaptation(random_factors(method, model.config, base), model.config)

    @jax.jit
    def whole(adaptation, base):
        return model.apply({"params": base}, images, adaptation, mutable="intermediates")

    x, state = whole(adaptation, base)
    np.testing.assert_allclose(adapted(name, model, base, images), x, rtol=1e-4, atol=1e-4)
    prompts = 0 if adaptation.prompts is None else adaptation.prompts.tokens.shape[1]
    tokens = state["intermediates"]["blocks"][0]["tokens"]
    shape = (model.config.depth, 5, model.config.num_tokens + prompts, model.config.width)
    assert tokens.shape == shape


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
    if name.startswith(("linear", "full", "bitfit", "adapter_", "ssf", "vpt")):
        assert not any(changed)
    else:
        assert any(changed)


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
            x = features(
                ViT(config),
                base,
                images,
                adaptation,
                key=jax.random.key(3),
                dropout_rate=np.float32(0.2),
                drop_path_rate=np.float32(0.2),
            )
            return (x**2).sum()

        return run(factors, base)

    expected = gradients(remat="none")
    for changes in ({"remat": "attention"}, {"remat": "block"}, {"unroll": True}):
        for name, gradient in gradients(**changes).items():
            error = np.abs(gradient - expected[name]).max()
            bound = np.abs(expected[name]).max()
            assert error <= 2e-4 * bound or name.endswith(("key/bias", "k_shift")), (name, changes)


# --- Settings and structure


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Adapter(8, "behind"), "placement is 'behind'; expected 'noah' or 'houlsby'"),
        (lambda: Adapter(0), "width is 0"),
        (lambda: AdaptFormer(form="own"), "form is 'own'"),
        (lambda: AdaptFormer(form="petl", layer_norm=True), "has no LayerNorm"),
        (lambda: AdaptFormer(0), "width is 0"),
        (lambda: Convpass(0), "width is 0"),
        (lambda: LoRA(0), "rank is 0"),
        (lambda: LoRA(sites="q,x"), "sites is 'q,x'"),
        (lambda: LoRA(sites="q,q"), "sites is 'q,q'"),
        (lambda: LoRA(sites=""), "sites is ''"),
        (lambda: LoRA(sites="q,fc1", shared_input=True), "share no A"),
        (lambda: RepAdapter(8, groups=3), "not a multiple of groups 3"),
        (lambda: RepAdapter(0), "width is 0"),
        (lambda: RepAdapter(5, 5).init(jax.random.key(0), VIT_B16), "width 768 is not a multiple"),
        (lambda: VPTDeep(0), "num_tokens is 0"),
        (lambda: VPTShallow(-1), "num_tokens is -1"),
        (lambda: FacTCP(0), "rank is 0"),
        (lambda: FacTShared(share="all"), "share is 'all'"),
        (lambda: LoRA(sites=3), "sites is 3; expected a text"),
        (lambda: LoRA(shared_input="no"), "shared_input is 'no'; expected True or False"),
        (lambda: AdaptFormer(layer_norm=True, layer_norm_eps=0.0), "layer_norm_eps is 0.0"),
        (lambda: Combination((("lora", LoRA()),), scale=float("nan")), "scale is nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        settings()


SIZES = {"rank", "width", "num_tokens", "groups", "population", "generations", "supernet_epochs"}


@pytest.mark.parametrize("kind", METHODS.values(), ids=METHODS)
def test_every_setting_of_every_method_has_a_range(kind):
    fields = dataclasses.fields(kind)
    given = {f.name: (1, 1) for f in fields if f.default is dataclasses.MISSING}  # a subnet's rows
    assert allowed_values(kind).keys() == {f.name for f in fields}
    kind(**given)
    wrong = {"scale": (math.nan, math.inf, "1", True, None, 10**400)}
    wrong |= {
        f.name: ("4", 0, -1, True, 2.5, 4.0, math.nan, 65_537) for f in fields if f.name in SIZES
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(UserError, match=f"{name} is .*; expected a"):
                kind(**{**given, name: value})


def test_numpy_s_numbers_become_python_s():
    """A method is a key, and can be written as JSON."""
    method = FacTTT(np.int64(4), np.float32(0.5))
    assert (type(method.rank), type(method.scale)) == (int, float)
    assert method == FacTTT(4, 0.5)
    assert NOAH([1, 2]).widths == (1, 2)


def test_adaptformer_s_own_norm_has_its_code_s_epsilon(small_config):
    """torch.nn.LayerNorm's 1e-5, whatever the ViT's; None is the ViT's, as before November 2026."""
    config = small_config.replace(layer_norm_eps=0.5)
    weights = {"scale": jnp.ones(24), "bias": jnp.zeros(24)}
    x = 1e-3 * jax.random.normal(jax.random.key(0), (2, 3, 24))
    for epsilon, expected in ((1e-5, 1e-5), (None, 0.5)):
        method = AdaptFormer(2, layer_norm=True, layer_norm_eps=epsilon)
        factors = method.init(jax.random.key(0), config)
        (f,) = method.adaptation(factors, config).bypasses["across_mlp"]
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + expected)
        np.testing.assert_allclose(norm(config, weights, x, f.norm_eps), y, rtol=1e-4, atol=1e-6)
    assert AdaptFormer().layer_norm_eps == 1e-5


def test_a_factor_file_without_the_epsilon_has_the_vit_s():
    """Files of earlier versions do not name it, and were trained with the ViT's."""
    old = {"width": 2, "layer_norm": True}
    assert build_stored("adaptformer", old) == AdaptFormer(2, layer_norm=True, layer_norm_eps=None)
    both = build_stored("adaptformer+lora", {"adaptformer": old, "lora": {}, "scale": 1.0})
    assert dict(both.parts)["adaptformer"].layer_norm_eps is None
    name, settings = describe(AdaptFormer(2, layer_norm=True))
    assert build_stored(name, settings).layer_norm_eps == 1e-5


def test_every_method_of_the_table_is_tested_here():
    elsewhere = {NOAH, NOAHSubnet}  # test_noah.py
    assert {type(m) for m in ALL.values()} | elsewhere == set(METHODS.values())


SOURCES = Path(fact_jax.__file__).parent


def test_the_vit_knows_no_method():
    """No name or word of the code, docstrings apart, is a method's; lint checks the imports."""
    names = {word.lower() for word in (*METHODS, *(m.__name__ for m in METHODS.values()))}
    names -= {"linear", "full"}  # words
    for path in (SOURCES / "backbone").glob("*.py"):
        words = set()
        for node in ast.walk(ast.parse(path.read_text())):
            fields = (getattr(node, f, None) for f in ("id", "attr", "arg", "name"))
            words |= {field.lower() for field in fields if isinstance(field, str)}
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words |= {node.value.lower()}  # whole strings: a docstring is none of the names
        assert words, path
        assert not words & names, path


def test_config_of_another_depth(images):
    """A ViT of one block has no first and last one apart."""
    config = ViTConfig(width=24, depth=1, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
    base = init_base(config, jax.random.key(0))
    for name in ("convpass", "vpt_shallow", "ssf", "adapter_houlsby"):
        factors = random_factors(ALL[name], config, base)
        adaptation = ALL[name].adaptation(factors, config)
        x = compiled(ViT(config))(base, images, adaptation)
        whole = jax.jit(functools.partial(ViT(config).apply, mutable="intermediates"))
        y, _ = whole({"params": base}, images, adaptation)
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
