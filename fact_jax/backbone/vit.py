"""The Vision Transformer: frozen parameters and an adaptation go in, features come out.

Parameter names are those of the Google `.npz` files, with the blocks stacked: a leaf under
`Transformer/encoderblock` has a leading layer axis. Attention kernels are stored as plain matrices
[l, d, d] (heads contiguous), so that the six dense sites of the blocks are the paper's 12 L x d x d
tensor. Letters: `b` batch, `n` tokens, `h` heads, `d` width, `l` layer.
"""

import contextlib
import functools
from typing import Any, TypedDict, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import SITES, Adaptation, is_of_block, over_last, override
from fact_jax.backbone.block import Mode, norm
from fact_jax.backbone.blocks import Blocks, by_layer
from fact_jax.backbone.checks import check_adaptation, check_base, check_images, check_number
from fact_jax.backbone.config import ViTConfig
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
    p, (b, height, width, _) = config.patch_size, images.shape
    blocks = adaptation.blocks()
    base = override(base, {k: v for k, v in adaptation.weights.items() if not is_of_block(k)})
    encoder = base["Transformer"]
    # A convolution whose stride is its width is a matrix product over patches.
    x = images.astype(config.dtype).reshape(b, height // p, p, width // p, p, 3)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, (height // p) * (width // p), p * p * 3)
    x = x @ base["embedding"]["kernel"].reshape(p * p * 3, config.width).astype(x.dtype)
    x = x + over_last(base["embedding"]["bias"], x)
    x = x if adaptation.patches is None else adaptation.patches(x)
    cls = jnp.broadcast_to(base["cls"].astype(x.dtype), (b, 1, config.width))
    table = resize_positions(encoder["posembed_input"]["pos_embedding"], height // p)
    x = jnp.concatenate([cls, x], axis=1) + table.astype(x.dtype)
    if blocks.prompts is not None:  # empty places, which the blocks fill
        places = jnp.zeros((b, blocks.prompts.tokens.shape[1], config.width), x.dtype)
        x = jnp.concatenate([x[:, :1], places, x[:, 1:]], axis=1)
    mode = by_layer(mode, config.depth)
    x, outputs = Blocks(config, encoder["encoderblock"], blocks, mode, collect)(x)
    x = norm(config, encoder["encoder_norm"], x.astype(jnp.float32))
    return x if adaptation.final is None else adaptation.final(x), outputs


def _initial(config: ViTConfig) -> dict[str, Any]:
    """Every parameter of a ViT as (initialiser, shape), in the layout described above."""
    d, depth, p = config.width, config.depth, config.patch_size
    zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones
    kernel = jax.nn.initializers.xavier_uniform(batch_axis=0)

    def dense(rows: int, columns: int) -> dict[str, Any]:
        return {"kernel": (kernel, (depth, rows, columns)), "bias": (zeros, (depth, columns))}

    def norm(*lead: int) -> dict[str, Any]:
        return {"scale": (ones, (*lead, d)), "bias": (zeros, (*lead, d))}

    sites = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d)}
    sites |= {"fc1": (d, config.mlp_dim), "fc2": (config.mlp_dim, d)}
    blocks: dict[str, Any] = {"LayerNorm_0": norm(depth), "LayerNorm_2": norm(depth)}
    for site, shape in sites.items():
        module, layer = SITES[site]
        blocks.setdefault(module, {})[layer] = dense(*shape)
    if config.layer_scale:
        blocks |= {f"LayerScale_{i}": (ones, (depth, d)) for i in (0, 1)}
    table = (jax.nn.initializers.normal(0.02), (1, config.num_tokens, d))
    return {
        "cls": (zeros, (1, 1, d)),
        "embedding": {
            "kernel": (jax.nn.initializers.lecun_normal(), (p, p, 3, d)),
            "bias": (zeros, (d,)),
        },
        "Transformer": {
            "posembed_input": {"pos_embedding": table},
            "encoderblock": blocks,
            "encoder_norm": norm(),
        },
    }


@functools.lru_cache(maxsize=64)
def _shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by their names, joined with "/"."""
    leaves = jax.tree_util.tree_leaves_with_path(
        _initial(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    return {"/".join(k.key for k in keys): shape for keys, (_, shape) in leaves}


def init_base(config: ViTConfig, key: Array) -> dict[str, Any]:
    """Random base parameters, float32, in the layout described above."""
    base: dict[str, Any] = _init_base(config, key)
    return base


@functools.partial(jax.jit, static_argnums=0)
def _init_base(config: ViTConfig, key: Array) -> Any:
    specs, treedef = jax.tree.flatten(_initial(config), is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(specs))
    values = [fill(k, shape, jnp.float32) for k, (fill, shape) in zip(keys, specs, strict=True)]
    return jax.tree.unflatten(treedef, values)


class ViT(nn.Module):
    """The network; ``ViT(config).apply({"params": base}, images, adaptation)`` gives the features.

    With ``train=True`` dropout in rank space and stochastic depth act, at rates that may be traced
    numbers (None: off), and `rngs={"dropout": key}` is needed. Stochastic depth rises linearly from
    0 in the first block to `drop_path_rate` in the last. `merged` is explained at `features`.

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
    ) -> Float[Array, "b d"]:
        """Class-token features after the final norm, float32 [b, d], of normalised images."""
        config = self.config
        base = {
            name: self.param(name, lambda key, n=name: init_base(config, key)[n])
            for name in _initial(config)
        }
        adaptation = Adaptation() if adaptation is None else adaptation
        check_images(config, images)
        check_adaptation(adaptation, (config.depth, config.width, config.mlp_dim))
        check_number("dropout_rate", dropout_rate, SHARE)
        check_number("drop_path_rate", drop_path_rate, SHARE)
        mode = Mode(merged=merged)
        if train:
            mode = Mode(self.make_rng("dropout"), dropout_rate, drop_path_rate, merged)
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


class Rates(TypedDict, total=False):
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
    """Computes the features of images: the class token after the final norm, float32 [b, d].

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
        that noise out of the program, which is cheaper without dropout.

    Raises:
      UserError: images, base or adaptation have shapes or types that do not fit the model, or a
        rate is not a number from 0 to below 1.
    """
    check_base(base, _shapes(model.config))
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
