"""Compute type and precision of matrix products: what is float32, and what the settings reach."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.lax import Precision
from jaxprs import equations

from fact_jax import (
    Adaptation,
    FacTTK,
    FacTTT,
    LowRank,
    ViT,
    ViTConfig,
    features,
)
from fact_jax.backbone.dense import adapted_dense
from fact_jax.backbone.vit import init_base
from fact_jax.training.evaluation import Merged, merged, predict
from fact_jax.training.mesh import make_mesh
from fact_jax.training.step import TrainStep
from fact_jax.training.trial import Hyper, Trial, logits_of, train_set

METHODS = [FacTTT(4), FacTTK(4)]


def programs(small_vit, method, **numerics):
    """{name: (jitted function, arguments)} of a training epoch, of merging, of prediction."""
    model, base = small_vit
    model = ViT(model.config.replace(**numerics))
    mesh = make_mesh(4, jax.devices()[:1])
    step = TrainStep(model, method, "none", 4, mesh)
    config = model.config
    images = np.zeros((8, 16, 16, 3), np.uint8)
    data = train_set(images, np.zeros(8, np.int32), 3)
    state = step.init(0, 3, 3)
    hyper = Hyper(*map(jnp.float32, (1e-3, 1e-4, 1, 0.1, 0.1)))
    plain = hyper._replace(dropout_rate=None, drop_path_rate=None)
    return {
        "training": (step.alone, (base, state, Trial(data, hyper, 0), 0)),
        "training without dropout": (step.alone, (base, state, Trial(data, plain, 0), 0)),
        "merging": (
            functools.partial(merged, method, config),
            (base, state.trainable["factors"], 1.0),
        ),
        "prediction": (
            functools.partial(predict, config, "none"),
            (Merged(base, Adaptation(), state.trainable["head"]), 3, images),
        ),
        # No dropout asked for: the increment is merged within the step.
        "merged features": (
            lambda base, factors: features(
                model, base, images / 255.0, method.adaptation(factors, model.config)
            ),
            (base, state.trainable["factors"]),
        ),
    }


def traced(small_vit, method, **numerics):
    return {
        name: list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))
        for name, (function, arguments) in programs(small_vit, method, **numerics).items()
    }


def products(found):
    return [e for e in found if e.primitive.name in ("dot_general", "conv_general_dilated")]


def precisions(found):
    """The precision of every product: None where none is asked for, else both operands'."""
    out = []
    for equation in products(found):
        precision = equation.params["precision"]
        if isinstance(precision, tuple):
            assert precision[0] == precision[1]
            precision = precision[0]
        out.append(None if precision == Precision.DEFAULT else precision)
    return out


@pytest.mark.parametrize("method", METHODS)
def test_float32_programs_hold_no_bfloat16(small_vit, method):
    for name, found in traced(small_vit, method).items():
        dtypes = {str(v.aval.dtype) for e in found for v in (*e.invars, *e.outvars)}
        assert "float32" in dtypes
        assert not dtypes & {"bfloat16", "float16", "float64"}, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["high", "highest"])
def test_precision_reaches_every_product_forward_and_backward(small_vit, method, precision):
    """Increments, the factors' own products and the logits ask for 'highest' whatever is set."""
    plain, asked = traced(small_vit, method), traced(small_vit, method, precision=precision)
    for name in plain:
        before, after = precisions(plain[name]), precisions(asked[name])
        assert set(before) <= {None, Precision.HIGHEST}, name
        wanted = Precision[precision.upper()]
        assert after == [wanted if p is None else p for p in before], name
    # q, k, v, o, fc1, fc2 of two kernels each, scores and sums of attention; twice and more in
    # the backward pass: the training program is the one that is looked at.
    for name in ("training", "training without dropout"):
        assert precisions(plain[name]).count(None) > 3 * 8
    assert precisions(plain["training"]).count(Precision.HIGHEST) >= 4  # logits, factors, backward
    assert precisions(plain["merging"]).count(None) == 0
    assert precisions(plain["prediction"]).count(Precision.HIGHEST) == 1  # the logits
    assert precisions(plain["merged features"]).count(Precision.HIGHEST) >= 6 + 1


def test_default_precision_leaves_jaxs_own_setting(small_vit):
    with jax.default_matmul_precision("highest"):
        found = traced(small_vit, METHODS[0])["training"]
    assert set(precisions(found)) == {Precision.HIGHEST}


def test_bfloat16_keeps_norms_softmax_logits_and_loss_in_float32(small_vit):
    found = traced(small_vit, METHODS[0], dtype="bfloat16")
    training = found["training"]

    def dtypes(*names):
        return {str(e.invars[0].aval.dtype) for e in training if e.primitive.name in names}

    assert dtypes("rsqrt") == {"float32"}  # LayerNorm, and nothing else
    assert dtypes("reduce_max") == {"float32"}  # softmax of attention and of the loss
    assert dtypes("log") == {"float32"}
    kinds = {tuple(str(v.aval.dtype) for v in e.invars) for e in products(training)}
    assert kinds == {("bfloat16",) * 2, ("float32",) * 2}  # never mixed
    float32 = [e for e in products(training) if e.invars[0].aval.dtype == jnp.float32]
    assert set(precisions(float32)) == {Precision.HIGHEST}  # factors and logits
    dense = [e for e in products(training) if e.invars[0].aval.dtype == jnp.bfloat16]
    assert len(dense) > 3 * 8  # the ViT's own, forward and backward
    assert not any("bfloat16" in str(v.aval) for e in found["merging"] for v in e.outvars)


def test_bfloat16_keeps_factors_gradients_moments_and_losses_in_float32(small_vit):
    for method in METHODS:
        epoch, arguments = programs(small_vit, method, dtype="bfloat16")["training"]
        state, losses = jax.eval_shape(epoch, *arguments)
        dtypes = {str(x.dtype) for x in jax.tree.leaves((state.trainable, losses))}
        assert dtypes == {"float32"}
        moments = [x.dtype for x in jax.tree.leaves(state.moments) if x.ndim]
        assert set(moments) == {jnp.dtype("float32")}
        assert len(moments) == 2 * len(jax.tree.leaves(state.trainable))

        model, base = small_vit
        model = ViT(model.config.replace(dtype="bfloat16"))

        def loss(trainable, model=model, base=base, method=method):
            adaptation = method.adaptation(trainable["factors"], model.config)
            x = features(model, base, jnp.ones((2, 16, 16, 3)), adaptation, key=jax.random.key(0))
            logits = logits_of(trainable["head"], x, 3)
            assert x.dtype == logits.dtype == jnp.float32
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(2)).mean()

        value, gradients = jax.eval_shape(jax.value_and_grad(loss), arguments[1].trainable)
        assert value.dtype == jnp.float32
        assert {str(x.dtype) for x in jax.tree.leaves(gradients)} == {"float32"}


def dense(x, kernel, bias, pair=None, key=None):
    """One adapted layer: merged without a key, two paths (and rate 0) with one."""
    layers = [{"kernel": kernel, "bias": bias}]
    (y,) = adapted_dense(x, layers, pair, None if key is None else 0.0, key)
    return y


def test_products_of_bfloat16_numbers_are_summed_in_float32():
    """1,024 ones are 1,024: forward in both paths, backward over width and over tokens.

    A sum in bfloat16 would stall at 256, since 256 + 1 is 256 there.
    """
    ones = jnp.ones((1024, 1024), jnp.bfloat16)
    kernel, bias, zeros = jnp.ones((1024, 8)), jnp.zeros(8), jnp.zeros(1024)
    pair = LowRank(jnp.ones((1024, 2)), jnp.eye(2, 8))
    np.testing.assert_array_equal(dense(ones, kernel, bias).astype("f4"), 1024)
    apart = dense(ones, 0 * kernel, bias, pair, jax.random.key(0))
    np.testing.assert_array_equal(apart[:, :2].astype("f4"), 1024)

    def total(pair, key):  # the cotangent of each output is one
        return dense(ones, jnp.zeros((1024, 1024)), zeros, pair, key).sum()

    square = LowRank(jnp.zeros((1024, 1)), jnp.ones((1, 1024)))
    for key in (None, jax.random.key(0)):
        by_a = jax.grad(total)(square, key).a
        # Over 1,024 tokens, times 1,024 outputs that share the row of b.
        np.testing.assert_array_equal(by_a, 1024.0 * 1024)
    wide = LowRank(jnp.ones((1024, 1)), jnp.zeros((1, 1024)))
    by_x = jax.grad(lambda x: dense(x, ones.astype("f4"), zeros, wide).sum())(ones[:4])
    np.testing.assert_array_equal(by_x.astype("f4"), 1024)


def test_patch_embedding_in_bfloat16_sums_in_float32():
    config = ViTConfig(8, 1, 1, 32, patch_size=16, image_size=32, dtype="bfloat16")
    base = jax.tree.map(jnp.zeros_like, init_base(config, jax.random.key(0)))
    base["embedding"]["kernel"] += 1
    _, kept = ViT(config).apply({"params": base}, jnp.ones((2, 32, 32, 3)), mutable="intermediates")
    y = kept["intermediates"]["blocks"][0]["tokens"][0, :, 1:]  # the block adds nothing
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y.astype("f4"), 16 * 16 * 3)


def test_the_merge_itself_is_float32(small_vit):
    """An increment of 1e-4 of the weights is in the merged weights of a bfloat16 model."""
    model, base = small_vit
    method = FacTTT(4)
    config = model.config.replace(dtype="bfloat16")
    factors = method.init(jax.random.key(0), model.config)
    factors["V"] = jax.random.normal(jax.random.key(1), factors["V"].shape)
    kernel = base["Transformer"]["encoderblock"]["MlpBlock_3"]["Dense_0"]["kernel"]
    expected = 1e-4 * method.adaptation(factors, model.config).fc1.increment()
    weights, _ = merged(method, config, base, factors, scale=1e-4)
    after = weights["Transformer"]["encoderblock"]["MlpBlock_3"]["Dense_0"]
    assert after["kernel"].dtype == jnp.float32
    np.testing.assert_allclose(after["kernel"] - kernel, expected, atol=1e-7)
