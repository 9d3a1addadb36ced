"""Matrix products of a traced training step, and memory of the compiled one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import product_flops

from fact_jax import FacTTT, ViT, features, get_variant
from fact_jax.backbone.vit import init_base
from fact_jax.sweep.cost import forward_flops

BATCH = 8
# Fused as in a user's process. LLVM's optimisations take two thirds of the time and save no bytes.
OPTIMISED: dict[str, Any] = {"xla_backend_optimization_level": 0}
if jax.__version__.startswith("0.10."):  # later ones have no other way to fuse
    OPTIMISED["xla_cpu_use_fusion_emitters"] = True


METHOD = FacTTT(16)


def loss_of(config, method=METHOD, dropout=True):
    """``loss(factors, base, images, key)`` of a made-up task."""
    rates = dict(dropout_rate=0.1, drop_path_rate=0.1) if dropout else {}

    def loss(factors, base, images, key):
        adaptation = method.adaptation(factors, config)
        return (features(ViT(config), base, images, adaptation, key=key, **rates) ** 2).sum()

    return loss


def arguments(config, batch=BATCH):
    """Arguments of the loss of METHOD, as shapes."""
    base = jax.eval_shape(lambda: init_base(config, jax.random.key(0)))
    factors = jax.eval_shape(lambda: METHOD.init(jax.random.key(0), config))
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    return factors, base, images, jax.random.key(0)


def traced_flops(function, config):
    return product_flops(jax.make_jaxpr(function)(*arguments(config)).jaxpr)


@pytest.mark.parametrize(("dropout", "bound"), [(False, 1.95), (True, 2.0)])
def test_the_products_of_a_traced_step_are_those_of_a_frozen_base(dropout, bound):
    """Full fine-tuning costs 3 forward passes; a gradient of d x d weights would show as 2.9."""
    config = get_variant("vit_b16")
    n, d = config.num_tokens, config.width
    block = 2 * n * d * (4 * d + 2 * config.mlp_dim) + 4 * n * n * d
    forward = config.depth * block + 2 * (n - 1) * config.patch_size**2 * 3 * d
    step = traced_flops(jax.value_and_grad(loss_of(config, dropout=dropout)), config)
    ratio = step / BATCH / forward
    print(f"dropout {dropout}: {ratio:.3f} x the forward pass")
    assert 1.5 < ratio <= bound


# Newer kinds of ViTs, each with a plain one of its width.
KINDS = {
    "dinov2_s14_reg": "vit_s16",
    "dinov3_s16": "vit_s16",
    "dinov3_s16plus": "vit_s16",
    "clip_b16": "vit_b16",
    "siglip2_b16": "vit_b16",
}


def over_forward(variant):
    """The products of a step over those of its own forward pass, which `forward_flops` counts."""
    config = get_variant(variant)

    def forward(factors, base, images, key):
        return features(ViT(config), base, images)

    frozen = traced_flops(forward, config)
    assert frozen == pytest.approx(BATCH * forward_flops(config), rel=0.01)
    return traced_flops(jax.value_and_grad(loss_of(config, dropout=False)), config) / frozen


@pytest.mark.parametrize("variant", KINDS)
def test_a_step_of_the_newer_kinds_costs_as_much_as_a_plain_vit_s(variant):
    """Over the forward pass, whose last block has one query: 2.09 for ViT-B/16, 2.17 for S/16."""
    assert over_forward(variant) < 1.02 * over_forward(KINDS[variant])


def test_the_first_block_s_input_has_no_gradient():
    """Asked for, it costs q, k and v turned round; then the patches' products with it."""
    config = get_variant("vit_ti16")
    loss = loss_of(config, dropout=False)
    without, asked = (traced_flops(jax.grad(loss, argnums=which), config) for which in (0, (0, 2)))
    n, d, r = config.num_tokens, config.width, METHOD.rank
    least = 2 * BATCH * (3 * n * d * d + (n - 1) * d * 3 * config.patch_size**2)
    assert least <= asked - without <= least * (1 + 2 * r / d)


@functools.cache
def temporary(remat, batch=BATCH):
    """Bytes of the temporaries of a ViT-Ti/16 step."""
    config = get_variant("vit_ti16").replace(remat=remat)
    lowered = jax.jit(jax.grad(loss_of(config))).lower(*arguments(config, batch))
    return lowered.compile(OPTIMISED).memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_is_what_the_backward_pass_needs_and_rematerialisation_saves():
    """q, k, v, attended, middle, fc1 and the input are 10 n d a block, and the probabilities."""
    config = get_variant("vit_ti16")
    n, d = config.num_tokens, config.width
    probabilities = config.depth * BATCH * config.num_heads * n * n * 4
    none, attention, block = (temporary(remat) for remat in ("none", "attention", "block"))
    assert none < 1.5 * (config.depth * BATCH * 10 * n * d * 4 + probabilities)
    assert none - attention > 0.6 * probabilities
    assert block < 0.6 * attention


@pytest.mark.slow
def test_the_stacked_weights_are_not_copied():
    """The memory that does not grow with the images is less than a copy of the kernels."""
    config = get_variant("vit_ti16")
    constant = (BATCH * temporary("block", batch=1) - temporary("block")) / (BATCH - 1)
    assert constant < 0.5 * (4 * config.depth * 12 * config.width**2)


@pytest.mark.parametrize("remat", ["attention", "block"])
def test_rematerialisation_changes_no_gradient(small_vit, images, remat):
    """Dropout masks are the same ones, kept or drawn again."""
    model, base = small_vit
    method = FacTTT(4)
    factors = method.init(jax.random.key(0), model.config)
    factors["V"] += 0.1
    given = (factors, base, images, jax.random.key(1))
    plain, again = (
        jax.jit(jax.grad(loss_of(config, method)))(*given)
        for config in (model.config, model.config.replace(remat=remat))
    )
    for name, value in plain.items():
        np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max())
