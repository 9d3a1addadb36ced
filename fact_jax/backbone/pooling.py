"""The step from the last block's tokens to the features (`ViTConfig.pooling`).

Letters: `b` batch, `n` tokens, `d` width.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from fact_jax.backbone.activations import MLP_ACTIVATIONS
from fact_jax.backbone.adaptation import Affine
from fact_jax.backbone.attention import attention
from fact_jax.backbone.block import norm
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.dense import adapted_dense
from fact_jax.backbone.parameters import MAP_HEAD


def _class_token(config: ViTConfig, base: dict[str, Any], tokens: Array, last: Any) -> Array:
    return _normed(config, base, tokens[:, 0], last)


def _mean(config: ViTConfig, base: dict[str, Any], tokens: Array, last: Any) -> Array:
    return _normed(config, base, tokens.mean(axis=1), last)


def _attention(config: ViTConfig, base: dict[str, Any], tokens: Array, last: Any) -> Array:
    """SigLIP's head: a learned query attends to the patches; an MLP with a residual follows."""
    head = base[MAP_HEAD]
    heads, mlp = head["MultiHeadDotProductAttention_0"], head["MlpBlock_0"]
    x = _normed(config, base, tokens, last)
    probe = jnp.broadcast_to(head["probe"].astype(x.dtype), (x.shape[0], 1, config.width))
    (q,) = adapted_dense(probe, [heads["query"]])
    k, v = adapted_dense(x, [heads["key"], heads["value"]])
    (x,) = adapted_dense(attention(config, q, k, v), [heads["out"]])
    (y,) = adapted_dense(norm(config, head["LayerNorm_0"], x), [mlp["Dense_0"]])
    (y,) = adapted_dense(MLP_ACTIVATIONS[config.gelu](y), [mlp["Dense_1"]])
    return (x + y)[:, 0]


def _normed(config: ViTConfig, base: dict[str, Any], x: Array, last: Affine | None) -> Array:
    """The last norm, float32, with the adaptation's scale and shift of its output."""
    x = norm(config, base["Transformer"]["encoder_norm"], x.astype(jnp.float32))
    return x if last is None else last(x)


_POOLINGS: dict[str, Callable[[ViTConfig, dict[str, Any], Array, Any], Array]] = {
    "class": _class_token,
    "mean": _mean,
    "attention": _attention,
}


def pool(
    config: ViTConfig, base: dict[str, Any], tokens: Array, grid: int, last: Affine | None
) -> Float[Array, "b d"]:
    """Features, float32, of the last block's tokens.

    Args:
      config: the ViT's.
      base: its parameters.
      tokens: [b, n, d]. The class token comes first and the patches last.
      grid: patches along a side.
      last: an adaptation's scale and shift of the last norm's output, or None.
    """
    tokens = tokens if config.pooling == "class" else tokens[:, -grid * grid :]
    return _POOLINGS[config.pooling](config, base, tokens, last)
