"""NOAH's net: the supernet under a mask is the subnet, what is sampled, what is counted."""

import jax
import numpy as np
import pytest
from tried_methods import random_factors

from fact_jax import ViT, ViTConfig, features, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.errors import UserError
from fact_jax.training.mesh import make_mesh
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, train_set
from fact_jax.tuning import NOAH, Adapter, LoRA, NOAHSubnet, VPTDeep, VPTShallow, count_parameters
from fact_jax.tuning.method import SearchMethod

WIDTHS = (1, 2, 4)
NONE = (0, 0, 0)


def sampled(config, seed):
    return np.asarray(NOAH(WIDTHS).sample(jax.random.key(seed), config))


def outputs(model, base, images, method):
    """A program of factors, and of the choice if there is one: features, and the gradients of a
    random projection of them."""
    weights = np.random.default_rng(3).normal(size=(len(images), model.config.width))

    @jax.jit
    def run(factors, **choice):
        def project(factors):
            adaptation = method.adaptation(factors, model.config, **choice)
            x = features(model, base, images, adaptation)
            return (x * weights).sum(), x

        grads, x = jax.grad(project, has_aux=True)(factors)
        return x, grads

    return run


@pytest.fixture(scope="module")
def masked(small_vit, images):
    """The supernet's outputs, one program for all architectures."""
    run = outputs(*small_vit, images, NOAH(WIDTHS))
    return lambda factors, choice: run(factors, choice=np.array(choice))


@pytest.mark.parametrize(
    "choice",
    [
        0,  # a sampled one
        ((0, 2, 0), (0, 0, 1), (4, 0, 1)),
        ((1, 4, 0), NONE, (4, 4, 4)),
    ],
    ids=str,
)
def test_the_supernet_under_a_mask_is_the_subnet(small_vit, images, masked, choice):
    """Features and gradients are equal; hidden factors have no gradient."""
    model, base = small_vit
    choice = sampled(model.config, choice) if isinstance(choice, int) else np.array(choice)
    factors = random_factors(NOAH(WIDTHS), model.config, {})
    x, grads = masked(factors, choice)
    subnet, own = NOAH(WIDTHS).subnet(factors, choice)
    assert count_parameters(own) == subnet.count(model.config)
    expected, own_grads = outputs(model, base, images, subnet)(own)
    np.testing.assert_allclose(x, expected, atol=2e-5)
    largest = max(float(np.abs(g).max(initial=0)) for g in own_grads.values())
    cut = subnet.cut(grads)
    for name, value in own_grads.items():
        np.testing.assert_allclose(cut[name], value, atol=1e-5 * largest + 1e-7, err_msg=name)
    mask = jax.vjp(subnet.cut, factors)[1](jax.tree.map(np.ones_like, own))[0]
    for name, value in grads.items():
        assert not np.any(value[np.asarray(mask[name]) == 0]), name
        assert not cut[name].size or np.abs(cut[name]).max() > 1e-4, name


def test_families_alone_are_the_methods_of_those_names(small_vit, images, masked):
    model, base = small_vit
    plain = features(model, base, images)
    factors = random_factors(NOAH(WIDTHS), model.config, {})
    prompts, a = factors["prompts"][:, :2], factors["lora_A"][..., :2]
    b = np.split(factors["lora_B"][:, :2], 3, axis=-1)

    lora = {"A": a, **{f"B_{site}": part for site, part in zip("qkv", b, strict=True)}}
    parts = ("down", "down_bias", "up", "up_bias")
    adapter = {f"after_mlp_{part}": factors[part] for part in parts}
    for choice, method, expected in (
        (((2, 2, 2), NONE, NONE), VPTDeep(2), {"tokens": prompts}),
        # Blocks without prompts keep those of the last block that had some.
        (((2, 0, 0), NONE, NONE), VPTShallow(2), {"tokens": prompts[:1]}),
        ((NONE, (2, 2, 2), NONE), LoRA(2, sites="q,k,v", shared_input=True), lora),
        ((NONE, NONE, (4, 4, 4)), Adapter(4), adapter),
    ):
        x, _ = masked(factors, choice)
        y = features(model, base, images, method.adaptation(expected, model.config))
        np.testing.assert_allclose(x, y, atol=2e-5)
        assert np.abs(y - plain).max() > 0.05  # and it matters
    x, _ = masked(factors, (NONE, NONE, NONE))  # an adapter's bias goes with its width
    np.testing.assert_allclose(x, plain, atol=2e-5)


def test_released_widths_have_the_facts_counts():
    config = get_variant("vit_b16")
    d, blocks = 768, 12
    fives = NOAHSubnet((5,) * 12, (5,) * 12, (5,) * 12)
    expected = blocks * (5 * d + 4 * 5 * d + 2 * d * 5 + 5 + d)  # section 6, width by width
    assert expected == 331_836
    assert fives.count(config) == expected
    factors = jax.eval_shape(lambda: fives.init(jax.random.key(0), config))
    assert count_parameters(factors) == expected
    # For the limit: 5 tokens at the input and a table of 10 positions more.
    assert NOAH().count(fives.choice, config) == expected + 15 * d
    assert NOAH(prompt_positions=100).count(fives.choice, config) == expected + 105 * d
    assert NOAH(widths=(5, 10, 50, 100)).count(fives.choice, config) == expected + 105 * d
    mixed = NOAHSubnet((10, 0), (0, 1), (0, 5))
    assert mixed.count(config) == 10 * d + 4 * d + (2 * d * 5 + 5 + d)


def test_initial_values_are_those_of_the_released_net():
    """Its Linear layers, LoRA's B among them, all begin at N(0, 0.02) with zero biases."""
    config = ViTConfig(width=96, depth=4, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
    factors = NOAH().init(jax.random.key(0), config)
    for name in ("lora_A", "lora_B", "down", "up"):
        assert np.std(factors[name]) == pytest.approx(0.02, rel=0.1), name
        assert abs(np.mean(factors[name])) < 2e-3
    assert not np.any(factors["down_bias"])
    assert not np.any(factors["up_bias"])
    bound = (6 / (96 * 11)) ** 0.5  # Xavier's for PyTorch's [1, 10, d]
    assert 0.95 * bound < np.abs(factors["prompts"]).max() <= bound
    assert np.std(factors["prompts"]) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_only_legal_architectures_are_sampled_and_all_depths_and_widths():
    config = get_variant("vit_b16")
    method = NOAH()
    assert isinstance(method, SearchMethod)
    assert method.depths_of(config) == (3, 6, 9, 12)
    many = jax.jit(jax.vmap(lambda key: method.sample(key, config)))(
        jax.random.split(jax.random.key(0), 400)
    )
    assert many.shape == (400, 3, 12)
    depths = (many > 0).sum(-1)
    np.testing.assert_array_equal(
        many > 0, np.arange(12)[None, None] < np.asarray(depths)[..., None]
    )
    for family in range(3):
        values, counts = np.unique(depths[:, family], return_counts=True)
        assert values.tolist() == [3, 6, 9, 12]
        assert counts.min() > 60  # of 100 expected
        widths, counts = np.unique(many[:, family], return_counts=True)
        assert widths.tolist() == [0, 1, 5, 10]
        assert counts[1:].min() / counts[1:].max() > 0.8
    # Each family for itself.
    assert abs(np.corrcoef(depths.T)[np.triu_indices(3, 1)]).max() < 0.2


def test_depths_may_be_given_and_must_be_the_vit_s(small_config):
    assert NOAH().depths_of(small_config) == (1, 2, 3)
    assert NOAH(depths=(2,)).depths_of(small_config) == (2,)
    with pytest.raises(UserError, match="the ViT has 3 blocks"):
        NOAH(depths=(2, 4)).depths_of(small_config)
    with pytest.raises(UserError, match="each of the ViT's 3 blocks"):
        NOAHSubnet((1, 1), (1, 1), (1, 1)).init(jax.random.key(0), small_config)


def tokens_seen_in_the_released_code(widths):
    """The prompts, as (block, number), that each block sees; Block.forward's lists of tokens."""
    x, seen = [("input", i) for i in range(widths[0])], []
    for block, width in enumerate(widths):
        last = widths[block - 1] if block else widths[0]
        if width:
            x = x[: len(x) - last] + [(block, i) for i in range(width)]
        seen.append(set(x))
    return seen


def tokens_seen(prompts):
    """The same of our `Prompts`, place by place."""
    places, seen = [None] * prompts.tokens.shape[1], []
    for block, (kept, hidden) in enumerate(zip(prompts.kept, prompts.hidden, strict=True)):
        names = [
            tuple(token[:2].astype(int).tolist()) for token in np.asarray(prompts.tokens[block])
        ]
        places = [old if k else new for old, new, k in zip(places, names, kept, strict=True)]
        seen.append({token for token, h in zip(places, hidden, strict=True) if not h})
    return seen


@pytest.mark.parametrize("widths", [(5, 0, 10), (0, 2, 0), (1, 2, 0, 3, 1, 0, 0, 2)], ids=str)
def test_prompts_after_a_gap_are_appended_as_in_the_released_code(widths):
    vit = ViTConfig(24, len(widths), num_heads=3, mlp_dim=96, patch_size=4, image_size=16)
    none = (0,) * len(widths)
    subnet = NOAHSubnet(widths, none, none)
    factors = subnet.init(jax.random.key(0), vit)
    names = [(block, i) for block, width in enumerate(widths) for i in range(width)]
    factors["prompts"] = factors["prompts"].at[:, :2].set(np.array(names, np.float32))
    prompts = subnet.adaptation(factors, vit).prompts
    assert tokens_seen(prompts) == tokens_seen_in_the_released_code(widths)


def test_an_architecture_a_step_and_one_compilation(small_config, compiled, monkeypatch):
    """Every step of every epoch samples another one, in one program."""
    method, batch = NOAH(WIDTHS), 4
    drawn = []
    sample = NOAH.sample

    def spy(self, key, config):
        choice = sample(self, key, config)
        jax.debug.callback(lambda c: drawn.append(np.array(c)), choice, ordered=True)
        return choice

    monkeypatch.setattr(NOAH, "sample", spy)
    model = ViT(small_config)
    mesh = make_mesh(batch, jax.devices()[:1])
    step = TrainStep(model, method, "none", batch, mesh, sampled=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (16, 16, 16, 3)).astype(np.uint8)
    data = train_set(images, rng.integers(0, 3, 16).astype(np.int32), 3)
    state = step.init(0, 3, 3)
    hyper = Hyper(*map(np.float32, (1e-3, 0.0, 1.0, 0.1, 0.1)))
    base = init_base(small_config, jax.random.key(0))
    for e in range(3):
        state, losses = step.alone(base, state, Trial(data, hyper, 0), e)
    jax.effects_barrier()
    assert np.isfinite(losses).all()
    assert compiled.count("jit(epoch)") == 1
    assert len(drawn) == 12
    assert len({choice.tobytes() for choice in drawn}) >= 9
