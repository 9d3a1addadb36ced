"""`Adaptation`: what a task changes in a frozen ViT, and the dense operation that applies it.

Every tuning method is a function from its own small pytree to this one; the ViT knows only this.
Letters in shapes: `l` layer, `d` in width, `e` out width, `r` rank, `g` groups of output columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float


@flax.struct.dataclass
class LowRank:
    """A low-rank increment of a dense kernel, ``increment = a @ b`` per group of output columns.

    a: [..., d, g * r], b: [..., r, e / g]. Columns ``[j * e/g, (j+1) * e/g)`` of the increment are
    ``a[:, j*r:(j+1)*r] @ b``, so that all groups share `b`. LoRA and a single FacT slice have
    g = 1; FacT cuts fc1 along its output into g = 4 slices that share V, and query, key and value
    together are g = 3. fc2, which FacT cuts along its input, is a plain pair whose `a` has 4d rows.

    With u: [..., d, r'], `a` is [..., r', g * r] and ``u @ a`` takes its place: the input is
    projected once for all groups.
    """

    a: Float[Array, "*l d gr"]
    b: Float[Array, "*l r f"]
    u: Float[Array, "*l d r"] | None = None

    def outer(self) -> Float[Array, "*l d gr"]:
        """The first factor of the product, ``u @ a`` or just `a`, in the factors' dtype."""
        # 'highest': a TPU's default for float32 is a product of bfloat16 numbers.
        return self.a if self.u is None else jnp.matmul(self.u, self.a, precision="highest")

    def increment(self) -> Float[Array, "*l d e"]:
        """The dense increment, [..., d, e], in the factors' dtype."""
        a = self.outer()
        *lead, d, gr = a.shape
        r, f = self.b.shape[-2:]
        dense = jnp.einsum(
            "...dgr,...rf->...dgf", a.reshape(*lead, d, gr // r, r), self.b, precision="highest"
        )
        return dense.reshape(*lead, d, gr // r * f)

    def split(self) -> list[LowRank]:
        """One pair for each group."""
        r = self.b.shape[-2]
        parts = jnp.split(self.a, self.a.shape[-1] // r, axis=-1)
        return [LowRank(part, self.b, self.u) for part in parts]


@flax.struct.dataclass
class Adaptation:
    """Changes to a ViT's blocks, stacked over the layer axis; None means unchanged.

    Six dense sites of a block: query, key, value and output projection, and the two layers of the
    MLP; `qkv` changes the first three at once, with g = 3, in the place of `q`, `k` and `v`. Leaves
    have the leading axis [l, ...] over which the ViT scans.
    """

    q: LowRank | None = None
    k: LowRank | None = None
    v: LowRank | None = None
    o: LowRank | None = None
    fc1: LowRank | None = None
    fc2: LowRank | None = None
    qkv: LowRank | None = None

    def site(self, name: str) -> LowRank | None:
        """The pair of one of the six sites."""
        if name in "qkv" and self.qkv is not None:
            return self.qkv.split()["qkv".index(name)]
        return getattr(self, name)


# Where each site's kernel lies in a block's parameters.
SITES: dict[str, tuple[str, str]] = {
    "q": ("MultiHeadDotProductAttention_1", "query"),
    "k": ("MultiHeadDotProductAttention_1", "key"),
    "v": ("MultiHeadDotProductAttention_1", "value"),
    "o": ("MultiHeadDotProductAttention_1", "out"),
    "fc1": ("MlpBlock_3", "Dense_0"),
    "fc2": ("MlpBlock_3", "Dense_1"),
}


# Name, for rematerialisation, of what is worth keeping: rank-r values and the masks of dropout.
RANK_VALUES = "rank values"


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
    """Inverted dropout with a rate that may be traced."""
    keep = checkpoint_name(jax.random.bernoulli(key, 1.0 - rate, x.shape), RANK_VALUES)
    # In float32: bfloat16's 1 - 0.1 is 0.17 % off, the same way in every layer.
    return jnp.where(keep, x / (1.0 - jnp.asarray(rate, jnp.float32)), 0).astype(x.dtype)


def adapted_dense(
    x: Float[Array, "*b d"],
    layers: Sequence[dict],
    pair: LowRank | None = None,
    dropout_rate: float | Array | None = None,
    key: Array | None = None,
) -> list[Float[Array, "*b e"]]:
    """``x @ (kernel + increment) + bias`` in x's dtype for layers that share their input.

    `layers` hold "kernel" [d, e] and "bias" [e]; the columns of `pair`'s increment are theirs side
    by side. Without a dropout rate the increment is merged in float32 and one product is done, and
    going back the gradients of the factors are formed from rank-r projections, never from a [d, e]
    gradient. With a rate the rank-r values ``x @ a`` go through dropout (FacT drops after S and
    before V), which needs the two paths apart.
    """
    if pair is None:
        outputs = [x @ layer["kernel"].astype(x.dtype) for layer in layers]
    elif dropout_rate is None:
        outputs = _merged(x, [layer["kernel"] for layer in layers], pair)
    else:
        widths = [layer["kernel"].shape[-1] for layer in layers]
        increments = _low_rank(x, pair, widths, dropout_rate, key)
        outputs = [
            x @ layer["kernel"].astype(x.dtype) + z
            for layer, z in zip(layers, increments, strict=True)
        ]
    return [y + layer["bias"].astype(x.dtype) for y, layer in zip(outputs, layers, strict=True)]


def _cut(x: Array, widths: Sequence[int]) -> list[Array]:
    """Pieces of the last axis."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [x[..., end - width : end] for width, end in zip(widths, ends, strict=True)]


def _low_rank(
    x: Array,
    pair: LowRank,
    widths: Sequence[int],
    rate: float | Array | None = None,
    key: Array | None = None,
) -> list[Array]:
    """``x @ increment`` in pieces of these widths, through the rank-r values and their dropout."""
    r, f = pair.b.shape
    z = x if pair.u is None else checkpoint_name(x @ pair.u.astype(x.dtype), RANK_VALUES)
    z = z @ pair.a.astype(x.dtype)
    if rate is not None and key is not None:
        z = dropout(z, rate, key)
    z = checkpoint_name(z, RANK_VALUES)
    pieces = _cut(z, [width // f * r for width in widths])
    b = pair.b.astype(x.dtype)
    return [
        (piece.reshape(*x.shape[:-1], -1, r) @ b).reshape(*x.shape[:-1], width)
        for piece, width in zip(pieces, widths, strict=True)
    ]


@jax.custom_vjp
def _merged(x: Array, kernels: list[Array], pair: LowRank) -> list[Array]:
    """``x @ (kernel + increment)`` for each kernel."""
    return [x @ w for w in _merged_kernels(x, kernels, pair)]


def _merged_kernels(x: Array, kernels: list[Array], pair: LowRank) -> list[Array]:
    increments = _cut(pair.increment(), [w.shape[-1] for w in kernels])
    return [(w + dw).astype(x.dtype) for w, dw in zip(kernels, increments, strict=True)]


def _merged_forward(x, kernels, pair):
    # The merged kernels are not kept: with trials they would be a copy of the model each.
    return _merged(x, kernels, pair), (x, kernels, pair)


def _merged_backward(residuals, gradients):
    x, kernels, pair = residuals
    merged = _merged_kernels(x, kernels, pair)
    dx = sum(g @ w.T for g, w in zip(gradients, merged, strict=True))
    widths = [w.shape[-1] for w in kernels]
    (d_pair,) = jax.vjp(lambda p: _low_rank(x, p, widths), pair)[1](gradients)
    # Where the base is frozen nobody asks for these, and they are not computed.
    rows = x.reshape(-1, x.shape[-1])
    d_kernels = [
        (rows.T @ g.reshape(-1, g.shape[-1])).astype(w.dtype)
        for g, w in zip(gradients, kernels, strict=True)
    ]
    return dx, d_kernels, d_pair


_merged.defvjp(_merged_forward, _merged_backward)


def merge(base: dict, adaptation: Adaptation) -> dict:
    """A copy of `base` with the increments added to its kernels, for inference at no extra cost."""
    blocks = dict(base["Transformer"]["encoderblock"])
    for site, (module, layer) in SITES.items():
        pair = adaptation.site(site)
        if pair is not None:
            dense = dict(blocks[module][layer])
            dense["kernel"] = dense["kernel"] + pair.increment().astype(dense["kernel"].dtype)
            blocks[module] = {**blocks[module], layer: dense}
    return {**base, "Transformer": {**base["Transformer"], "encoderblock": blocks}}
