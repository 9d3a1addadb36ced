"""Quantisation of factors and heads to few bits a number.

An array is cut into groups. Each group has a step s, and a number becomes the nearest of the 2^bits
levels ``(code - (2^bits - 1) / 2) * s``: evenly spaced, symmetric, without zero. One bit has the
levels +s/2 and -s/2, as Bi-LoRA's numbers (JieShibo/PETL-ViT, binary_adapter).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fact_jax.errors import UserError

BITS = (1, 2, 4, 8, 16)
# Largest |number| of a group over its highest level: the first steps that are tried.
_RATIOS = np.geomspace(1.0, 8.0, 24, dtype=np.float32)


class Bits(NamedTuple):
    """Bits a number of the factors and of the head's kernel: 1, 2, 4, 8 or 16 each."""

    factors: int
    head: int

    def check(self) -> None:
        """Raises UserError for numbers of bits that there are not."""
        for part, bits in self._asdict().items():
            if bits not in BITS:
                raise UserError(
                    f"The {part} cannot have {bits!r} bits a number; expected one of "
                    f"{', '.join(map(str, BITS))}."
                )

    def of(self, name: str) -> int:
        """Bits a number of the array of this name; a head's bias always has 16."""
        if name == "head/bias":
            return 16
        return self.factors if name.startswith("factors/") else self.head


class Quantised(NamedTuple):
    """An array of few bits a number.

    Attributes:
      codes: integers from 0 to 2^bits - 1, in the array's shape; float16 numbers for 16 bits, which
        need no steps.
      steps: float16, the groups' steps as shares of `unit`; axes that a group runs over are 1.
      unit: float32, the largest step, so that no step leaves the range of float16.
    """

    codes: Any
    steps: Any
    unit: Any


def group_axes(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that a group of the array of this name and shape runs over.

    The last two axes are a matrix. A group is one of its columns or rows, whichever is longer, so
    that U [d, r] and V [r, d] have r groups each. A square matrix, such as a slice of S, is one
    group. A head's kernel [d, classes] has a group for each class, however many there are.
    """
    if name == "head/kernel":
        return (0,)
    if len(shape) < 2 or shape[-1] == shape[-2]:
        return tuple(range(max(len(shape) - 2, 0), len(shape)))
    return (len(shape) - 2,) if shape[-2] > shape[-1] else (len(shape) - 1,)


def steps_shape(name: str, shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The shape of the steps of the array of this name and shape."""
    if bits == 16:
        return (0,)
    axes = group_axes(name, shape)
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@functools.partial(jax.jit, static_argnames=("axes", "bits"))
def quantise(x: Float[Array | np.ndarray, "..."], axes: tuple[int, ...], bits: int) -> Quantised:
    """Quantises an array of finite numbers, whose groups run over these axes.

    Each group's step is the one with the least squared error among some that are tried.
    """
    x = jnp.asarray(x, jnp.float32)
    if bits == 16:
        unit = _positive(jnp.max(jnp.abs(x), initial=0.0))
        return Quantised((x / unit).astype(jnp.float16), jnp.zeros((0,), jnp.float16), unit)
    half = (2**bits - 1) / 2
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True, initial=0.0) / half

    def fitted(ratio: Array) -> tuple[Array, Array]:
        """The step of least squares for the codes of a first step, and its squared error."""
        levels = _codes(x, largest / ratio, half) - half
        step = (x * levels).sum(axes, keepdims=True) / (levels * levels).sum(axes, keepdims=True)
        error = x - (_codes(x, step, half) - half) * step
        return step, (error * error).sum(axes, keepdims=True)

    steps, errors = jax.lax.map(fitted, jnp.asarray(_RATIOS))
    best = jnp.argmin(errors, axis=0, keepdims=True)
    step = jnp.take_along_axis(steps, best, axis=0)[0]
    unit = _positive(jnp.max(step, initial=0.0))
    stored = (step / unit).astype(jnp.float16)
    codes = _codes(x, stored.astype(jnp.float32) * unit, half)
    return Quantised(codes.astype(jnp.uint8 if bits <= 8 else jnp.uint16), stored, unit)


def _positive(unit: Array) -> Array:
    return jnp.where(unit > 0, unit, 1)


def _codes(x: Array, step: Array, half: float) -> Array:
    """The nearest level's number for each of x, as float32; any where the step is 0."""
    ratio = x / jnp.where(step > 0, step, 1)
    return jnp.clip(jnp.floor(ratio + half + 0.5), 0, 2 * half)


def dequantise(quantised: Quantised, bits: int) -> Float[Array | np.ndarray, "..."]:
    """The float32 array that the codes stand for."""
    codes, steps, unit = quantised
    half = np.float32(0 if bits == 16 else (2**bits - 1) / 2)
    scale = unit if bits == 16 else steps.astype(np.float32) * unit
    x: Array | np.ndarray = (codes.astype(np.float32) - half) * scale
    return x


def rounded(trainable: dict[str, Any], bits: Bits) -> dict[str, Any]:
    """The numbers of {"factors": ..., "head": ...} after quantisation, float32.

    Their gradient is that of the numbers before it (the straight-through estimator of Bengio et
    al., 2013), for training that knows of the quantisation.
    """

    def one(name: str, x: Array) -> Array:
        width = bits.of(name)
        near = jnp.asarray(dequantise(quantise(x, group_axes(name, jnp.shape(x)), width), width))
        return jax.lax.stop_gradient(near) + (x - jax.lax.stop_gradient(x))

    return {
        part: {name: one(f"{part}/{name}", x) for name, x in arrays.items()}
        for part, arrays in trainable.items()
    }
