"""Second moments of what the slices of a ViT read, from a few pictures without labels.

Letters in shapes: `n` slices in FacT's order, `l` layers, `b` images, `t` tokens, `d` width, `p`
directions that are looked at.
"""

import functools
from collections.abc import Iterable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from fact_jax.backbone.adaptation import Adaptation
from fact_jax.backbone.config import ViTConfig
from fact_jax.backbone.vit import ViT
from fact_jax.errors import UserError
from fact_jax.tuning.slices import mlp_slices


def second_moments(
    model: ViT,
    base: dict[str, Any],
    adaptation: Adaptation,
    batches: Iterable[Float[np.ndarray, "b y x 3"]],
    left: Float64[np.ndarray, "d p"],
) -> Float64[np.ndarray, "n p p"]:
    """The mean of z z^T over tokens for each slice, where z [p] is its input in some directions.

    The inputs are those of the adapted network. A slice of fc2 reads its part of the hidden values.
    Where the class token alone is read, the last block's q, o, fc1 and fc2 act on it alone.

    Args:
      model: the network.
      base: its parameters.
      adaptation: the changes of the task.
      batches: normalised images.
      left: the directions, orthonormal, such as `Joint.left`.

    Raises:
      UserError: there are no images.
    """
    total, images = np.zeros(1), 0
    directions = jnp.asarray(left, jnp.float32)
    for batch in batches:
        sums = _sums(model.config, base, adaptation, jnp.asarray(batch), directions)
        total, images = total + np.asarray(sums, np.float64), images + len(batch)
    if not images:
        raise UserError("There are no images to weigh the inputs with.")
    return total / images


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    config: ViTConfig,
    base: dict[str, Any],
    adaptation: Adaptation,
    images: Float[Array, "b y x 3"],
    left: Float[Array, "d p"],
) -> Float[Array, "n p p"]:
    """Sums over images of the mean over tokens."""
    _, state = ViT(config).apply({"params": base}, images, adaptation, mutable="intermediates")
    outputs = cast(dict[str, Any], state)["intermediates"]["blocks"][0]
    hidden = outputs["fc2_input"]
    parts = hidden.reshape(*hidden.shape[:-1], mlp_slices(config), config.width)

    def moments(inputs: Array, of_queries: bool) -> Array:
        """[l, b, t, d] -> [l, p, p]."""
        z = jnp.matmul(inputs.astype(jnp.float32), left, precision="highest")
        every = jnp.einsum("lbtp,lbtq->lpq", z, z, precision="highest") / z.shape[2]
        first = jnp.einsum("bp,bq->pq", z[-1, :, 0], z[-1, :, 0], precision="highest")
        return every.at[-1].set(first) if of_queries and config.pooling == "class" else every

    keys = moments(outputs["qkv_input"], False)
    fc1 = moments(outputs["fc1_input"], True)
    slices = [moments(outputs["qkv_input"], True), keys, keys, moments(outputs["o_input"], True)]
    slices += [fc1] * parts.shape[3]
    slices += [moments(parts[..., i, :], True) for i in range(parts.shape[3])]
    return jnp.stack(slices, axis=1).reshape(-1, left.shape[1], left.shape[1])
