"""Runs a program on any device as if its float32 matrix products were those of a TPU or a GPU.

A CPU multiplies float32 in true float32, with every setting of the precision. To imitate the
default of another device, the operands of every product are rounded: the program is traced, its
backward pass included, and each product of two float32 arrays with precision 'default' is replaced.
Products with a precision of their own ('high', 'highest') stay, as they do on those devices.
Sums are true float32; a device's own order of summation is not emulated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxprs_in_params
from jax.lax import Precision

_INLINE = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)
_OF_FACTORS = "factor_product"  # of fact_jax/backbone/dense.py, whose precision is a word
_PRODUCTS = ("dot_general", "conv_general_dilated", _OF_FACTORS)


def _rounded(x: jax.Array, mantissa_bits: int) -> jax.Array:
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=mantissa_bits)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A float32 array as the sum of two bfloat16 ones, nearly."""
    high = _rounded(x, 7)
    return high, _rounded(x - high, 7)


def _three_passes(product, x, y):
    (xh, xl), (yh, yl) = _parts(x), _parts(y)
    return product(xh, yh) + (product(xh, yl) + product(xl, yh))


# name -> how a product of two float32 arrays is done with exact products.
MODES: dict[str, Callable] = {
    "bf16": lambda product, x, y: product(_rounded(x, 7), _rounded(y, 7)),  # TPU 'default'
    "bf16_x3": _three_passes,  # TPU 'high'
    "tf32": lambda product, x, y: product(_rounded(x, 10), _rounded(y, 10)),  # GPU
}


def emulate(function: Callable, mode: str | None) -> Callable:
    """`function` with its default float32 products done in the named way; jit it yourself.

    Loops and calls are followed; NotImplementedError for a construct that might hide a product.
    None gives the function itself.
    """
    if mode is None:
        return function

    def run(*args):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*args)
        values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), MODES[mode])
        return jax.tree.unflatten(jax.tree.structure(out), values)

    return run


def _evaluate(jaxpr: Jaxpr, consts: Sequence, args: Sequence, way: Callable) -> list:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v):
        return v.val if isinstance(v, Literal) else env[v]

    for equation in jaxpr.eqns:
        outputs = _apply(equation, [read(v) for v in equation.invars], way)
        env.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _apply(equation: JaxprEqn, values: list, way: Callable) -> Sequence:
    primitive, params = equation.primitive, equation.params
    if primitive.name in _PRODUCTS:
        x, y = values
        return [_product(primitive, params, x, y, way)]
    if primitive.name in _INLINE:
        inner = params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, way)
    if primitive.name in ("scan", "while"):
        params = {
            name: _rewritten(value, way) if isinstance(value, ClosedJaxpr) else value
            for name, value in params.items()
        }
        return primitive.bind(*values, **params)
    if any(_has_product(inner) for inner in jaxprs_in_params(params)):
        raise NotImplementedError(f"Products inside {primitive.name!r} are not emulated.")
    outputs = primitive.bind(*values, **params)
    return outputs if primitive.multiple_results else [outputs]


def _product(primitive, params, x, y, way):
    defaults = (None, "default", Precision.DEFAULT, (Precision.DEFAULT,) * 2)
    is_default = params["precision"] in defaults
    if not (is_default and x.dtype == y.dtype == jnp.float32):
        return primitive.bind(x, y, **params)
    highest = "highest" if primitive.name == _OF_FACTORS else (Precision.HIGHEST,) * 2
    exact = {**params, "precision": highest}
    return way(lambda a, b: primitive.bind(a, b, **exact), x, y)


def _rewritten(body: ClosedJaxpr, way: Callable) -> ClosedJaxpr:
    run = functools.partial(_evaluate, body.jaxpr, body.consts, way=way)
    return jax.make_jaxpr(lambda *args: run(args))(*body.in_avals)


def _has_product(jaxpr: Jaxpr) -> bool:
    return any(
        e.primitive.name in _PRODUCTS or any(map(_has_product, jaxprs_in_params(e.params)))
        for e in jaxpr.eqns
    )


class Setting(NamedTuple):
    """Numerics of a run: compute type and precision of the ViT, and what is emulated (or None)."""

    name: str
    dtype: str = "float32"
    precision: str = "default"
    mode: str | None = None


REFERENCE = Setting("float32, highest", precision="highest")
TPU_DEFAULT = Setting("float32, default of a TPU (emulated)", mode="bf16")
TPU_HIGH = Setting("float32, high on a TPU (emulated)", mode="bf16_x3")
TF32 = Setting("float32, TensorFloat-32 (emulated)", mode="tf32")
BFLOAT16 = Setting("bfloat16", dtype="bfloat16")
