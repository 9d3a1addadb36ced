"""`Adaptation`: what a task changes in a frozen ViT, and the dense operation that applies it.

Every tuning method is a function from its own small pytree to this one; the ViT knows only this.
Letters in shapes: `l` layer, `d` in width, `e` out width, `r` rank, `g` groups of output columns.
"""

from __future__ import annotations

import flax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@flax.struct.dataclass
class LowRank:
    """A low-rank increment of a dense kernel, ``increment = a @ b`` per group of output columns.

    a: [..., d, g * r], b: [..., r, e / g]. Columns ``[j * e/g, (j+1) * e/g)`` of the increment are
    ``a[:, j*r:(j+1)*r] @ b``, so that all groups share `b`. LoRA and the square FacT slices have
    g = 1; FacT cuts fc1 along its output into g = 4 slices that share V. fc2, which FacT cuts
    along its input, is a plain pair whose `a` has 4d rows.
    """

    a: Float[Array, "*l d gr"]
    b: Float[Array, "*l r f"]

    def increment(self) -> Float[Array, "*l d e"]:
        """The dense increment, [..., d, e], in the factors' dtype."""
        *lead, d, gr = self.a.shape
        r, f = self.b.shape[-2:]
        grouped = self.a.reshape(*lead, d, gr // r, r)
        # 'highest': a TPU's default for float32 is a product of bfloat16 numbers.
        dense = jnp.einsum("...dgr,...rf->...dgf", grouped, self.b, precision="highest")
        return dense.reshape(*lead, d, gr // r * f)


@flax.struct.dataclass
class Adaptation:
    """Changes to a ViT's blocks, stacked over the layer axis; None means unchanged.

    Six dense sites of a block: query, key, value and output projection, and the two layers of the
    MLP. Leaves have the leading axis [l, ...] over which the ViT scans.
    """

    q: LowRank | None = None
    k: LowRank | None = None
    v: LowRank | None = None
    o: LowRank | None = None
    fc1: LowRank | None = None
    fc2: LowRank | None = None


# Where each site's kernel lies in a block's parameters.
SITES: dict[str, tuple[str, str]] = {
    "q": ("MultiHeadDotProductAttention_1", "query"),
    "k": ("MultiHeadDotProductAttention_1", "key"),
    "v": ("MultiHeadDotProductAttention_1", "value"),
    "o": ("MultiHeadDotProductAttention_1", "out"),
    "fc1": ("MlpBlock_3", "Dense_0"),
    "fc2": ("MlpBlock_3", "Dense_1"),
}


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
    """Inverted dropout with a rate that may be traced."""
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    # In float32: bfloat16's 1 - 0.1 is 0.17 % off, the same way in every layer.
    return jnp.where(keep, x / (1.0 - jnp.asarray(rate, jnp.float32)), 0).astype(x.dtype)


def adapted_dense(
    x: Float[Array, "*b d"],
    kernel: Float[Array, "d e"],
    bias: Float[Array, " e"],
    pair: LowRank | None = None,
    dropout_rate: float | Array = 0.0,
    key: Array | None = None,
) -> Float[Array, "*b e"]:
    """``x @ (kernel + increment) + bias`` in x's dtype, with dropout between the two factors.

    Without a key the increment is merged in float32 and one product is done. With a key the
    rank-r activations ``x @ a`` go through dropout (FacT drops after S and before V), which needs
    the two paths apart.
    """
    if pair is None:
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)
    if key is None:
        return x @ (kernel + pair.increment()).astype(x.dtype) + bias.astype(x.dtype)
    r = pair.b.shape[-2]
    z = dropout(x @ pair.a.astype(x.dtype), dropout_rate, key)
    z = z.reshape(*x.shape[:-1], -1, r) @ pair.b.astype(x.dtype)
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype) + z.reshape(*x.shape[:-1], -1)


def merge(base: dict, adaptation: Adaptation) -> dict:
    """A copy of `base` with the increments added to its kernels, for inference at no extra cost."""
    blocks = dict(base["Transformer"]["encoderblock"])
    for site, (module, layer) in SITES.items():
        pair = getattr(adaptation, site)
        if pair is not None:
            dense = dict(blocks[module][layer])
            dense["kernel"] = dense["kernel"] + pair.increment().astype(dense["kernel"].dtype)
            blocks[module] = {**blocks[module], layer: dense}
    return {**base, "Transformer": {**base["Transformer"], "encoderblock": blocks}}
