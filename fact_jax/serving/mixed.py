"""The programs of a bank: a batch in which every image has its task's factors and head.

They depend on a kind, a ViT and a number of rows, and not on the number of tasks that are stored.
They are functions of the module, so that banks of one model share what is compiled.
"""

import functools

import jax
import jax.numpy as jnp

from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT, features
from fact_jax.serving.stack import Tree
from fact_jax.tuning.method import Base, Factors, Method


@functools.partial(jax.jit, static_argnames=("config", "method"))
def mixed_features(
    config: ViTConfig,
    method: Method,
    base: Base,
    images: jax.Array,
    rows: Tree,
    shared: Factors,
) -> jax.Array:
    """Computes features of images, each by factors of its own; no weight is merged for an image.

    Args:
      config: the ViT's.
      method: the method of all rows.
      base: the ViT's parameters.
      images: float32 [b, y, x, 3], normalised.
      rows: "factors" and "scale" of each image, [b, ...].
      shared: factors that all images have in common; a method may have none.

    Returns:
      float32 [b, d].
    """

    def one(image: jax.Array, row: Tree) -> jax.Array:
        adaptation = method.adaptation({**shared, **row["factors"]}, config, row["scale"])
        return features(ViT(config), base, image[None], adaptation, merged=False)[0]

    x: jax.Array = jax.vmap(one)(images, rows)
    return x


@jax.jit
def mixed_logits(heads: Tree, x: jax.Array) -> jax.Array:
    """float32 logits [b, c] of features [b, d], by heads "kernel" [b, d, c] and "bias" [b, c]."""
    product = jnp.einsum("bd,bdc->bc", x, heads["kernel"], precision="highest")
    logits: jax.Array = product + heads["bias"]
    return logits
