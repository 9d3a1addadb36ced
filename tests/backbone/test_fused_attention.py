"""The fused attention of NVIDIA GPUs, as far as it can be tried without one.

The kernel's inputs, gradients and padding are tried with jax's own attention in its place; that the
real one is called once forward and once backward is read from the program lowered for CUDA.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from configs import quickstart
from fact_jax import FacTTT, UserError, ViT, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.packing import step_bytes
from fact_jax.sweep.resolution import read_settings
from fact_jax.sweep.trainer import Trainer


def fused(**changes):
    return get_variant("vit_ti16").replace(dtype="bfloat16", attention="cudnn", **changes)


def loss_of(config, method, images):
    base = init_base(config, jax.random.key(0))

    def loss(factors):
        adaptation = method.adaptation(factors, config)
        out = ViT(config).apply({"params": base}, images, adaptation)
        return (out.astype(jnp.float32) ** 2).sum()

    return loss


@pytest.fixture(autouse=True)
def no_traces_of_other_kernels():
    """The forward pass is jitted, and a kernel is replaced for a test."""
    jax.clear_caches()
    with jax.numpy_dtype_promotion("standard"):  # jax's own attention mixes its types
        yield
    jax.clear_caches()


# 5 or 10 tokens: one is added to the odd number.
@pytest.mark.parametrize(("side", "trials"), [(32, 2), (48, 0)])
def test_it_is_attention_with_its_gradients(monkeypatch, side, trials):
    calls = []
    plain = jax.nn.dot_product_attention

    def kernel(q, k, v, implementation, **lengths):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == 0  # jax refuses the gradient of odd ones
        calls.append(q.shape)
        return plain(q, k, v, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    config, method = fused(image_size=side), FacTTT(4)
    images = jax.random.normal(jax.random.key(1), (3, side, side, 3))
    factors = method.init(jax.random.key(2), config)
    factors = {k: v + 0.1 for k, v in factors.items()}
    if trials:
        factors = jax.tree.map(lambda x: jnp.stack([x, 1.1 * x]), factors)
    found = {}
    for attention in ("cudnn", "xla"):
        gradient = jax.value_and_grad(loss_of(config.replace(attention=attention), method, images))
        found[attention] = jax.jit(jax.vmap(gradient) if trials else gradient)(factors)
    tokens = config.num_tokens + config.num_tokens % 2
    assert calls == [(3, tokens, 3, 64)] * len(calls)
    assert calls
    np.testing.assert_allclose(found["cudnn"][0], found["xla"][0], rtol=2e-2)
    for name, expected in found["xla"][1].items():
        error = np.abs(found["cudnn"][1][name] - expected).max()
        assert error < 0.05 * np.abs(expected).max(), name


@pytest.mark.parametrize(("remat", "forward"), [("none", 2), ("attention", 2), ("block", 4)])
def test_the_kernel_runs_once_each_way(monkeypatch, remat, forward):
    """The first block and the loop's have the kernel; the last block has a single query."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    config, method = fused(remat=remat, image_size=32), FacTTT(4)
    loss = loss_of(config, method, jnp.zeros((3, 32, 32, 3)))
    factors = method.init(jax.random.key(0), config)
    traced = jax.jit(jax.grad(loss)).trace(factors)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__cudnn$fmhaSoftmax(") == forward
    assert text.count("__cudnn$fmhaSoftmaxBackward(") == 2


def test_it_keeps_no_probabilities():
    sizes = {
        (attention, remat): step_bytes(fused(remat=remat).replace(attention=attention), 64)
        for attention in ("xla", "cudnn")
        for remat in ("none", "attention")
    }
    assert sizes["cudnn", "none"] == sizes["cudnn", "attention"] < sizes["xla", "attention"]


def test_settings_that_it_cannot_have_are_refused():
    with pytest.raises(UserError, match="attention is 'flash'; expected 'xla' or 'cudnn'"):
        get_variant("vit_b16").replace(attention="flash")
    with pytest.raises(UserError, match="bfloat16, and dtype is 'float32'"):
        get_variant("vit_b16").replace(attention="cudnn")
    config = quickstart.get_config()
    config.dtype, config.attention = "bfloat16", "cudnn"
    with pytest.raises(UserError, match="config.attention 'cudnn' is a kernel of NVIDIA GPUs"):
        Trainer(read_settings(config), None)
