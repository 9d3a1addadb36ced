"""A run of many epochs that can be stopped anywhere and goes on from its last whole epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from fact_jax.training.trial import TrialState, check_finite


def train(
    epoch: Callable[[TrialState, int], tuple[TrialState, jax.Array]],
    state: TrialState,
    *,
    epochs: int,
    steps_per_epoch: int,
    directory: epath.Path,
    settings: dict[str, Any],
    evaluate: Callable[[TrialState], float] | None = None,
    eval_every: int = 0,
    on_epoch: Callable[[int, float], None] = lambda done, loss: None,
) -> tuple[TrialState, np.ndarray, np.ndarray]:
    """Runs ``state, losses = epoch(state, e)`` for e = 0 ... epochs - 1, a checkpoint after each.

    Returns the state, the mean loss of each epoch [epochs], and the accuracy in % after each epoch
    [epochs], NaN where none was measured: `evaluate` is called after every `eval_every` epochs and
    after the last. Raises NonFiniteLoss. A checkpoint in `directory` is resumed, so that the
    outcome equals that of a run never stopped.
    """
    from orbax.checkpoint import v1 as ocp

    curves = {"losses": jnp.full((epochs,), jnp.nan), "accuracies": jnp.full((epochs,), jnp.nan)}
    tree = {"trainable": state.trainable, "moments": state.moments, **curves}
    latest_only = ocp.training.preservation_policies.LatestN(1)
    with ocp.training.Checkpointer(
        directory, preservation_policy=latest_only, cleanup_tmp_directories=True
    ) as checkpointer:
        first = 0
        if checkpointer.latest is not None:
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
            )
            tree = checkpointer.load(checkpointer.latest.step, abstract)
            first = checkpointer.latest.step + 1
        state = TrialState(tree["trainable"], tree["moments"])
        loss_curve = np.array(tree["losses"])
        accuracy_curve = np.array(tree["accuracies"])
        for e in range(first, epochs):
            state, device_losses = epoch(state, e)
            losses = np.asarray(device_losses)[:steps_per_epoch]
            check_finite(losses, state.trainable, e, settings)
            loss_curve[e] = losses.mean()
            if evaluate and (e == epochs - 1 or (eval_every and (e + 1) % eval_every == 0)):
                accuracy_curve[e] = evaluate(state)
            checkpointer.save(
                e,
                {
                    "trainable": state.trainable,
                    "moments": state.moments,
                    "losses": jnp.asarray(loss_curve),
                    "accuracies": jnp.asarray(accuracy_curve),
                },
            )
            on_epoch(e + 1, float(loss_curve[e]))
    return state, loss_curve, accuracy_curve
