"""Adaptations that become weights: the same features, and the base as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tried_methods import ALL, compiled, named, random_factors

from fact_jax import Adaptation, UserError, ViT, absorb, merge, unmerge
from fact_jax.backbone.adaptation import Bottleneck, combine
from fact_jax.backbone.vit import init_base
from fact_jax.files.weights import checksum
from fact_jax.tuning import SSF, BitFit, Combination, FacTTT, LoRA, NOAHSubnet, RepAdapter

STAYS = {  # what does not merge, and where it stays
    "adapter_noah": "after_mlp",
    "adapter_houlsby": "after_attention, after_mlp",
    "adapter_plus": "after_block",
    "adaptformer": "across_mlp",
    "adaptformer_norm": "across_mlp",
    "adaptformer_petl": "across_mlp",
    "convpass": "beside_attention, beside_mlp",
    "convpass_attention": "beside_attention",
    "vpt_shallow": "prompts",
    "vpt_deep": "prompts",
}
MERGES = {name: method for name, method in ALL.items() if name not in STAYS}
MERGES["repadapter_4_groups"] = RepAdapter(8, groups=4)
CHOICE = np.array([[2, 0, 1], [1, 2, 0], [0, 1, 2]])  # prompts, LoRA, adapters of three blocks


def adaptation_of(method, config, base, seed=0):
    return method.adaptation(random_factors(method, config, base, seed), config, 0.5)


def test_of_noah_s_subnet_the_lora_merges(small_vit, images):
    model, base = small_vit
    adaptation = adaptation_of(NOAHSubnet.of(CHOICE), model.config, base)
    with pytest.raises(UserError, match="it has prompts, after_mlp, which"):
        merge(base, adaptation)
    weights, rest = absorb(base, adaptation)
    assert rest.q is rest.k is rest.v is None
    run = compiled(model)
    close(run(weights, images, rest), run(base, images, adaptation))
    assert checksum(weights) != checksum(base)


@pytest.fixture(scope="module")
def scaled_vit(small_vit):
    """A ViT with LayerScale, before which affines of o and fc2 act."""
    model, base = small_vit
    config = model.config.replace(layer_scale=True)
    extra = init_base(config, jax.random.key(0))["Transformer"]["encoderblock"]
    gains = {
        name: 1 + 0.5 * jax.random.normal(jax.random.key(i), extra[name].shape)
        for i, name in enumerate(("LayerScale_0", "LayerScale_1"))
    }
    encoder = base["Transformer"]
    encoder = {**encoder, "encoderblock": {**encoder["encoderblock"], **gains}}
    return ViT(config), {**base, "Transformer": encoder}


def close(actual, expected):
    """max |a - b| / max |b|"""
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 1e-4, error


# One of each kind of change; the law below goes through all methods that merge.
SCALED = ["bitfit", "lora_all", "ssf", "repadapter"]
KINDS = [*SCALED, "linear", "full", "fact_tk", "repadapter_4_groups"]


@pytest.mark.parametrize(
    ("name", "vit"),
    [*((name, "small_vit") for name in KINDS), *((name, "scaled_vit") for name in SCALED)],
)
def test_merged_weights_give_the_adapted_features(name, vit, images, request):
    model, base = request.getfixturevalue(vit)
    adaptation = adaptation_of(MERGES[name], model.config, base)
    run, before = compiled(model), checksum(base)
    merged = merge(base, adaptation)
    adapted, frozen = run(base, images, adaptation), run(base, images)
    close(run(merged, images), adapted)
    assert np.abs(adapted - frozen).max() > (-1 if name == "linear" else 0.02)
    assert checksum(base) == before
    assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(
        lambda x: (x.shape, x.dtype), base
    )


@settings(deadline=None, max_examples=8)
@given(
    names=st.lists(st.sampled_from(sorted(MERGES)), min_size=2, max_size=4),
    seed=st.integers(0, 1000),
)
def test_merged_combinations_give_the_adapted_features(names, seed, small_vit, images):
    """The parts may come in any order and be equal; only one may replace weights or norms."""
    model, base = small_vit
    kept = [n for i, n in enumerate(names) if n not in ("full", "bitfit", "dora") or i == 0]
    adaptation = combine(
        [adaptation_of(MERGES[n], model.config, base, seed + i) for i, n in enumerate(kept)]
    )
    run = compiled(model)
    close(run(merge(base, adaptation), images), run(base, images, adaptation))


UNMERGES = ["lora_all", "ssf", "repadapter", "fact_shared_layer"]


@pytest.mark.parametrize(
    ("name", "vit"), [("+".join(UNMERGES), "small_vit"), ("ssf", "scaled_vit")]
)
def test_unmerge_is_the_inverse(name: str, vit: str, request: pytest.FixtureRequest):
    model, base = request.getfixturevalue(vit)
    parts = [adaptation_of(MERGES[n], model.config, base) for n in name.split("+")]
    adaptation = combine(parts)
    again = unmerge(merge(base, adaptation), adaptation)
    for new, old in zip(*map(jax.tree.leaves, (again, base)), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bitfit", "replaces weights"),
        ("dora", "sets the norms of the columns of kernels \\(q, v\\)"),
        ("vpt_deep", "does not merge"),
    ],
)
def test_what_cannot_be_unmerged_is_refused(name: str, words: str, small_vit):
    model, base = small_vit
    with pytest.raises(UserError, match=words):
        unmerge(base, adaptation_of(ALL[name], model.config, base))


@pytest.mark.parametrize("name", STAYS)
def test_what_does_not_merge_is_refused_by_name(name, small_vit):
    model, base = small_vit
    adaptation = adaptation_of(ALL[name], model.config, base)
    words = f"does not merge into the weights: it has {STAYS[name]}, which"
    with pytest.raises(UserError, match=words):
        merge(base, adaptation)
    weights, rest = absorb(base, adaptation)
    assert checksum(weights) == checksum(base)
    jax.tree.map(np.testing.assert_array_equal, rest, adaptation)


def test_a_combination_merges_as_far_as_it_can(scaled_vit, images):
    """Everything at once: what is left is prompts and bypasses, and the features are the same."""
    model, base = scaled_vit
    parts = [("bitfit", BitFit()), ("ssf", SSF())]
    parts += [(n, MERGES[n]) for n in ("fact_tt", "repadapter", "lora_all")]
    parts += [(n, ALL[n]) for n in ("convpass", "adapter_houlsby", "adaptformer", "vpt_deep")]
    adaptation = adaptation_of(Combination(tuple(parts)), model.config, base)
    run, before = compiled(model), checksum(base)
    weights, rest = absorb(base, adaptation)
    close(run(weights, images, rest), run(base, images, adaptation))
    assert checksum(base) == before
    places = {"beside_attention", "beside_mlp", "after_attention", "after_mlp", "across_mlp"}
    assert rest.bypasses.keys() == places
    assert rest.prompts is adaptation.prompts
    only = Adaptation(prompts=rest.prompts, bypasses=rest.bypasses)
    assert jax.tree.structure(rest) == jax.tree.structure(only)  # nothing else
    with pytest.raises(UserError, match="it has prompts, beside_attention, beside_mlp, after_a"):
        merge(base, adaptation)
    assert np.abs(run(weights, images) - run(base, images, adaptation)).max() > 0.1


def bottlenecks(config, activations):
    for i, activation in enumerate(activations):
        shapes = [(config.width, 4), (4, config.width), (4,), (config.width,)]
        rng = np.random.default_rng(i)
        parts = [
            jnp.asarray(0.3 * rng.normal(size=(config.depth, *shape)), jnp.float32)
            for shape in shapes
        ]
        yield Bottleneck(*parts, activation=activation)


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize(
    ("activations", "left"),
    [
        (("none", "none", "none"), 0),
        (("relu", "none", "none"), 1),
        (("none", "relu", "none"), 2),  # the first one acts before a nonlinear one
        (("none", "none", "gelu"), 3),
    ],
)
def test_linear_bypasses_before_a_branch_merge_from_the_last_on(
    part, activations, left, small_vit, images
):
    model, base = small_vit
    place, run = f"before_{part}", compiled(model)
    several = tuple(bottlenecks(model.config, activations))
    adaptation = Adaptation(bypasses={place: several})
    weights, rest = absorb(base, adaptation)
    assert rest.bypasses.get(place, ()) == several[:left]
    close(run(weights, images, rest), run(base, images, adaptation))
    swapped = Adaptation(bypasses={place: several[::-1]})
    assert np.abs(run(base, images, swapped) - run(base, images, adaptation)).max() > 1e-2


@pytest.mark.parametrize("place", ["beside_mlp", "across_mlp", "after_mlp"])
def test_linear_bypasses_elsewhere_stay(place, small_vit):
    """No weights even without an activation: a norm, GELU or the residual lies between."""
    model, base = small_vit
    adaptation = Adaptation(bypasses={place: tuple(bottlenecks(model.config, ["none"]))})
    with pytest.raises(UserError, match=f"it has {place}, which"):
        merge(base, adaptation)


def test_a_bottleneck_with_a_norm_or_a_convolution_is_not_linear(small_vit):
    model, base = small_vit
    (plain,) = bottlenecks(model.config, ["none"])
    shape = (model.config.depth, model.config.width)
    norm = {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}
    conv = jnp.zeros((model.config.depth, 3, 3, 4, 4))
    for changes in ({"norm": norm}, {"conv": conv}):
        with pytest.raises(UserError, match="it has before_mlp"):
            merge(base, Adaptation(bypasses={"before_mlp": (plain.replace(**changes),)}))


def test_a_base_of_numpy_arrays_is_not_written_to(small_vit):
    model, base = small_vit
    writable = jax.tree.map(np.array, base)
    parts = Combination((("b", BitFit()), ("s", SSF()), ("r", RepAdapter(4)), ("l", LoRA(3))))
    merged = merge(writable, adaptation_of(parts, model.config, base))
    jax.tree.map(np.testing.assert_array_equal, writable, base)
    same = {name for name, x in named(merged).items() if not np.any(x != named(base)[name])}
    assert same == {"cls", "Transformer/posembed_input/pos_embedding"}


def test_merging_under_jit_and_vmap(small_vit):
    """The evaluation of several trials merges so."""
    model, base = small_vit
    method = Combination((("ssf", SSF()), ("repadapter", RepAdapter(4)), ("fact", FacTTT(3))))
    several = [random_factors(method, model.config, base, seed) for seed in range(2)]
    merged = jax.jit(jax.vmap(lambda f: merge(base, method.adaptation(f, model.config))))
    together = merged(jax.tree.map(lambda *x: jnp.stack(x), *several))
    for t, factors in enumerate(several):
        alone = merge(base, method.adaptation(factors, model.config))
        for name, expected in named(alone).items():
            np.testing.assert_allclose(named(together)[name][t], expected, rtol=1e-4, atol=1e-4)


def test_two_methods_cannot_set_the_same_norms(small_vit):
    model, base = small_vit
    dora = adaptation_of(ALL["dora"], model.config, base)
    with pytest.raises(UserError, match=r"train the same norms of columns \(q and others\)"):
        combine([dora, dora])
