"""Activation functions, by the names that configs and bottlenecks have for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    """Exact GELU, computed in float32. jax.nn.gelu's `erfc` costs three times the operations."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * 0.5**0.5))).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (t,) = primals, tangents
    y = x.astype(jnp.float32)
    cdf = 0.5 * (1 + jax.lax.erf(y * 0.5**0.5))
    slope = cdf + y * jnp.exp(-0.5 * y * y) * (2 * jnp.pi) ** -0.5
    return (y * cdf).astype(x.dtype), t * slope.astype(t.dtype)


def _quick_gelu(x: Array) -> Array:
    """CLIP's approximation of GELU, computed in float32."""
    y = x.astype(jnp.float32)
    return (y * jax.nn.sigmoid(1.702 * y)).astype(x.dtype)


def _silu(x: Array) -> Array:
    """``x sigmoid(x)``, computed in float32."""
    return jax.nn.silu(x.astype(jnp.float32)).astype(x.dtype)


# Of the network's MLPs: `ViTConfig.gelu`.
MLP_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "exact": _gelu,
    "tanh": jax.nn.gelu,
    "quick": _quick_gelu,
    "silu": _silu,
}
# Of the bottlenecks of an adaptation: `Bottleneck.activation`.
BOTTLENECK_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": jax.nn.relu,
    "gelu": _gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
