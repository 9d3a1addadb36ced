"""The parts of a block that differ between kinds of ViTs: places and the MLP.

Letters: `b` batch, `n` tokens, `m` queries, `h` heads, `d` width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from fact_jax.backbone.activations import MLP_ACTIVATIONS
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.dense import adapted_dense
from fact_jax.backbone.positions import relative_bias, rotate

Weights = Mapping[str, Any]  # of one block


def _unchanged(config: ViTConfig, x: Array, num_single: int) -> Array:
    return x


def _rotated(config: ViTConfig, x: Array, num_single: int) -> Array:
    return rotate(x, config, num_single)


def _none(weights: Weights, q: Array, k: Array, num_single: int) -> None:
    return None


def _relative(weights: Weights, q: Array, k: Array, num_single: int) -> Array:
    grid = math.isqrt(k.shape[1] - num_single)
    return relative_bias(weights["relative_positions"], grid, num_single - 1)[:, : q.shape[1]]


class Places(NamedTuple):
    """The places of tokens as a block knows them, of which the first `num_single` have none.

    Attributes:
      turned: a query or key [b, n, d] as the scores see it.
      bias: what is added to the scores, [h, m, n], or None.
    """

    turned: Callable[[ViTConfig, Array, int], Array] = _unchanged
    bias: Callable[[Weights, Array, Array, int], Array | None] = _none


def _plain(config: ViTConfig, weights: Weights, fc1: Array, y: Array) -> Array:
    return MLP_ACTIVATIONS[config.gelu](fc1)


def _gated(config: ViTConfig, weights: Weights, fc1: Array, y: Array) -> Array:
    """``act(gate(y)) fc1(y)``. The gate is frozen, because no site of an adaptation is there."""
    (gate,) = adapted_dense(y, [weights["MlpBlock_3"]["Gate"]])
    return MLP_ACTIVATIONS[config.gelu](checkpoint_name(gate, "gate")) * fc1


POSITIONS = {
    "table": Places(),
    "rope": Places(turned=_rotated),
    "relative": Places(bias=_relative),
}
"""The values of `ViTConfig.positions`."""

MLPS: dict[str, Callable[[ViTConfig, Weights, Array, Array], Array]] = {
    "plain": _plain,
    "gated": _gated,
}
"""The values of `ViTConfig.mlp`: the hidden values, of the MLP's input y and of fc1's output."""
