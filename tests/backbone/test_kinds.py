"""The newer kinds of ViTs with every method, their parts in NumPy, and their files.

tests/parity compares them with transformers and timm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backbone_kinds import KINDS, tiny, tiny_vit
from stored.cases import relative_error
from tried_methods import ALL, compiled, method_of, random_factors

from fact_jax import VARIANTS, Adaptation, UserError, ViT, ViTConfig, features, load_vit, merge
from fact_jax.backbone.merging import absorb, unmerge
from fact_jax.backbone.positions import relative_bias, resize_positions, rotate
from fact_jax.backbone.vit import init_base
from fact_jax.files.weights import checksum, write_npz
from fact_jax.images.preprocessing import PREPROCESSING, preprocessing_of
from fact_jax.tuning import BitFit, Combination, FacTTT, LoRA, NOAHSubnet
from fact_jax.tuning.slices import SQUARE
from fact_jax.tuning.support import check_supported

DAILY = {"lora_all", "ssf", "repadapter", "vpt_deep", "convpass", "fact_tt"}
every_kind = pytest.mark.parametrize("kind", KINDS)
METHODS = [
    pytest.param(name, marks=[] if name in DAILY else pytest.mark.slow)
    for name in (*ALL, "noah_subnet", "everything")
    if name != "linear"
]
# Prompts, LoRA and adapters of three blocks, some of them without any.
SUBNET = NOAHSubnet((2, 1, 0), (1, 2, 0), (0, 1, 2))


@every_kind
@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_the_features_trains_and_merges(kind, name, images):
    model, base = tiny_vit(kind)
    method, config = SUBNET if name == "noah_subnet" else method_of(name), model.config
    if kind == "so400m" and name.startswith(("fact_", "metatt", "cara", "everything")):
        with pytest.raises(UserError, match=SQUARE):
            check_supported(method, config)
        with pytest.raises(UserError, match=SQUARE):
            method.init(jax.random.key(0), config, base)
        return
    check_supported(method, config)
    factors = random_factors(method, config, base)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(factors):
        x = features(model, base, images, method.adaptation(factors, config))
        return (x**3).sum(), x

    (_, adapted), gradients = loss(factors)
    frozen = compiled(model)(base, images, Adaptation())
    assert relative_error(adapted, frozen + 1e-3) > 0.01
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert not {name for name, g in gradients.items() if not np.abs(g).any()}
    weights, rest = absorb(base, method.adaptation(factors, config))
    assert relative_error(compiled(model)(weights, images, rest), adapted) < 1e-4


FULL = {"dinov2_s14_reg": 518, "dinov3_s16": 224, "clip_b16": 224, "siglip2_b16": 224}


@pytest.mark.slow
@pytest.mark.parametrize("variant", FULL)
def test_fact_trains_a_step_at_the_published_shapes(variant):
    model = ViT(VARIANTS[variant].replace(image_size=FULL[variant]))
    base, method = init_base(model.config, jax.random.key(0)), FacTTT(16)
    factors = method.init(jax.random.key(1), model.config)
    side = FULL[variant]
    images = jax.random.normal(jax.random.key(2), (2, side, side, 3))
    direction = jax.random.normal(jax.random.key(3), (model.config.width,))

    @jax.jit
    @jax.value_and_grad
    def step(factors):
        x = features(model, base, images, method.adaptation(factors, model.config))
        return (x @ direction).mean()

    before, gradients = step(factors)
    largest = max(np.abs(g).max() for g in gradients.values())
    moved = {name: f - 1e-3 * gradients[name] / largest for name, f in factors.items()}
    assert step(moved)[0] < before


@every_kind
def test_a_combination_of_what_merges_comes_out_again(kind):
    model, base = tiny_vit(kind)
    parts = tuple((name, ALL[name]) for name in ("lora_all", "ssf", "repadapter"))
    method = Combination(parts)
    adaptation = method.adaptation(random_factors(method, model.config, base), model.config)
    again = unmerge(merge(base, adaptation), adaptation)
    for new, old in zip(*map(jax.tree.leaves, (again, base)), strict=True):
        np.testing.assert_allclose(new, old, atol=2e-3)


@every_kind
def test_noise_of_training_draws_and_images_of_other_sizes_are_taken(kind):
    model, base = tiny_vit(kind)
    method = LoRA(3)
    factors = random_factors(method, model.config, base)
    adaptation = method.adaptation(factors, model.config)
    images = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype("float32")
    rates = dict(dropout_rate=0.5, drop_path_rate=0.5)
    run = functools.partial(compiled(model), base, images, adaptation, **rates)
    one, two = run(key=jax.random.key(0)), run(key=jax.random.key(1))
    assert np.isfinite(one).all()
    assert relative_error(one, two) > 0.01


@every_kind
def test_images_with_an_adaptation_each_are_as_alone(kind, images):
    model, base = tiny_vit(kind)
    method, config = LoRA(3), model.config
    several = [random_factors(method, config, base, seed) for seed in range(len(images))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    def one(image, factors):
        adaptation = method.adaptation(factors, config)
        return features(model, base, image[None], adaptation, merged=False)[0]

    together = jax.jit(jax.vmap(one))(images, stacked)
    alone = compiled(model)(base, images[1:2], method.adaptation(several[1], config))
    assert relative_error(together[1], alone[0]) < 1e-4


@every_kind
def test_our_own_file_holds_every_parameter(kind, tmp_path, monkeypatch):
    model, base = tiny_vit(kind)
    monkeypatch.setitem(VARIANTS, "of_the_test", model.config)
    write_npz(tmp_path / "m.npz", model.config, base)
    again, read = load_vit("of_the_test", tmp_path / "m.npz")
    assert again.config == model.config
    assert checksum(read) == checksum(base)
    with pytest.raises(UserError, match="holds a ViT of .* with .*; expected .* 12 blocks of the "):
        load_vit("vit_ti16", tmp_path / "m.npz")


@every_kind
def test_bfloat16_is_near_float32(kind, images):
    model, base = tiny_vit(kind)
    half = ViT(model.config.replace(dtype="bfloat16"))
    x, y = (compiled(m)(base, images, Adaptation()) for m in (half, model))
    assert x.dtype == jnp.float32
    assert 1e-5 < relative_error(x, y) < 0.05


def test_bitfit_has_the_biases_of_the_published_model():
    def biases(kind):
        _, base = tiny_vit(kind)
        return {name for name in BitFit().init(jax.random.key(0), tiny(kind), base)}

    key = "Transformer/encoderblock/MultiHeadDotProductAttention_1/key/bias"
    assert key in biases("clip")
    assert "embedding/bias" not in biases("clip")
    assert "embedding/bias" in biases("rope")
    assert key not in biases("rope")
    assert "MAPHead_0/MultiHeadDotProductAttention_0/key/bias" in biases("siglip")


def test_a_config_says_what_cannot_be():
    small = dict(width=24, depth=1, num_heads=4, mlp_dim=96, patch_size=4, image_size=16)
    with pytest.raises(UserError, match="reads the class token, and class_token is False"):
        ViTConfig(**small, class_token=False)
    with pytest.raises(UserError, match="set class_token to True and registers to 0"):
        ViTConfig(**small, positions="relative", registers=4)
    with pytest.raises(UserError, match="heads of a multiple of 4 numbers.*give 6"):
        ViTConfig(**small, positions="rope")


def test_files_state_only_what_a_plain_vit_has_not():
    plain = VARIANTS["vit_b16"].stated()
    assert "registers" not in plain
    assert {"width", "gelu", "layer_scale", "remat"} <= plain.keys()
    for config in VARIANTS.values():
        assert ViTConfig(**config.stated()) == config


def test_heads_of_any_multiple_of_four_numbers_are_rotated():
    config = tiny("rope", width=196, num_heads=1)
    assert rotate(np.ones((1, 9, 196), "f4"), config, 5).shape == (1, 9, 196)


def test_scores_of_rotated_patches_depend_on_their_distance_alone():
    """Queries and keys that are equal at all patches, before they are turned."""
    config = tiny("rope")
    x = jnp.broadcast_to(
        jnp.asarray(np.random.default_rng(0).normal(size=24), "float32"), (1, 30, 24)
    )
    y = np.asarray(rotate(x, config, 5))[0]
    np.testing.assert_array_equal(y[:5], x[0, :5])
    patches = y[5:].reshape(5, 5, 24)
    for i, j, row, column in np.ndindex(4, 4, 4, 4):
        moved = patches[i + 1, j + 1] @ patches[row + 1, column + 1]
        np.testing.assert_allclose(patches[i, j] @ patches[row, column], moved, rtol=1e-4)
    assert abs(patches[0, 0] @ patches[4, 0] - patches[0, 0] @ patches[0, 4]) > 1e-3


def test_relative_positions_are_those_of_distances_and_of_the_class_token():
    grid, heads = 3, 2
    table = jnp.arange((5 * 5 + 3) * heads, dtype=jnp.float32).reshape(-1, heads)
    bias = np.asarray(relative_bias(table, grid))
    for query, key in np.ndindex(9, 9):
        (y, x), (i, j) = divmod(query, grid), divmod(key, grid)
        row = (y - i + 2) * 5 + x - j + 2
        np.testing.assert_array_equal(bias[:, 1 + query, 1 + key], table[row])
    np.testing.assert_array_equal(bias[:, 0, 4], table[25])
    np.testing.assert_array_equal(bias[:, 4, 0], table[26])
    np.testing.assert_array_equal(bias[:, 0, 0], table[27])
    prompted = np.asarray(relative_bias(table, grid, 2))
    assert not prompted[:, 1:3].any()
    assert not prompted[:, :, 1:3].any()
    np.testing.assert_array_equal(np.delete(np.delete(prompted, [1, 2], 1), [1, 2], 2), bias)


def test_an_antialiased_table_is_the_mean_of_its_surroundings():
    """A constant table stays the same; alternating rows vanish at half the size."""
    table = jnp.ones((1, 64, 1))
    np.testing.assert_allclose(resize_positions(table, 3, 0, "antialias"), 1, atol=1e-6)
    stripes = jnp.asarray(np.tile([1.0, -1.0], 32).reshape(1, 64, 1), jnp.float32)
    middle = np.asarray(resize_positions(stripes, 4, 0, "antialias")).reshape(4, 4)[:, 1:3]
    assert np.abs(middle).max() < 0.1
    plain = np.asarray(resize_positions(stripes, 3, 0)).reshape(3, 3)
    assert np.abs(plain).max() > 0.5


def test_every_variant_has_its_preprocessing():
    assert PREPROCESSING.keys() == VARIANTS.keys()
    for name, config in VARIANTS.items():
        assert preprocessing_of(name).image_size == config.image_size
    assert preprocessing_of("clip_b16").mean == (0.48145466, 0.4578275, 0.40821073)
    with pytest.raises(UserError, match="No preprocessing is known for the variant 'vit_own'"):
        preprocessing_of("vit_own")


def test_init_base_has_what_the_config_names():
    names = {"cls": "clip", "registers": "rope", "MAPHead_0": "siglip"}
    bases = {kind: init_base(tiny(kind), jax.random.key(0)) for kind in KINDS}
    for name, kind in names.items():
        assert name in bases[kind]
    assert "cls" not in bases["siglip"]
    assert "posembed_input" not in bases["rope"]["Transformer"]
    assert "Gate" in bases["rope_gated"]["Transformer"]["encoderblock"]["MlpBlock_3"]
