"""Increments of random factors, on a tiny ViT."""

import jax
import numpy as np

from fact_jax import ViTConfig
from fact_jax.algebra.increments import Increments
from fact_jax.tuning.method import Factors, Method

CONFIG = ViTConfig(width=12, depth=2, num_heads=3, mlp_dim=24, patch_size=4, image_size=8)


def random_factors(method: Method, seed: int = 0) -> Factors:
    rng = np.random.default_rng(seed)
    factors = method.init(jax.random.key(0), CONFIG)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype("float32"), factors)


def random_increments(method: Method, seed: int = 0) -> Increments:
    return Increments.of(method, random_factors(method, seed), CONFIG)


def dense(increments: Increments) -> np.ndarray:
    """The slices as matrices, [n, d, d]."""
    return np.einsum("ndr,nr,nre->nde", increments.u, increments.s, increments.v)
