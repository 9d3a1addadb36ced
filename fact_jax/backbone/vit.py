"""The Vision Transformer: frozen parameters and an adaptation go in, features come out.

What kinds of ViTs differ in stands in `ViTConfig`; each choice is a small function that the config
names (kinds.py, pooling.py). The six dense sites of the blocks, stacked, are the
paper's 12 L x d x d tensor; parameters.py describes all parameters. Letters: `b` batch, `n` tokens,
`h` heads, `d` width, `l` layer.
"""

import contextlib
import dataclasses
import functools
from typing import Any, TypedDict, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import Adaptation, is_of_block, over_last, override
from fact_jax.backbone.block import Mode, norm
from fact_jax.backbone.blocks import Blocks, by_layer
from fact_jax.backbone.checks import check_adaptation, check_base, check_images, check_number
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.noise import IncrementNoise
from fact_jax.backbone.parameters import init_base as init_base
from fact_jax.backbone.parameters import initial, shapes
from fact_jax.backbone.pooling import pool
from fact_jax.backbone.positions import resize_positions
from fact_jax.ranges import SHARE

Images = Float[Array | np.ndarray, "b y x 3"]


@functools.partial(jax.jit, static_argnames=("config", "collect"))
def _forward(
    config: ViTConfig,
    base: dict[str, Any],
    images: Array,
    adaptation: Adaptation,
    mode: Mode,
    *,
    collect: bool,
) -> tuple[Float[Array, "b d"], Any]:
    """Features and, with `collect`, every block's outputs.

    Jitted, because the scan's body is a new function at each call: every eager call would compile.
    XLA inlines it into a caller's program.
    """
    grid = images.shape[1] // config.patch_size
    blocks = adaptation.blocks()
    base = override(base, {k: v for k, v in adaptation.weights.items() if not is_of_block(k)})
    encoder = base["Transformer"]
    x = _embed(config, base, images, adaptation)
    if blocks.prompts is not None:  # empty places, which the blocks fill
        first = int(config.class_token)
        places = jnp.zeros((x.shape[0], blocks.prompts.tokens.shape[1], config.width), x.dtype)
        x = jnp.concatenate([x[:, :first], places, x[:, first:]], axis=1)
    mode = by_layer(mode, config.depth)
    x, outputs = Blocks(config, encoder["encoderblock"], blocks, mode, collect)(x)
    return pool(config, base, x, grid, adaptation.final), outputs


def _embed(config: ViTConfig, base: dict[str, Any], images: Array, changes: Adaptation) -> Array:
    """Images -> tokens [b, n, d]: the class token, the registers and the patches."""
    p, (b, height, width, _) = config.patch_size, images.shape
    # A convolution whose stride is its width is a matrix product over patches.
    x = images.astype(config.dtype).reshape(b, height // p, p, width // p, p, 3)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (height // p) * (width // p), p * p * 3)
    x = x @ base["embedding"]["kernel"].reshape(p * p * 3, config.width).astype(x.dtype)
    x = x + over_last(base["embedding"]["bias"], x)
    x = x if changes.patches is None else changes.patches(x)
    single = int(config.class_token)
    if config.class_token:
        cls = jnp.broadcast_to(base["cls"].astype(x.dtype), (b, 1, config.width))
        x = jnp.concatenate([cls, x], axis=1)
    if config.positions == "table":
        table = base["Transformer"]["posembed_input"]["pos_embedding"]
        table = resize_positions(table, height // p, single, config.table_resize)
        x = x + table.astype(x.dtype)
    if config.registers:
        registers = base["registers"].astype(x.dtype)
        registers = jnp.broadcast_to(registers, (b, config.registers, config.width))
        x = jnp.concatenate([x[:, :single], registers, x[:, single:]], axis=1)
    return norm(config, base["Transformer"]["pre_norm"], x) if config.pre_norm else x


class OfIncrements(TypedDict, total=False):
    """Noise that acts on what the adaptation adds, and on nothing else."""

    increment_noise: IncrementNoise | None


class ViT(nn.Module):
    """The network; ``ViT(config).apply({"params": base}, images, adaptation)`` gives the features.

    With ``train=True`` dropout in rank space and stochastic depth act, at rates that may be traced
    numbers (None: off), and `rngs={"dropout": key}` is needed. Stochastic depth rises linearly from
    0 in the first block to `drop_path_rate` in the last. `merged` and `increment_noise` are
    explained at `features`.

    ``apply(..., mutable="intermediates")`` also returns every block's outputs, ``["intermediates"]
    ["blocks"][0]``: "tokens" [l, b, n, d], the outputs of the six sites by name, and their inputs,
    "qkv_input", "o_input", "fc1_input" and "fc2_input".
    """

    config: ViTConfig

    @nn.compact
    def __call__(
        self,
        images: Images,
        adaptation: Adaptation | None = None,
        train: bool = False,
        dropout_rate: float | Array | None = None,
        drop_path_rate: float | Array | None = None,
        *,
        merged: bool = True,
        **noise: Unpack[OfIncrements],
    ) -> Float[Array, "b d"]:
        """Features, float32 [b, d], of normalised images."""
        config = self.config
        base = {
            name: self.param(name, lambda key, n=name: init_base(config, key)[n])
            for name in initial(config)
        }
        adaptation = Adaptation() if adaptation is None else adaptation
        check_images(config, images)
        check_adaptation(adaptation, (config.depth, config.width, config.mlp_dim))
        check_number("dropout_rate", dropout_rate, SHARE)
        check_number("drop_path_rate", drop_path_rate, SHARE)
        mode = Mode(merged=merged)
        if train:
            mode = Mode(self.make_rng("dropout"), dropout_rate, drop_path_rate, merged)
        mode = dataclasses.replace(mode, increment_noise=noise.get("increment_noise"))
        collect = self.is_mutable_collection("intermediates") and not self.is_initializing()
        x: Array
        with _precision(config):
            x, outputs = _forward(config, base, images, adaptation, mode, collect=collect)
        if collect:
            self.sow("intermediates", "blocks", outputs)
        return x


def _precision(config: ViTConfig) -> Any:
    """Sets the precision of the matrix products traced within; 'default' leaves JAX's setting."""
    if config.precision == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(config.precision)


class Rates(OfIncrements, total=False):
    """Rates of the noise of training, which may be traced; None leaves that noise out."""

    dropout_rate: float | Array | None
    drop_path_rate: float | Array | None


def features(
    model: ViT,
    base: dict[str, Any],
    images: Images,
    adaptation: Adaptation | None = None,
    *,
    key: Array | None = None,
    merged: bool = True,
    **rates: Unpack[Rates],
) -> Float[Array, "b d"]:
    """Computes the features of images, float32 [b, d].

    They are the class token after the last norm, or what `ViTConfig.pooling` says.

    Differentiable in `adaptation`, `base` and `images`. Eager calls with the same shapes share one
    compiled program.

    Args:
      model: the network, as `load_vit` gives it.
      base: its parameters.
      images: normalised, [b, y, x, 3]. Sides other than ``model.config.image_size`` are fine if
        they are equal and a multiple of the patch size: the position table is interpolated.
      adaptation: the changes of a task; None for the frozen ViT.
      merged: whether increments are added to the kernels, for one product a layer. Without, their
        product with the input stands apart, ``x W + (x A) B``: the form for `vmap` over images with
        an adaptation each, which would otherwise make a kernel for every image. Dropout has this
        form in any case.
      key: switches on the noise of training, dropout and stochastic depth, each at its rate.
      **rates: `dropout_rate` of dropout in rank space, and `drop_path_rate` of stochastic depth in
        the last block (the blocks before have less). They may be traced. None, the default, leaves
        that noise out of the program, which is cheaper without dropout. `increment_noise`
        multiplies what the adaptation adds, by a key of its own, also where `key` is None.

    Raises:
      UserError: images, base or adaptation have shapes or types that do not fit the model, or a
        rate is not a number from 0 to below 1.
    """
    check_base(base, shapes(model.config))
    x = model.apply(
        {"params": base},
        images,
        adaptation,
        key is not None,
        merged=merged,
        **rates,
        rngs=None if key is None else {"dropout": key},
    )
    return jnp.asarray(x)
