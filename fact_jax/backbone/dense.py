"""The dense operation of an adapted layer, with its own rule of differentiation."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import LowRank

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
    pairs: LowRank | Sequence[LowRank] | None = None,
    dropout_rate: float | Array | None = None,
    key: Array | None = None,
) -> list[Float[Array, "*b e"]]:
    """``x @ (kernel + increments) + bias`` in x's dtype for layers that share their input.

    `layers` hold "kernel" [d, e] and "bias" [e]; the columns of each pair's increment are theirs
    side by side. Without a dropout rate the increments are merged in float32 and one product is
    done, and going back the gradients of the factors are formed from rank-r projections, never from
    a [d, e] gradient. With a rate the rank-r values ``x @ a`` go through dropout (FacT drops after
    S and before V), which needs the paths apart. Only reverse mode is defined (no `jax.jvp`).
    """
    pairs = () if pairs is None else (pairs,) if isinstance(pairs, LowRank) else tuple(pairs)
    if not pairs:
        outputs = [x @ layer["kernel"].astype(x.dtype) for layer in layers]
    elif dropout_rate is None:
        outputs = _merged(x, [layer["kernel"] for layer in layers], pairs)
    else:
        widths = [layer["kernel"].shape[-1] for layer in layers]
        outputs = [x @ layer["kernel"].astype(x.dtype) for layer in layers]
        for i, pair in enumerate(pairs):
            own = key if i == 0 or key is None else jax.random.fold_in(key, i)
            increments = _low_rank(x, pair, widths, dropout_rate, own)
            outputs = [y + z for y, z in zip(outputs, increments, strict=True)]
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
    z = x
    if pair.u is not None:
        z = checkpoint_name(_times(z, pair.u.astype(x.dtype)), RANK_VALUES)
    z = _times(z, pair.a.astype(x.dtype))
    if rate is not None and key is not None:
        z = dropout(z, rate, key)
    z = checkpoint_name(z, RANK_VALUES)
    pieces = _cut(z, [width // f * r for width in widths])
    b = pair.b.astype(x.dtype)
    return [
        _times(piece.reshape(*x.shape[:-1], -1, r), b).reshape(*x.shape[:-1], width)
        for piece, width in zip(pieces, widths, strict=True)
    ]


def _precision() -> str | None:
    """That of products traced here. A backward pass is traced later, and has to be told."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _times(x: Array, factor: Array) -> Array:
    """``x @ factor`` for x [*b, d] and a factor [d, e] one side of which is a rank."""
    return _times_with(_precision(), x, factor)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _times_with(precision, x, factor):
    return x @ factor


def _times_forward(precision, x, factor):
    return x @ factor, (x, factor)


def _times_backward(precision, residuals, g):
    x, factor = residuals
    narrow_x = x.shape[-1] <= g.shape[-1]
    # XLA's CPU code is up to ten times faster with the narrow array in front, and neither that nor
    # the product turned round. The barriers keep it so.
    narrow, wide = (x, g) if narrow_x else (g, x)
    tokens = tuple(range(x.ndim - 1))
    with jax.default_matmul_precision(precision):
        narrow = jax.lax.optimization_barrier(narrow)
        d_factor = jax.lax.dot_general(narrow, wide, ((tokens, tokens), ((), ())))
        d_factor = jax.lax.optimization_barrier(d_factor)
        return g @ factor.T, d_factor if narrow_x else d_factor.T


_times_with.defvjp(_times_forward, _times_backward)


def _merged(x: Array, kernels: list[Array], pairs: tuple[LowRank, ...]) -> list[Array]:
    """``x @ (kernel + increments)`` for each kernel."""
    return _merged_with(_precision(), x, kernels, pairs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _merged_with(precision, x, kernels, pairs):
    return [x @ w for w in _merged_kernels(x, kernels, pairs)]


def _merged_kernels(x: Array, kernels: list[Array], pairs: tuple[LowRank, ...]) -> list[Array]:
    for pair in pairs:
        increments = _cut(pair.increment(), [w.shape[-1] for w in kernels])
        kernels = [w + dw for w, dw in zip(kernels, increments, strict=True)]
    return [w.astype(x.dtype) for w in kernels]


def _merged_forward(precision, x, kernels, pairs):
    # The merged kernels are not kept: with trials they would be a copy of the model each.
    return _merged_with(precision, x, kernels, pairs), (x, kernels, pairs)


def _merged_backward(precision, residuals, gradients):
    with jax.default_matmul_precision(precision):
        x, kernels, pairs = residuals
        return _merged_gradients(x, kernels, pairs, gradients)


def _merged_gradients(x, kernels, pairs, gradients):
    merged = _merged_kernels(x, kernels, pairs)
    dx = sum(g @ w.T for g, w in zip(gradients, merged, strict=True))
    widths = [w.shape[-1] for w in kernels]
    d_pairs = tuple(
        jax.vjp(lambda p: _low_rank(x, p, widths), pair)[1](gradients)[0] for pair in pairs
    )
    # Where the base is frozen nobody asks for these, and they are not computed.
    rows = x.reshape(-1, x.shape[-1])
    d_kernels = [
        (rows.T @ g.reshape(-1, g.shape[-1])).astype(w.dtype)
        for g, w in zip(gradients, kernels, strict=True)
    ]
    return dx, d_kernels, d_pairs


_merged_with.defvjp(_merged_forward, _merged_backward)
