"""The ViT against a plain NumPy implementation, and its smaller promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

from fact_jax import VARIANTS, FacTTT, UserError, ViT, features, get_variant
from fact_jax.backbone.positions import resize_positions
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import count_parameters


def test_exact_and_tanh_gelu_differ(small_vit, images):
    """test_stored_parity.py compares the ViT with timm's and transformers'."""
    model, base = small_vit
    exact, tanh = (
        features(ViT(model.config.replace(gelu=gelu)), base, images) for gelu in ("exact", "tanh")
    )
    assert exact.dtype == jnp.float32
    assert 1e-6 < np.abs(tanh - exact).max() < 1e-1


@pytest.mark.parametrize(
    ("variant", "millions"),
    # Published sizes without the head (Dosovitskiy et al. table 1; Steiner et al. table 2).
    [
        ("vit_ti16", 5.5),
        ("vit_s16", 21.7),
        ("vit_b16", 85.8),
        ("vit_l16", 303.3),
        ("vit_h14", 630.8),
    ],
)
def test_variants_have_their_published_size(variant, millions):
    structs = jax.eval_shape(lambda: init_base(get_variant(variant), jax.random.key(0)))
    assert count_parameters(structs) / 1e6 == pytest.approx(millions, abs=0.06)


def test_contract_names_of_variants():
    names = (
        "vit_ti16 vit_s16 vit_s32 vit_b16 vit_b32 vit_l16 vit_h14 dinov2_s14 dinov2_b14 dinov2_l14"
    )
    assert set(names.split()) <= set(VARIANTS)
    with pytest.raises(UserError, match="vit_b16"):
        get_variant("vit_b17")


def test_other_image_sizes_interpolate_the_positions(small_vit):
    model, base = small_vit
    larger = np.random.default_rng(2).normal(size=(2, 24, 24, 3)).astype("float32")
    resized = resize_positions(base["Transformer"]["posembed_input"]["pos_embedding"], 6)
    assert resized.shape == (1, 37, 24)
    direct = ViT(model.config.replace(image_size=24))
    encoder = {**base["Transformer"], "posembed_input": {"pos_embedding": resized}}
    expected = features(direct, {**base, "Transformer": encoder}, larger)
    np.testing.assert_allclose(features(model, base, larger), expected, rtol=1e-5, atol=1e-5)


# torch 2.13: interpolate((arange(9.0) ** 2).reshape(1, 1, 3, 3), size=(4, 4), mode="bicubic")
TORCH_BICUBIC = [
    [-0.686861515045166, -0.5640969276428223, 0.9117531776428223, 2.677096128463745],
    [2.490590810775757, 4.784619331359863, 9.65483283996582, 13.59144115447998],
    [19.013315200805664, 24.70170783996582, 34.87836837768555, 42.2093391418457],
    [36.973968505859375, 44.8336296081543, 58.40465545654297, 67.90689086914062],
]


def test_positions_are_interpolated_as_pytorch_does():
    squares = np.arange(9.0, dtype=np.float32) ** 2
    table = jnp.concatenate([jnp.full((1, 1, 1), 7.0), squares.reshape(1, 9, 1)], axis=1)
    resized = np.asarray(resize_positions(table, 4))
    assert resized[0, 0, 0] == 7.0
    np.testing.assert_allclose(resized[0, 1:, 0].reshape(4, 4), TORCH_BICUBIC, rtol=1e-5, atol=1e-4)


def test_images_with_an_adaptation_each(small_vit, images):
    """Not merged, no kernel is made for an image; the features are those of the merged form."""
    model, base = small_vit
    method, config = FacTTT(3), model.config
    rng = np.random.default_rng(0)
    factors = {
        name: jnp.asarray(rng.normal(size=(len(images), *leaf.shape)), jnp.float32)
        for name, leaf in method.init(jax.random.key(0), config).items()
    }

    def run(image, factors, merged):
        adaptation = method.adaptation(factors, config, 0.3)
        return features(model, base, image[None], adaptation, merged=merged)[0]

    def kernels(merged):
        jaxpr = jax.make_jaxpr(jax.vmap(lambda *x: run(*x, merged)))(images, factors)
        shapes = [v.aval.shape for e in equations(jaxpr.jaxpr) for v in e.outvars]
        return {s for s in shapes if len(s) > 2 and s[0] == len(images) and s[-2:] == (24, 24)}

    assert kernels(True)
    assert not kernels(False)
    together = jax.vmap(lambda *x: run(*x, False))(images, factors)
    for i, x in enumerate(together):
        alone = run(images[i], jax.tree.map(lambda leaf, i=i: leaf[i], factors), True)
        np.testing.assert_allclose(x, alone, rtol=1e-4, atol=1e-4)
