"""The parameters of a ViT: names, shapes and random values.

Names are those of the Google `.npz` files, with the blocks stacked: a leaf under
`Transformer/encoderblock` has a leading layer axis. Attention kernels are stored as plain matrices
[l, d, d] (heads contiguous). Every dense layer has a bias, which is zero where the published model
has none, so that whatever merges into a plain ViT merges into every other one.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fact_jax.backbone.adaptation import SITES
from fact_jax.backbone.config import ViTConfig

MAP_HEAD = "MAPHead_0"  # the name of big_vision's files


_ZEROS, _ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
Spec = dict[str, Any]  # a tree of (initialiser, shape)


def _dense(rows: int, columns: int, *lead: int) -> Spec:
    kernel = jax.nn.initializers.xavier_uniform(batch_axis=tuple(range(len(lead))))
    return {"kernel": (kernel, (*lead, rows, columns)), "bias": (_ZEROS, (*lead, columns))}


def _norm(*shape: int) -> Spec:
    return {"scale": (_ONES, shape), "bias": (_ZEROS, shape)}


def _blocks(config: ViTConfig) -> Spec:
    d, m, depth = config.width, config.mlp_dim, config.depth
    sites = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d), "fc1": (d, m), "fc2": (m, d)}
    blocks: Spec = {"LayerNorm_0": _norm(depth, d), "LayerNorm_2": _norm(depth, d)}
    for site, shape in sites.items():
        module, layer = SITES[site]
        blocks.setdefault(module, {})[layer] = _dense(*shape, depth)
    if config.mlp == "gated":
        blocks["MlpBlock_3"]["Gate"] = _dense(d, m, depth)
    if config.positions == "relative":
        rows = (2 * config.grid - 1) ** 2 + 3
        small = jax.nn.initializers.normal(0.02)
        blocks["relative_positions"] = (small, (depth, rows, config.num_heads))
    if config.layer_scale:
        blocks |= {f"LayerScale_{i}": (_ONES, (depth, d)) for i in (0, 1)}
    return blocks


def _map_head(config: ViTConfig) -> Spec:
    d, m = config.width, config.mlp_dim
    names = ("query", "key", "value", "out")
    return {
        "probe": (jax.nn.initializers.normal(0.02), (1, 1, d)),
        "MultiHeadDotProductAttention_0": {name: _dense(d, d) for name in names},
        "LayerNorm_0": _norm(d),
        "MlpBlock_0": {"Dense_0": _dense(d, m), "Dense_1": _dense(m, d)},
    }


def initial(config: ViTConfig) -> Spec:
    """Every parameter of a ViT as (initialiser, shape), in the layout described above."""
    d, p = config.width, config.patch_size
    small = jax.nn.initializers.normal(0.02)
    kernel = (jax.nn.initializers.lecun_normal(), (p, p, 3, d))
    spec: Spec = {"embedding": {"kernel": kernel, "bias": (_ZEROS, (d,))}}
    encoder: Spec = {"encoderblock": _blocks(config), "encoder_norm": _norm(d)}
    if config.class_token:
        spec["cls"] = (_ZEROS, (1, 1, d))
    if config.registers:
        spec["registers"] = (small, (1, config.registers, d))
    if config.positions == "table":
        rows = config.grid**2 + config.class_token
        encoder["posembed_input"] = {"pos_embedding": (small, (1, rows, d))}
    if config.pre_norm:
        encoder["pre_norm"] = _norm(d)
    if config.pooling == "attention":
        spec[MAP_HEAD] = _map_head(config)
    return {**spec, "Transformer": encoder}


@functools.lru_cache(maxsize=64)
def shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters by their names, joined with "/"."""
    leaves = jax.tree_util.tree_leaves_with_path(
        initial(config), is_leaf=lambda x: isinstance(x, tuple)
    )
    return {"/".join(k.key for k in keys): shape for keys, (_, shape) in leaves}


def init_base(config: ViTConfig, key: Array) -> dict[str, Any]:
    """Random base parameters, float32, in the layout described above."""
    base: dict[str, Any] = _init_base(config, key)
    return base


@functools.partial(jax.jit, static_argnums=0)
def _init_base(config: ViTConfig, key: Array) -> Any:
    specs, treedef = jax.tree.flatten(initial(config), is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(key, len(specs))
    values = [fill(k, shape, jnp.float32) for k, (fill, shape) in zip(keys, specs, strict=True)]
    return jax.tree.unflatten(treedef, values)
