"""The consistency of logits under noise of the increments: PACE's loss in its three forms.

Source: the released code of PACE (MaxwellYaoNi/PACE, Vision/pace/pace_ops.py). docs/training.md
lists what differs. Rows and classes of padding count as nothing.
Letters: `b` images of a batch, `n` of the split, `c` classes (padded).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fact_jax.training.trial import Integer

_UNSEEN = jnp.inf  # in the memory, logits of an example that no step has seen


def empty_memory(capacity: int, padded_classes: int) -> Float[Array, "n c"]:
    """The logits of the last visit, of a split that no step has seen."""
    return jnp.full((capacity, padded_classes), _UNSEEN, jnp.float32)


def last_visit(
    memory: Float[Array, "n c"], rows: Int[Array, " b"], logits: Float[Array, "b c"]
) -> Float[Array, "b c"]:
    """The stored logits of these rows, and the rows' own logits where none are stored.

    No gradient goes through either, so that a first visit adds nothing.
    """
    stored = memory[rows]
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(stored), stored, logits))


def remember(
    memory: Float[Array, "n c"],
    rows: Int[Array, " b"],
    logits: Float[Array, "b c"],
    wanted: Bool[Array, " b"],
) -> Float[Array, "n c"]:
    """The memory with the logits of the wanted rows."""
    outside = jnp.where(wanted, rows, memory.shape[0])  # nothing is written there
    return memory.at[outside].set(logits, mode="drop")


def difference(
    logits: Float[Array, "b c"],
    others: Float[Array, "b c"],
    valid: Bool[Array, " b"],
    num_classes: Integer,
) -> Float[Array, ""]:
    """The squared differences, summed over the task's classes; their mean over the valid rows."""
    real = jnp.arange(logits.shape[-1], dtype=jnp.int32) < num_classes
    counted = valid[:, None] & real[None]
    gap = jnp.where(counted, logits, 0) - jnp.where(counted, others, 0)
    return (gap * gap).sum() / jnp.maximum(valid.sum().astype(jnp.float32), 1)
