"""Noise that multiplies the increments and bottlenecks of an adaptation, as PACE has it.

Source: Ni, Zhang and Koniusz, "PACE: Marrying generalization in PArameter-efficient fine-tuning
with Consistency rEgularization", NeurIPS 2024; the formula and the levels by depth are those of the
released code (MaxwellYaoNi/PACE, Vision/pace/pace_ops.py and Vision/train.py).
Letters: `b` images, `c` channels, `l` layers.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import SITES, Adaptation
from fact_jax.backbone.dense import RANK_VALUES


@flax.struct.dataclass
class IncrementNoise:
    """Factors z ~ 1 + sigma N(0, 1), one for each image and channel.

    A network that gets this noise multiplies its increments and the outputs of its bottlenecks by
    z. Two passes with different keys, and everything else equal, differ in z alone.

    Attributes:
      key: of the noise, and of nothing else.
      sigma: the standard deviation in the first block with noise, which may be traced.
    """

    key: Array
    sigma: float | Array

    def by_layer(self, depth: int) -> IncrementNoise:
        """The noise of each block: a key of its own, and the deviation of its level."""
        sigma = jnp.asarray(self.sigma, jnp.float32) * levels(depth)[:depth]
        return IncrementNoise(jax.random.split(self.key, depth), sigma)

    def of_head(self, depth: int) -> IncrementNoise:
        """The noise of the head, the layer behind the last block."""
        sigma = jnp.asarray(self.sigma, jnp.float32) * float(levels(depth)[depth])
        return IncrementNoise(jax.random.fold_in(self.key, depth), sigma)

    def times(self, increment: Float[Array, "b *n c"], number: int = 0) -> Float[Array, "b *n c"]:
        """The increment times z. Different numbers draw different z."""
        b, *between, c = increment.shape
        key = jax.random.fold_in(self.key, number)
        drawn = jax.random.normal(key, (b, *[1] * len(between), c), jnp.float32)
        z = checkpoint_name(1.0 + jnp.asarray(self.sigma, jnp.float32) * drawn, RANK_VALUES)
        noisy: Array = (increment.astype(jnp.float32) * z).astype(increment.dtype)
        return noisy


def levels(depth: int) -> np.ndarray:
    """Shares of sigma, float32 [l + 1]: those of the blocks, then that of the head.

    The first block has no noise. From the second block to the head the share falls linearly from 1
    to 1 / l, so that it would be 0 one layer behind the head.
    """
    shares = (depth + 1 - np.arange(depth + 1)) / depth
    shares[0] = 0.0
    return shares.astype(np.float32)


def takes_noise(adaptation: Adaptation) -> bool:
    """Whether an adaptation has anything that the noise multiplies."""
    sites = (getattr(adaptation, name) for name in (*SITES, "qkv"))
    return any(adaptation.bypasses.values()) or any(bool(pairs) for pairs in sites)
