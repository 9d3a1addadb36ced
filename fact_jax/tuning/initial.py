"""Initial values that several methods' sources use."""

import math

import jax
import jax.numpy as jnp


def uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
    """Uniform on +-bound."""
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)


def linear(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """PyTorch's Linear default for a kernel [..., in, out]: uniform +-1/sqrt(in)."""
    return uniform(key, shape, shape[-2] ** -0.5)


def xavier(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Xavier-uniform for a kernel [..., in, out]: bound sqrt(6 / (in + out))."""
    return uniform(key, shape, math.sqrt(6 / (shape[-2] + shape[-1])))


def block_diagonal(blocks: jax.Array) -> jax.Array:
    """[..., g, i, o] -> [..., g i, g o], zero outside of the g blocks."""
    *lead, g, i, o = blocks.shape
    eye = jax.numpy.eye(g, dtype=blocks.dtype)
    spread = jax.numpy.einsum("...gio,gk->...giko", blocks, eye)
    return spread.reshape(*lead, g * i, g * o)
