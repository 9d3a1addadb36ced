"""The ViT against a plain NumPy implementation, and its smaller promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations
from scipy.special import erf

from fact_jax import VARIANTS, FacTTT, UserError, ViT, ViTConfig, features, get_variant
from fact_jax.backbone.positions import resize_positions
from fact_jax.backbone.vit import init_base
from fact_jax.tuning import count_parameters


def numpy_vit(config: ViTConfig, base, images: np.ndarray) -> np.ndarray:
    """ViT features in float64, one image and one head at a time."""
    base = jax.tree.map(lambda x: np.asarray(x, np.float64), base)
    encoder, p, d = base["Transformer"], config.patch_size, config.width

    def norm(x, w):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * w["scale"] + w["bias"]

    def dense(x, w):
        return x @ w["kernel"] + w["bias"]

    def gelu(x):
        if config.gelu == "tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    out = []
    for image in images.astype(np.float64):
        rows = [
            image[y : y + p, x : x + p].reshape(-1)
            for y in range(0, image.shape[0], p)
            for x in range(0, image.shape[1], p)
        ]
        kernel = base["embedding"]["kernel"].reshape(-1, d)
        x = np.concatenate([base["cls"][0], np.stack(rows) @ kernel + base["embedding"]["bias"]])
        x = x + encoder["posembed_input"]["pos_embedding"][0]
        for i in range(config.depth):
            block = jax.tree.map(lambda w, i=i: w[i], encoder["encoderblock"])
            attention, mlp = block["MultiHeadDotProductAttention_1"], block["MlpBlock_3"]
            y = norm(x, block["LayerNorm_0"])
            q, k, v = (dense(y, attention[n]) for n in ("query", "key", "value"))
            heads = []
            for h in range(config.num_heads):
                s = slice(h * d // config.num_heads, (h + 1) * d // config.num_heads)
                scores = q[:, s] @ k[:, s].T / np.sqrt(d // config.num_heads)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, s])
            x = x + dense(np.concatenate(heads, -1), attention["out"])
            y = norm(x, block["LayerNorm_2"])
            x = x + dense(gelu(dense(y, mlp["Dense_0"])), mlp["Dense_1"])
        out.append(norm(x, encoder["encoder_norm"])[0])
    return np.stack(out)


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_features_equal_a_numpy_vit(small_vit, images, gelu):
    model, base = small_vit
    model = ViT(model.config.replace(gelu=gelu))
    expected = numpy_vit(model.config, base, images)
    actual = features(model, base, images)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_exact_and_tanh_gelu_differ(small_vit, images):
    model, base = small_vit
    tanh = features(ViT(model.config.replace(gelu="tanh")), base, images)
    assert 1e-6 < np.abs(tanh - features(model, base, images)).max() < 1e-1


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
    table = base["Transformer"]["posembed_input"]["pos_embedding"]
    resized = resize_positions(table, 6)
    assert resized.shape == (1, 37, 24)
    config = model.config.replace(image_size=24)
    direct = {**base, "Transformer": {**base["Transformer"]}}
    direct["Transformer"]["posembed_input"] = {"pos_embedding": resized}
    np.testing.assert_allclose(
        features(model, base, larger), features(ViT(config), direct, larger), rtol=1e-5, atol=1e-5
    )


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
        np.testing.assert_allclose(x, alone, rtol=1e-4, atol=1e-5)
