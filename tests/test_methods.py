"""What holds for every tuning method: sizes, initial values, gradients, randomness, combinations.

tests/parity compares the methods with PyTorch; test_fact.py has FacT-TT and FacT-TK in detail.
"""

import ast
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fact_jax
from fact_jax import (
    Adaptation,
    LowRank,
    UserError,
    ViT,
    ViTConfig,
    combine,
    features,
    get_variant,
    merge,
)
from fact_jax.backbone.adaptation import SITES, Affine, Bottleneck, Prompts
from fact_jax.backbone.vit import init_base
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

VIT_B16 = get_variant("vit_b16")
ALL = {
    "linear": Linear(),
    "full": Full(),
    "bitfit": BitFit(),
    "adapter_noah": Adapter(5),
    "adapter_houlsby": Adapter(5, "houlsby"),
    "adaptformer": AdaptFormer(5, scale=0.5),
    "adaptformer_norm": AdaptFormer(5, scale=0.5, layer_norm=True),
    "adaptformer_petl": AdaptFormer(5, scale=0.5, form="petl"),
    "lora_qv": LoRA(3),
    "lora_all": LoRA(3, sites="q,k,v,o,fc1,fc2"),
    "lora_noah": LoRA(3, sites="q,k,v", shared_input=True),
    "ssf": SSF(),
    "convpass": Convpass(4),
    "convpass_attention": Convpass(4, attention_only=True),
    "repadapter": RepAdapter(4),
    "repadapter_attention": RepAdapter(4, attention_only=True),
    "vpt_shallow": VPTShallow(3),
    "vpt_deep": VPTDeep(3),
    "fact_tt": FacTTT(3),
    "fact_tk": FacTTK(3),
    "fact_cp": FacTCP(3),
    "fact_shared_layer": FacTShared(2),
    "fact_shared_kind": FacTShared(2, share="kind"),
}
EVERYTHING = Combination(
    tuple((name, ALL[name]) for name in (
        "convpass", "adapter_houlsby", "adaptformer_norm", "repadapter", "vpt_shallow", "vpt_deep",
        "ssf", "lora_all", "fact_tt", "bitfit",
    ))
)  # fmt: skip
every_method = pytest.mark.parametrize("name", ALL)
# One of each kind, for what takes long to compile.
KINDS = ["linear", "full", "adapter_houlsby", "adaptformer_petl", "lora_qv", "ssf", "convpass",
         "repadapter", "vpt_shallow", "vpt_deep", "fact_cp", "fact_shared_kind"]  # fmt: skip
KEY_BIAS = "Transformer/encoderblock/MultiHeadDotProductAttention_1/key/bias"


def method_of(name):
    return EVERYTHING if name == "everything" else ALL[name]


def random_factors(method, config, base, seed=0):
    """Every entry random: what begins at zero would hide mistakes. 0.3 changes the features."""
    rng, leaves = np.random.default_rng(seed), named(base)
    structs = jax.eval_shape(lambda b: method.init(jax.random.key(0), config, b), base)

    def factor(name, shape):
        start = leaves.get(name.rpartition("bitfit/")[2], float(name.endswith("_scale")))
        return jnp.asarray(start + 0.3 * rng.normal(size=shape), jnp.float32)

    return {name: factor(name, struct.shape) for name, struct in structs.items()}


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(k.key for k in keys): leaf for keys, leaf in leaves}


@functools.cache
def compiled(model):
    """``f(base, images, adaptation, key=, dropout_rate=, drop_path_rate=)``: features."""
    return jax.jit(functools.partial(features, model))


def adapted(name, model, base, images, seed=0, **training):
    """Features of a method with random factors."""
    method = method_of(name)
    factors = random_factors(method, model.config, base, seed)
    return compiled(model)(base, images, method.adaptation(factors, model.config), **training)


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
    (Adapter(8), {
        "_down": (normal, 0.02), "_up": (normal, 0.02), "_bias": (constant, 0),
    }),
    (Adapter(8, "houlsby"), {
        "_down": (cut_normal, 0.01), "_up": (cut_normal, 0.01), "_bias": (constant, 0),
    }),
    (AdaptFormer(8, layer_norm=True), {
        "down": (uniform, 768**-0.5), "up": (constant, 0), "down_bias": (constant, 0),
        "up_bias": (constant, 0), "norm_scale": (constant, 1), "norm_bias": (constant, 0),
    }),
    (AdaptFormer(8, form="petl"), {"down": (uniform, 768**-0.5), "up": (constant, 0)}),
    (LoRA(8, sites="q,fc1,fc2"), {
        "A_q": (uniform, 768**-0.5), "A_fc1": (uniform, 768**-0.5), "A_fc2": (uniform, 3072**-0.5),
        "B_q": (constant, 0), "B_fc1": (constant, 0), "B_fc2": (constant, 0),
    }),
    (LoRA(8, sites="q,k,v", shared_input=True), {
        "A": (normal, 0.02), "B_q": (normal, 0.02), "B_k": (normal, 0.02), "B_v": (normal, 0.02),
    }),
    (SSF(), {"_scale": (normal, 0.02, 1.0), "_shift": (normal, 0.02)}),
    (Convpass(8), {
        "_down": xavier(768, 8), "_up": (constant, 0), "_conv": (constant, IDENTITY),
        "_bias": (constant, 0),
    }),
    (Convpass(8, xavier=True), {
        "_down": xavier(768, 8), "_up": (constant, 0), "_conv": xavier(9 * 8, 9 * 8),
        "_bias": (constant, 0),
    }),
    (RepAdapter(8), {"_down": xavier(768, 8), "_up": (constant, 0), "_bias": (constant, 0)}),
    (VPTShallow(50), {"tokens": xavier(3 * 16**2, 768)}),
    (VPTDeep(10), {"tokens": xavier(3 * 16**2, 768)}),
    (FacTCP(32), {"U": (uniform, 768**-0.5), "C": (uniform, 1.0), "V": (constant, 0)}),
    (FacTShared(4), {"U": (uniform, 768**-0.5), "S": (uniform, 0.5), "V": (constant, 0)}),
]  # fmt: skip


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


@every_method
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


# --- Training mode


@pytest.mark.parametrize("name", KINDS)
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
        base, images, adaptation,
        key=jax.random.key(0), dropout_rate=None, drop_path_rate=np.float32(1 - 2**-23),
    )  # fmt: skip

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
            ViT(config), base, jnp.zeros((300, 16, 16, 3)), adaptation, key=key,
            dropout_rate=0.5, drop_path_rate=jnp.float32(0.5),
        )  # fmt: skip

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


@pytest.mark.parametrize("name", [*KINDS, "everything"])
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


@pytest.mark.parametrize("name", ["full", "convpass", "vpt_deep", "fact_shared_kind", "everything"])
def test_trials_under_vmap_are_each_as_alone(name, small_vit, images):
    """In training mode: factors, scale, key and rates have the axis."""
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


@pytest.mark.parametrize("name", ["full", "ssf", "convpass", "vpt_deep", "everything"])
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
    """In training mode, with the masks drawn again."""
    model, base = small_vit
    factors = random_factors(EVERYTHING, model.config, base)

    def gradients(**changes):
        config = model.config.replace(**changes)

        @jax.jit
        @jax.grad
        def run(factors, base):
            adaptation = EVERYTHING.adaptation(factors, config, 0.3)
            x = features(
                ViT(config), base, images, adaptation, key=jax.random.key(3),
                dropout_rate=np.float32(0.2), drop_path_rate=np.float32(0.2),
            )  # fmt: skip
            return (x**2).sum()

        return run(factors, base)

    expected = gradients(remat="none")
    for changes in ({"remat": "attention"}, {"remat": "block"}, {"unroll": True}):
        for name, gradient in gradients(**changes).items():
            error = np.abs(gradient - expected[name]).max()
            bound = np.abs(expected[name]).max()
            assert error <= 2e-4 * bound or name.endswith(("key/bias", "k_shift")), (name, changes)


# --- Prompts


def hidden_prompts(config, count=4):
    """Tokens that would change everything if anybody saw them."""
    tokens = 10 * jax.random.normal(jax.random.key(9), (config.depth, count, config.width))
    return Prompts(tokens, hidden=jnp.ones((config.depth, count), bool))


@pytest.mark.parametrize("name", ["linear", "convpass", "adaptformer_norm", "fact_tt", "ssf"])
@pytest.mark.parametrize("size", [16, 24])
def test_hidden_prompts_change_nothing(name, size, small_vit):
    """Neither the patches' places in the position table (interpolated at 24 pixels) nor those in
    Convpass's image."""
    model, base = small_vit
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")
    own = ALL[name].adaptation(random_factors(ALL[name], model.config, base), model.config)
    prompts = hidden_prompts(model.config)
    x = compiled(model)(base, images, own)
    y = compiled(model)(base, images, combine([Adaptation(prompts=prompts), own]))
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    seen = Adaptation(prompts=dataclasses.replace(prompts, hidden=None))
    assert np.abs(compiled(model)(base, images, combine([seen, own])) - x).max() > 0.1


def test_a_hidden_prompt_among_others_is_as_if_left_out(small_vit, images):
    """By block: what is hidden in one may be seen in the next. Its gradient is zero."""
    model, base = small_vit
    config, run = model.config, compiled(model)
    tokens = jax.random.normal(jax.random.key(4), (config.depth, 3, config.width))
    hidden = jnp.zeros((config.depth, 3), bool).at[:, 1].set(True)
    some = run(base, images, Adaptation(prompts=Prompts(tokens, hidden=hidden)))
    fewer = run(base, images, Adaptation(prompts=Prompts(tokens[:, ::2])))
    np.testing.assert_allclose(some, fewer, rtol=1e-4, atol=1e-5)

    def loss(tokens, hidden):
        return (run(base, images, Adaptation(prompts=Prompts(tokens, None, hidden))) ** 3).sum()

    gradient = jax.grad(loss)(tokens, jnp.zeros((config.depth, 3), bool).at[1, 2].set(True))
    zero = np.abs(gradient).max(axis=-1) == 0
    np.testing.assert_array_equal(zero, np.eye(3)[1][:, None] * np.eye(3)[2] > 0)


def test_kept_prompts_are_handed_on_and_others_replaced(small_vit, images):
    """VPT-shallow's later tokens do nothing, VPT-deep's earlier ones reach no later block."""
    model, base = small_vit
    config = model.config
    shallow = ALL["vpt_shallow"]
    prompts = shallow.adaptation(random_factors(shallow, config, base), config).prompts

    @jax.jit
    def run(tokens, kept):
        changes = Adaptation(prompts=Prompts(tokens, kept))
        return features(model, base, images, changes)

    x = run(prompts.tokens, prompts.kept)
    later = prompts.tokens.at[1:].set(7.0)
    np.testing.assert_array_equal(run(later, prompts.kept), x)
    none = jnp.zeros_like(prompts.kept)
    assert np.abs(run(later, none) - x).max() > 1e-2
    assert np.abs(run(prompts.tokens.at[0].set(7.0), prompts.kept) - x).max() > 1e-2


# --- Combinations


def test_a_combination_is_its_parts(small_vit):
    """Factors under the parts' names, each initialised by its own key; the scales multiply."""
    model, base = small_vit
    parts = (("one", FacTTT(3, scale=0.5)), ("two", LoRA(2, scale=3.0)), ("three", LoRA(2)))
    both = Combination(parts, scale=2.0)
    factors = both.init(jax.random.key(0), model.config, base)
    assert factors.keys() == {
        "one/U", "one/S", "one/V",
        *(f"{part}/{f}" for part in ("two", "three") for f in ("A_q", "B_q", "A_v", "B_v")),
    }  # fmt: skip
    assert np.any(factors["two/A_q"] != factors["three/A_q"])
    factors = random_factors(both, model.config, base)
    for scale, times in ((None, 2.0), (0.1, 0.1)):
        expected = combine(
            [
                part.adaptation(
                    {k.split("/")[1]: v for k, v in factors.items() if k.startswith(name)},
                    model.config,
                    times * part.scale,
                )
                for name, part in parts
            ]
        )
        actual = both.adaptation(factors, model.config, scale)
        assert jax.tree.structure(actual) == jax.tree.structure(expected)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            jax.tree.leaves(actual),
            jax.tree.leaves(expected),
        )


def test_increments_add_up(small_vit, images):
    """Whatever the form: qkv in one go and pairs of their own, one after the other merged."""
    model, base = small_vit
    parts = [ALL[name] for name in ("fact_tt", "lora_all", "lora_noah", "fact_shared_kind")]
    adaptations = [
        p.adaptation(random_factors(p, model.config, base, i), model.config, 0.3)
        for i, p in enumerate(parts)
    ]
    together = combine(adaptations)
    dense = {
        site: sum(pair.increment() for a in adaptations for pair in a.site(site)) for site in SITES
    }
    for site, expected in dense.items():
        actual = sum(pair.increment() for pair in together.site(site))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    one_by_one = functools.reduce(merge, adaptations, base)
    run = compiled(model)
    x, y = run(base, images, together), run(one_by_one, images, Adaptation())
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    assert np.abs(x - run(base, images, combine(adaptations[1:]))).max() > 0.05


def bottleneck(config, seed, activation="relu"):
    down, up = (
        jax.random.normal(key, shape) / shape[1] ** 0.5
        for key, shape in zip(
            jax.random.split(jax.random.key(seed)),
            ((config.depth, config.width, 4), (config.depth, 4, config.width)),
            strict=True,
        )
    )
    return Bottleneck(down, up, activation=activation)


@pytest.mark.parametrize("place", ["before_mlp", "after_mlp", "beside_mlp", "across_mlp"])
def test_bypasses_of_one_place_act_in_the_order_given(place, small_config, images):
    """before and after: the second one sees what the first one made; beside and across: a sum."""
    config = small_config.replace(depth=1)
    base = init_base(config, jax.random.key(0))
    model = ViT(config)
    f, g = bottleneck(config, 1), bottleneck(config, 2)

    def run(*several):
        parts = [Adaptation(bypasses={place: (b,)}) for b in several]
        return compiled(model)(base, images, combine(parts))

    x, y = run(f, g), run(g, f)
    chained = place in ("before_mlp", "after_mlp")
    assert (np.abs(x - y).max() > 1e-2) == chained
    both = combine([Adaptation(bypasses={place: (b,)}) for b in (f, g)])
    assert [b.down is c.down for b, c in zip(both.bypasses[place], (f, g), strict=True)] == [
        True
    ] * 2
    # An identity in front changes nothing, and neither does one behind.
    nothing = dataclasses.replace(f, up=jnp.zeros_like(f.up))
    np.testing.assert_allclose(run(nothing, f), run(f), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(f, nothing), run(f), rtol=1e-5, atol=1e-5)


def test_affines_act_one_after_the_other():
    rng = np.random.default_rng(0)
    first, second, y = (rng.normal(size=(2, 3, 5)).astype("float32") for _ in range(3))
    one, two = (Affine(*a[:, 0]) for a in (first, second))
    parts = [
        Adaptation(affines={"q": a}, patches=a, final=a) for a in (one, two)
    ]  # fmt: skip
    together = combine([parts[0], Adaptation(), parts[1]])
    for affine in (together.affines["q"], together.patches, together.final):
        np.testing.assert_allclose(affine(y), two(one(y)), rtol=1e-5, atol=1e-6)
    assert np.abs(two(one(y)) - one(two(y))).max() > 0.1  # the order matters


def test_prompts_stand_side_by_side(small_vit, images):
    """Shallow and deep ones; a shallow prompt of blocks' own tokens is a deep one."""
    model, base = small_vit
    config = model.config
    shallow, deep = (
        ALL[n].adaptation(random_factors(ALL[n], config, base), config)
        for n in ("vpt_shallow", "vpt_deep")
    )
    both = combine([shallow, deep]).prompts
    np.testing.assert_array_equal(
        both.tokens, np.concatenate([shallow.prompts.tokens, deep.prompts.tokens], 1)
    )
    assert both.kept.tolist() == [[False] * 6, *[[True] * 3 + [False] * 3] * 2]
    assert both.hidden is None
    x, y = (
        compiled(model)(base, images, combine(order))
        for order in ([shallow, deep], [deep, shallow])
    )
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)  # no position: no order
    with_hidden = combine([Adaptation(prompts=hidden_prompts(config)), shallow, deep])
    z = compiled(model)(base, images, with_hidden)
    np.testing.assert_allclose(z, x, rtol=1e-4, atol=1e-5)


def test_methods_that_train_the_same_weights_clash(small_vit):
    model, base = small_vit
    both = Combination((("full", Full()), ("bitfit", BitFit())))
    factors = both.init(jax.random.key(0), model.config, base)
    with pytest.raises(UserError, match=r"train the same weights \(Transformer/.*and others\)"):
        both.adaptation(factors, model.config)
    one = Adaptation(weights={"cls": base["cls"]})
    with pytest.raises(UserError, match=r"train the same weights \(cls\)\. Leave one of them out"):
        combine([one, Adaptation(), one])


def test_increments_are_added_to_replaced_weights(small_vit, images):
    model, base = small_vit
    full, lora = (
        ALL[n].adaptation(random_factors(ALL[n], model.config, base), model.config)
        for n in ("full", "lora_qv")
    )
    x = compiled(model)(base, images, combine([full, lora]))
    y = compiled(model)(merge(base, full), images, lora)
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def test_nothing_combines_to_nothing():
    assert jax.tree.leaves(combine([])) == []
    pair = LowRank(jnp.ones((1, 2, 1)), jnp.ones((1, 1, 2)))
    assert combine([Adaptation(), Adaptation(q=pair)]).q is pair


# --- Settings and structure


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: Adapter(8, "behind"), "placement is 'behind'; expected one of"),
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
        (lambda: RepAdapter(0), "width 0"),
        (lambda: RepAdapter(5, 5).init(jax.random.key(0), VIT_B16), "width 768 is not a multiple"),
        (lambda: VPTDeep(0), "num_tokens is 0"),
        (lambda: VPTShallow(-1), "num_tokens is -1"),
        (lambda: FacTCP(0), "rank is 0"),
        (lambda: FacTShared(share="all"), "share is 'all'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        settings()


def test_every_method_of_the_table_is_tested_here():
    elsewhere = {NOAH, NOAHSubnet}  # test_noah.py
    assert {type(m) for m in ALL.values()} | elsewhere == set(METHODS.values())


SOURCES = Path(fact_jax.__file__).parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_no_method_file_imports_another_method_s(method):
    others = {other.__module__ for other in METHODS.values()} - {method.__module__}
    path = SOURCES.parent / Path(*method.__module__.split(".")).with_suffix(".py")
    found = set(imports(path))
    assert "fact_jax.backbone.adaptation" in found  # imports are seen
    assert not found & (others | {"fact_jax.tuning"})


def test_the_vit_knows_no_method():
    """No import, and no name or word of the code (docstrings apart) that is a method's."""
    names = {word.lower() for word in (*METHODS, *(m.__name__ for m in METHODS.values()))}
    names -= {"linear", "full"}  # words
    for path in (SOURCES / "backbone").glob("*.py"):
        assert not any("tuning" in name for name in imports(path)), path
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
        y, _ = ViT(config).apply({"params": base}, images, adaptation, mutable="intermediates")
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
