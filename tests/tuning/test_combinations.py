"""Prompts among the tokens, and several methods at once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tried_methods import ALL, compiled, random_factors

from fact_jax import Adaptation, LowRank, UserError, ViT, combine, features, merge
from fact_jax.backbone.adaptation import SITES, Affine, Bottleneck, Prompts
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import BitFit, Combination, FacTTT, Full, LoRA

# --- Prompts


def hidden_prompts(config, count=4):
    """Tokens that would change everything if anybody saw them."""
    tokens = 10 * jax.random.normal(jax.random.key(9), (config.depth, count, config.width))
    return Prompts(tokens, hidden=jnp.ones((config.depth, count), bool))


@pytest.mark.parametrize("size", [16, 24])
def test_hidden_prompts_change_nothing(size, small_vit):
    """Patches keep their places in the position table (interpolated at 24 pixels) and in Convpass's
    image."""
    model, base = small_vit
    images = np.random.default_rng(2).normal(size=(2, size, size, 3)).astype("float32")
    factors = random_factors(ALL["convpass"], model.config, base)
    convpass = ALL["convpass"].adaptation(factors, model.config)
    prompts = hidden_prompts(model.config)
    x = compiled(model)(base, images, convpass)
    y = compiled(model)(base, images, combine([Adaptation(prompts=prompts), convpass]))
    np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    seen = Adaptation(prompts=dataclasses.replace(prompts, hidden=None))
    assert np.abs(compiled(model)(base, images, combine([seen, convpass])) - x).max() > 0.1


def test_a_hidden_prompt_among_others_is_as_if_left_out(small_vit, images):
    """A prompt that is hidden in one block may be seen in the next. Its gradient is zero."""
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
    parts = {"one": FacTTT(3, scale=0.5), "two": LoRA(2, scale=3.0), "three": LoRA(2)}
    both = Combination(tuple(parts.items()), scale=2.0)
    factors = both.init(jax.random.key(0), model.config, base)
    names = {"one": "USV", "two": (lora := ("A_q", "B_q", "A_v", "B_v")), "three": lora}
    assert factors.keys() == {f"{part}/{f}" for part, inside in names.items() for f in inside}
    assert np.any(factors["two/A_q"] != factors["three/A_q"])
    factors = random_factors(both, model.config, base)
    for scale, times in ((None, 2.0), (0.1, 0.1)):
        own = {name: {f: factors[f"{name}/{f}"] for f in inside} for name, inside in names.items()}
        expected = combine(
            [p.adaptation(own[name], model.config, times * p.scale) for name, p in parts.items()]
        )
        actual = both.adaptation(factors, model.config, scale)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def test_increments_add_up(small_vit, images):
    """Whatever the form: qkv in one go and pairs of their own, and beside replaced weights."""
    model, base = small_vit
    parts = [ALL[name] for name in ("full", "fact_tt", "lora_all", "lora_noah", "fact_shared_kind")]
    adaptations = [
        p.adaptation(random_factors(p, model.config, base, i), model.config, 0.3)
        for i, p in enumerate(parts)
    ]
    together = combine(adaptations)
    for site in SITES:
        expected = sum(pair.increment() for a in adaptations for pair in a.site(site))
        actual = sum(pair.increment() for pair in together.site(site))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    one_by_one = functools.reduce(merge, adaptations, base)
    run = compiled(model)
    x, y = run(base, images, together), run(one_by_one, images, Adaptation())
    np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)
    assert np.abs(x - run(base, images, combine(adaptations[:-1]))).max() > 0.05


@pytest.mark.parametrize("place", ["before_mlp", "after_mlp", "beside_mlp", "across_mlp"])
def test_bypasses_of_one_place_act_in_the_order_given(place, small_config, images):
    """before and after: the second one sees what the first one made; beside and across: a sum."""
    config = small_config.replace(depth=1)
    base, rng = init_base(config, jax.random.key(0)), np.random.default_rng(0)
    draws = rng.normal(size=(2, 2, 1, 24, 4)).astype("float32")
    f, g = (Bottleneck(a / 2, b.swapaxes(1, 2) / 5, activation="relu") for a, b in draws)

    def run(*several):
        parts = [Adaptation(bypasses={place: (b,)}) for b in several]
        return compiled(ViT(config))(base, images, combine(parts))

    chained = place in ("before_mlp", "after_mlp")
    assert (np.abs(run(f, g) - run(g, f)).max() > 1e-2) == chained
    nothing = dataclasses.replace(f, up=jnp.zeros_like(f.up))
    for several in ((nothing, f), (f, nothing)):
        np.testing.assert_allclose(run(*several), run(f), rtol=1e-5, atol=1e-5)


def test_affines_act_one_after_the_other():
    rng = np.random.default_rng(0)
    first, second, y = (rng.normal(size=(2, 3, 5)).astype("float32") for _ in range(3))
    one, two = (Affine(*a[:, 0]) for a in (first, second))
    parts = [Adaptation(affines={"q": a}, patches=a, final=a) for a in (one, two)]
    together = combine([parts[0], Adaptation(), parts[1]])
    for affine in (together.affines["q"], together.patches, together.final):
        np.testing.assert_allclose(affine(y), two(one(y)), rtol=1e-5, atol=1e-6)
    assert np.abs(two(one(y)) - one(two(y))).max() > 0.1  # the order matters


def test_prompts_stand_side_by_side(small_vit, images):
    """Shallow and deep ones; a shallow prompt of blocks' own tokens is a deep one."""
    model, base = small_vit
    config, run = model.config, compiled(model)
    shallow, deep = (
        ALL[n].adaptation(random_factors(ALL[n], config, base), config)
        for n in ("vpt_shallow", "vpt_deep")
    )
    both = combine([shallow, deep]).prompts
    tokens = np.concatenate([shallow.prompts.tokens, deep.prompts.tokens], 1)
    np.testing.assert_array_equal(both.tokens, tokens)
    assert both.kept.tolist() == [[False] * 6, *[[True] * 3 + [False] * 3] * 2]
    assert both.hidden is None
    x = run(base, images, combine([shallow, deep]))
    hidden = Adaptation(prompts=hidden_prompts(config))
    for several in ([deep, shallow], [hidden, shallow, deep]):  # no position: no order
        y = run(base, images, combine(several))
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)


def test_methods_that_train_the_same_weights_clash(small_vit):
    model, base = small_vit
    both = Combination((("full", Full()), ("bitfit", BitFit())))
    factors = both.init(jax.random.key(0), model.config, base)
    with pytest.raises(UserError, match=r"train the same weights \(Transformer/.*and others\)"):
        both.adaptation(factors, model.config)
    one = Adaptation(weights={"cls": base["cls"]})
    with pytest.raises(UserError, match=r"train the same weights \(cls\)\. Leave one of them out"):
        combine([one, Adaptation(), one])


def test_nothing_combines_to_nothing():
    assert jax.tree.leaves(combine([])) == []
    pair = LowRank(jnp.ones((1, 2, 1)), jnp.ones((1, 1, 2)))
    assert combine([Adaptation(), Adaptation(q=pair)]).q is pair
