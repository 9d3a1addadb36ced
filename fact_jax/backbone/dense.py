"""The dense operation of an adapted layer, with its own rule of differentiation."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from fact_jax.backbone.adaptation import LowRank, over_last

# Name of the values that rematerialisation should keep: rank-r values and the masks of dropout.
RANK_VALUES = "rank values"


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
    """Inverted dropout with a rate that may be traced."""
    # In float32: bfloat16's 1 - 0.1 is 0.17 % off, the same way in every layer.
    share = 1.0 - jnp.asarray(rate, jnp.float32)
    keep = checkpoint_name(jax.random.bernoulli(key, share, x.shape), RANK_VALUES)
    return jnp.where(keep, x.astype(jnp.float32) / share, 0).astype(x.dtype)


def adapted_dense(
    x: Float[Array, "*b d"],
    layers: Sequence[dict[str, Any]],
    pairs: LowRank | Sequence[LowRank] | None = None,
    dropout_rate: float | Array | None = None,
    key: Array | None = None,
    *,
    merged: bool = True,
) -> list[Float[Array, "*b e"]]:
    """``x @ (kernel + increments) + bias`` in x's dtype for layers that share their input.

    `layers` hold "kernel" [d, e] and "bias" [e]; each pair's increment has the columns of all
    layers side by side. Without a dropout rate the increments are `merged` in float32 for a single
    product; the backward pass computes the factors' gradients from rank-r projections, never from a
    [d, e] gradient. With a rate the rank-r values ``x @ a`` go through dropout (FacT drops after S
    and before V), so the two paths stay separate, as without `merged`. Forward and reverse mode
    work, also nested.
    """
    pairs = () if pairs is None else (pairs,) if isinstance(pairs, LowRank) else tuple(pairs)
    if not pairs:
        outputs = [x @ layer["kernel"].astype(x.dtype) for layer in layers]
    elif merged and dropout_rate is None:
        outputs = _merged(x, [layer["kernel"] for layer in layers], pairs)
    else:
        widths = [layer["kernel"].shape[-1] for layer in layers]
        outputs = [x @ layer["kernel"].astype(x.dtype) for layer in layers]
        for pair_outputs in _each_low_rank(x, pairs, widths, dropout_rate, key):
            outputs = [y + z for y, z in zip(outputs, pair_outputs, strict=True)]
    return [y + over_last(layer["bias"], y) for y, layer in zip(outputs, layers, strict=True)]


def increments(
    x: Float[Array, "*b d"],
    widths: Sequence[int],
    pairs: LowRank | Sequence[LowRank],
    dropout_rate: float | Array | None = None,
    key: Array | None = None,
) -> list[Float[Array, "*b e"]]:
    """The pairs' share of `adapted_dense`'s outputs of these widths, without bias."""
    pairs = (pairs,) if isinstance(pairs, LowRank) else tuple(pairs)
    each = _each_low_rank(x, pairs, widths, dropout_rate, key)
    return [sum(terms[1:], terms[0]) for terms in zip(*each, strict=True)]


def _each_low_rank(
    x: Array,
    pairs: Sequence[LowRank],
    widths: Sequence[int],
    rate: float | Array | None,
    key: Array | None,
) -> Iterator[list[Array]]:
    """The outputs of each pair in pieces of these widths, with dropout of its own."""
    for i, pair in enumerate(pairs):
        pair_key = key if i == 0 or key is None else jax.random.fold_in(key, i)
        yield _low_rank(x, pair, widths, rate, pair_key)


def _cut(x: Array, widths: Sequence[int]) -> list[Array]:
    """Cuts the last axis into pieces of these widths."""
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    return [x[..., end - width : end] for width, end in zip(widths, ends, strict=True)]


def _low_rank(
    x: Array,
    pair: LowRank,
    widths: Sequence[int],
    rate: float | Array | None = None,
    key: Array | None = None,
    *,
    named: bool = True,
) -> list[Array]:
    """``x @ increment`` in pieces of these widths, through the rank-r values and their dropout.

    With `named` the rank-r values have their name for rematerialisation.
    """

    def name(z: Array) -> Array:
        return checkpoint_name(z, RANK_VALUES) if named else z

    r, f = pair.b.shape
    z = x
    if pair.u is not None:
        z = name(_times(z, pair.u.astype(x.dtype)))
    z = _times(z, pair.a.astype(x.dtype))
    if rate is not None and key is not None:
        z = dropout(z, rate, key)
    z = name(z)
    pieces = _cut(z, [width // f * r for width in widths])
    b = pair.b.astype(x.dtype)
    return [
        _times(piece.reshape(*x.shape[:-1], -1, r), b).reshape(*x.shape[:-1], width)
        for piece, width in zip(pieces, widths, strict=True)
    ]


def _precision() -> str | None:
    """Precision of the products traced here; a rule of differentiation is traced later."""
    # mypy sees this setting in jax 0.12, and not in 0.10.
    setting = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined, unused-ignore]
    precision: str | None = setting
    return precision


def _times(x: Array, factor: Array) -> Array:
    """``x @ factor`` for x [*b, d] and a factor [d, e], where d or e is a rank."""
    product: Array = _product.bind(x, factor, precision=_precision(), lead=0)
    return product


# The product with a factor is a primitive of its own because of its transpose. The factor's
# gradient is a product over all tokens. XLA's CPU code is several times faster if the narrower
# array, x or the gradient, comes first, and XLA does not swap them; JAX's own transpose always has
# the gradient first. The first `lead` axes are common to both arrays, as vmap adds them.
_product = Primitive("factor_product")


def _product_impl(x: Array, factor: Array, precision: str | None, lead: int) -> Array:
    """x [*lead, *b, d] times factor [*lead, d, e]."""
    batch = tuple(range(lead))
    dimensions = ((x.ndim - 1,), (lead,)), (batch, batch)
    with jax.default_matmul_precision(precision):
        return jax.lax.dot_general(x, factor, dimensions)


def _product_shape(x: Any, factor: Any, precision: str | None, lead: int) -> Any:
    return x.update(shape=(*x.shape[:-1], factor.shape[-1]), weak_type=False)


def _input_gradient(g: Array, x: Any, factor: Array, precision: str | None, lead: int) -> Any:
    return _product.bind(g, factor.swapaxes(-1, -2), precision=precision, lead=lead)


def _factor_gradient(g: Array, x: Array, factor: Any, precision: str | None, lead: int) -> Any:
    """x^T g over all tokens, the narrower array first. The barriers keep XLA from swapping them."""
    narrow_x = x.shape[-1] <= g.shape[-1]
    narrow, wide = (x, g) if narrow_x else (g, x)
    batch, tokens = tuple(range(lead)), tuple(range(lead, x.ndim - 1))
    with jax.default_matmul_precision(precision):
        narrow = jax.lax.optimization_barrier(narrow)
        product = jax.lax.dot_general(narrow, wide, ((tokens, tokens), (batch, batch)))
        product = jax.lax.optimization_barrier(product)
    return product if narrow_x else product.swapaxes(-1, -2)


def _product_of_batches(
    arguments: Sequence[Array], axes: Sequence[int | None], precision: str | None, lead: int
) -> tuple[Array, int]:
    (x, factor), (x_axis, factor_axis) = arguments, axes
    if x_axis is not None and factor_axis is None and lead == 0:  # it only adds tokens
        x = jnp.moveaxis(x, x_axis, 0)
        return _product.bind(x, factor, precision=precision, lead=0), 0
    (size,) = {
        y.shape[axis] for y, axis in ((x, x_axis), (factor, factor_axis)) if axis is not None
    }

    def in_front(y: Array, axis: int | None) -> Array:
        return jnp.broadcast_to(y, (size, *y.shape)) if axis is None else jnp.moveaxis(y, axis, 0)

    x, factor = in_front(x, x_axis), in_front(factor, factor_axis)
    return _product.bind(x, factor, precision=precision, lead=lead + 1), 0


_product.def_impl(functools.partial(jax.jit, static_argnames=("precision", "lead"))(_product_impl))
_product.def_abstract_eval(_product_shape)
ad.defbilinear(_product, _input_gradient, _factor_gradient)
batching.primitive_batchers[_product] = _product_of_batches
mlir.register_lowering(_product, mlir.lower_fun(_product_impl, multiple_results=False))


def _merged(x: Array, kernels: list[Array], pairs: tuple[LowRank, ...]) -> list[Array]:
    """``x @ (kernel + increments)`` for each kernel."""
    return _merged_with(_precision(), x, kernels, pairs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _merged_with(
    precision: str | None, x: Array, kernels: list[Array], pairs: tuple[LowRank, ...]
) -> list[Array]:
    return [x @ w for w in _merged_kernels(x, kernels, pairs)]


def _merged_kernels(x: Array, kernels: list[Array], pairs: tuple[LowRank, ...]) -> list[Array]:
    for pair in pairs:
        increments = _cut(pair.increment(), [w.shape[-1] for w in kernels])
        kernels = [w + dw for w, dw in zip(kernels, increments, strict=True)]
    return [w.astype(x.dtype) for w in kernels]


def _merged_jvp(precision: str | None, primals: Any, tangents: Any) -> Any:
    """``dx (W + A B) + x dW + (x dA) B + (x A) dB``.

    Rematerialisation keeps nothing from here, because nothing has a name: the backward pass
    computes the merged kernels and the rank-r values again. Kept kernels would be a copy of the
    model for each trial.
    """
    (x, kernels, pairs), (dx, d_kernels, d_pairs) = primals, tangents
    with jax.default_matmul_precision(precision):
        merged = _merged_kernels(x, kernels, pairs)
        terms: list[list[Array]] = [[] for _ in kernels]
        for term, w, dw in zip(terms, merged, d_kernels, strict=True):
            if not isinstance(dx, SymbolicZero):
                term.append(dx @ w)
            if not isinstance(dw, SymbolicZero):
                term.append(x @ dw.astype(x.dtype))
        for pair, d_pair in zip(pairs, d_pairs, strict=True):
            increments = _low_rank_tangent(x, pair, d_pair, [w.shape[-1] for w in kernels])
            for term, increment in zip(terms, increments, strict=False):
                term.append(increment)
        outputs = [x @ w for w in merged]
        return outputs, [
            sum(term[1:], term[0]) if term else jnp.zeros_like(y)
            for term, y in zip(terms, outputs, strict=True)
        ]


def _low_rank_tangent(
    x: Array, pair: LowRank, tangent: LowRank, widths: Sequence[int]
) -> list[Array]:
    """Tangents of `_low_rank`'s outputs; empty if all arrays of the pair are constant."""
    leaves, treedef = jax.tree.flatten(pair)
    tangents = jax.tree.leaves(tangent)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]
    if not moving:
        return []

    def outputs(*arrays: Array) -> list[Array]:
        every = list(leaves)
        for i, array in zip(moving, arrays, strict=True):
            every[i] = array
        return _low_rank(x, jax.tree.unflatten(treedef, every), widths, named=False)

    arrays, directions = [leaves[i] for i in moving], [tangents[i] for i in moving]
    increments: list[Array] = jax.jvp(outputs, arrays, directions)[1]
    return increments


_merged_with.defjvp(_merged_jvp, symbolic_zeros=True)
